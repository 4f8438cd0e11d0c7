"""SVHN-LT, whose tail is the digit 0, from the official files and from class folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data_prep.reading.subsets import imbalanced_counts, unlabeled_counts
from data_prep.sets.svhn import TRAIN_COUNTS
from lt_train.errors import UserError
from tests.helpers.published import SVHN, published_subset
from tests.helpers.sources import copy_files, fill, source_of, touch
from tests.helpers.stand_ins import StandIn, assert_published_subset, noise, write_folders

RATIO = 500  # leaves the digit 0 two images
DIGITS = [str(digit) for digit in range(10)]
SVHN_ORDER = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def write_mat(file: Path, labels: np.ndarray, pixels: np.ndarray, **options) -> None:
    """As SVHN's: X (32, 32, 3, N), and the digit 0 is called 10."""
    file.parent.mkdir(parents=True, exist_ok=True)
    column = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(file, {"X": pixels.transpose(1, 2, 3, 0), "y": column}, **options)


@pytest.fixture(scope="module")
def svhn(tmp_path_factory) -> StandIn:
    root = tmp_path_factory.mktemp("svhn")
    counts = [int(1000 * (1 / RATIO) ** (place / 9)) for place in range(10)]
    sizes = [counts[SVHN_ORDER.index(digit)] + 2 for digit in range(10)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), sizes))
    test_labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 3))
    found = {"train": (labels, noise(labels, 4)), "test": (test_labels, noise(test_labels, 5))}
    for split, (split_labels, pixels) in found.items():
        file = root / "official" / f"{split}_32x32.mat"
        write_mat(file, split_labels, pixels, do_compression=True)
        write_folders(root / "folders" / split, DIGITS, split_labels, pixels)
    return StandIn(labels, found["train"][1], root / "official", root / "folders", *found["test"])


@pytest.mark.parametrize("layout", ["official", "folders"])
def test_svhn_lt_is_the_published_subset_in_both_layouts_with_0_as_its_tail(svhn, layout):
    source = source_of("svhn_lt", "--source", getattr(svhn, layout), "--imbalance-ratio", RATIO)
    assert (source.name, source.classes, source.notes) == ("svhn_lt", DIGITS, [])
    expected = published_subset(svhn.labels, SVHN_ORDER, 1000, 1 / RATIO)
    assert_published_subset(source, svhn, DIGITS, expected)
    counts = np.bincount(source.splits["train"].labels)
    assert (counts[1], counts[0]) == (1000, 2) and (np.diff(counts[SVHN_ORDER]) < 0).all()


def test_class_folders_of_svhn_may_lie_under_the_usual_names_beside_clutter(svhn, tmp_path):
    (tmp_path / "Training").symlink_to(svhn.folders / "train")
    (tmp_path / "TEST").symlink_to(svhn.folders / "test")
    touch(svhn.folders, "test/Thumbs.db", "test/3/.DS_Store")
    source = source_of("svhn_lt", "--source", tmp_path, "--imbalance-ratio", RATIO)
    assert_published_subset(
        source, svhn, DIGITS, published_subset(svhn.labels, SVHN_ORDER, 1000, 1 / RATIO)
    )
    assert source.passed.told() == "passed over: 1 Thumbs.db, 1 hidden"


def test_svhn_lt_steps_down_after_the_digit_5(svhn, tmp_path):
    sizes = [10, *5 * [1000], *4 * [10]]
    labels = np.repeat(np.arange(10), sizes)
    write_mat(tmp_path / "train_32x32.mat", labels, noise(labels, 0))
    write_mat(tmp_path / "test_32x32.mat", labels[:5], noise(labels[:5], 0))
    source = source_of("svhn_lt", "--source", tmp_path, "--imbalance-type", "step")
    np.testing.assert_array_equal(np.bincount(source.splits["train"].labels), sizes)


def test_a_ratio_that_leaves_a_class_nothing_is_refused(svhn):
    message = "class '0' would have no training images; lower --imbalance-ratio"
    with pytest.raises(UserError, match=message):
        source_of("svhn_lt", "--source", svhn.official, "--imbalance-ratio", 1001)


def test_svhn_with_too_few_images_is_refused(svhn):
    message = "class '2' has .* training images and .* are needed: the source is not all of svhn"
    with pytest.raises(UserError, match=message):
        source_of("svhn_lt", "--source", svhn.official, "--imbalance-ratio", 100)


DIGIT_PIXELS = np.zeros((32, 32, 3, 5), np.uint8)
Y = np.array([[1], [2], [10], [4], [5]], np.uint8)
BAD_MATS: dict[str, Callable[[bytes], bytes | dict]] = {
    "cut off": lambda content: content[:-500],
    "empty": lambda content: b"",
    "MATLAB 7.3": lambda content: b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512),
    "no X": lambda content: {"y": Y},
    "float X": lambda content: {"X": DIGIT_PIXELS / 255, "y": Y},
    "X of another shape": lambda content: {"X": DIGIT_PIXELS[:31], "y": Y},
    "y of another length": lambda content: {"X": DIGIT_PIXELS, "y": Y[:4]},
    "label 11": lambda content: {"X": DIGIT_PIXELS, "y": Y + 1},
}


@pytest.mark.parametrize("kind", BAD_MATS)
def test_a_damaged_mat_file_is_named(svhn, tmp_path, kind):
    copy_files(svhn.official, tmp_path)
    file = tmp_path / "test_32x32.mat"
    content = BAD_MATS[kind](file.read_bytes())
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        savemat(file, content)
    with pytest.raises(UserError, match="test_32x32.mat' is not a whole SVHN file"):
        source_of("svhn_lt", "--source", tmp_path, "--imbalance-ratio", RATIO)


def test_a_source_without_svhn_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither train_32x32.mat nor a folder train/"):
        source_of("svhn_lt", "--source", tmp_path)
    touch(tmp_path, "train/10/1.png")
    with pytest.raises(UserError, match="class folder '10' is not among"):
        source_of("svhn_lt", "--source", tmp_path)


def test_the_class_sizes_of_svhn_add_up():
    """A draw hardly tells: one from 4,947 images soon falls into step with one from 4,948."""
    assert sum(SVHN.sizes) == 73_257
    assert [TRAIN_COUNTS[digit] for digit in SVHN.order] == SVHN.sizes


def test_svhns_largest_class_and_that_of_its_d_u(tmp_path):
    names = [f"{digit}/{number}" for digit in range(10) for number in range(12)]
    for split in ("train", "test", "extra"):
        fill(tmp_path / split, {f"{name}.png": name.encode() for name in names})
    options = ["--largest", 12, "--imbalance-ratio", 4]
    source = source_of("svhn_lt", "--source", tmp_path, *options)
    counts = imbalanced_counts(12, 10, 4)
    found = np.bincount(source.splits["train"].labels)
    np.testing.assert_array_equal(found, [counts[-1], *counts[:-1]])
    assert source.notes == ["--largest is not 1000: this is not the published subset"]
    source = source_of("unlabeled_svhn", "--pool", tmp_path, *options, "--size-factor", 0.9)
    expected = unlabeled_counts(sum(counts), 10, 4, 0.9)
    found = np.bincount(source.splits["train"].columns["sourced_label"])
    np.testing.assert_array_equal(found, [expected[-1], *expected[:-1]])
