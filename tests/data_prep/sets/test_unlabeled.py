"""The drawn sets D_U of Yang and Xu 2020, from published pickles and from SVHN's extra images."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.data.manifest import Manifest
from lt_train.data.tables import UNLABELED
from lt_train.errors import UserError
from tests.helpers.published import CIFAR10, SVHN, labeled_counts, published_counts, published_draw
from tests.helpers.sources import (
    Attack,
    fill,
    label_files,
    pixels_of,
    png,
    prepared,
    python2_pickle,
    source_of,
)

POOL_SIZES = [95, 70, 60, 50, 40, 40, 30, 30, 25, 25]


@pytest.fixture(scope="module")
def selected() -> dict[str, np.ndarray | list[int]]:
    """A pool as of Carmon et al. 2019, a few of its images of no class."""
    generator = np.random.default_rng(3)
    targets = generator.permutation(np.repeat(np.arange(-1, 10), [20, *POOL_SIZES]))
    return {
        "data": generator.integers(0, 256, (len(targets), 32, 32, 3), np.uint8),
        "extrapolated_targets": targets.tolist(),
    }


def old_numpy_pickle(content: dict) -> bytes:
    """With the module name that NumPy had then."""
    dumped = pickle.dumps(content, protocol=3)
    return dumped.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


PICKLES: dict[str, Callable[[dict], bytes]] = {
    "Python 2": python2_pickle,
    "Python 3": lambda content: pickle.dumps(content),
    "Python 3, protocol 2, bytes keys": (
        lambda content: pickle.dumps({key.encode(): content[key] for key in content}, protocol=2)
    ),
    "all arrays": (
        lambda content: pickle.dumps(dict(zip(content, map(np.array, content.values()))), 5)
    ),
    "old NumPy": old_numpy_pickle,
}
SMALL = ("--size-factor", "0.015")


@pytest.fixture(scope="module")
def pool(selected, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pool") / "ti.pickle"
    file.write_bytes(pickle.dumps(selected))
    return file


@pytest.fixture(scope="module")
def targets(selected) -> np.ndarray:
    """The classes of the pool's images, -1: none."""
    return np.array(selected["extrapolated_targets"])


@pytest.mark.parametrize("writer", PICKLES)
def test_a_pickle_gives_the_published_draw_index_for_index(selected, targets, tmp_path, writer):
    (tmp_path / "ti.pickle").write_bytes(PICKLES[writer](selected))
    source = source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", *SMALL)
    counts = published_counts(labeled_counts(CIFAR10, 50, "exp"), 50, 0.015)
    expected = published_draw(CIFAR10, targets, counts)
    split = source.splits["train"]
    assert (source.name, source.classes) == ("unlabeled_cifar10", CIFAR10_CLASSES)
    assert split.labels is None
    assert len(expected) > 200 and split.keys == [f"ti_{index:07d}" for index in expected]
    np.testing.assert_array_equal(split.columns["sourced_label"], targets[expected])
    for number in range(0, len(expected), 7):
        found = pixels_of(split.images.read(number))
        np.testing.assert_array_equal(found, selected["data"][expected[number]])
    assert "withdrawn" in source.notes[0] and len(source.notes) == 1


def test_published_pseudo_labels_follow_their_images(pool, targets, tmp_path):
    pseudo = np.random.default_rng(4).integers(0, 10, len(targets))
    file = tmp_path / "pseudo.pickle"
    model = "checkpoint/ckpt.best.pth.tar"
    file.write_bytes(pickle.dumps({"extrapolated_targets": pseudo, "prediction_model": model}))
    options = ("unlabeled_cifar10", "--pool", pool, *SMALL)
    split = source_of(*options, "--pseudo-labels", file).splits["train"]
    numbers = [int(key.removeprefix("ti_")) for key in split.keys]
    np.testing.assert_array_equal(split.columns["pseudo_label"], pseudo[numbers])
    assert split.keys == source_of(*options).splits["train"].keys, "the draw is the same"

    for other in (pseudo[:50], pseudo[:-1], np.append(pseudo, 0)):
        file.write_bytes(pickle.dumps({"extrapolated_targets": other}))
        message = f"it has {len(other)} labels, and the pool {len(targets)} images"
        with pytest.raises(UserError, match=message):
            source_of(*options, "--pseudo-labels", file)


@pytest.mark.parametrize("which", ["cifar10", "svhn"])
@pytest.mark.parametrize(
    ("ratio", "kind"), [(10, "exp"), (50, "step"), (100, "exp"), (100, "step")]
)
@pytest.mark.parametrize("unlabeled_ratio", [None, 1, 25])
def test_the_draw_follows_from_both_imbalances(pool, targets, which, ratio, kind, unlabeled_ratio):
    published = {"cifar10": CIFAR10, "svhn": SVHN}[which]
    labeled = labeled_counts(published, ratio, kind)
    factor = 90 / sum(labeled)
    options = ["--imbalance-ratio", ratio, "--imbalance-type", kind, "--size-factor", repr(factor)]
    if unlabeled_ratio is not None:
        options += ["--imbalance-ratio-unlabeled", unlabeled_ratio]
    source = source_of(f"unlabeled_{which}", "--pool", pool, *options)
    counts = published_counts(labeled, unlabeled_ratio or ratio, factor)
    expected = published_draw(published, targets, counts)
    assert source.splits["train"].keys == [f"ti_{index:07d}" for index in expected]
    assert 70 < len(expected) <= 90


def test_another_seed_draws_otherwise_and_is_noted(pool):
    options = ("--pool", pool, *SMALL, "--seed")
    first, other = (source_of("unlabeled_cifar10", *options, seed) for seed in (0, 1))
    assert first.splits["train"].keys != other.splits["train"].keys
    assert "not the published subset" in other.notes[-1]


def test_all_sourced_images_can_be_kept(pool, targets):
    split = source_of("unlabeled_cifar10", "--pool", pool, "--all").splits["train"]
    kept = np.flatnonzero(targets >= 0)
    assert split.keys == [f"ti_{index:07d}" for index in kept] and len(kept) == sum(POOL_SIZES)
    np.testing.assert_array_equal(split.columns["sourced_label"], targets[kept])


def test_prepared_d_u_is_unlabeled_but_for_a_column_and_dealt_by_it(pool, targets, tmp_path):
    source = source_of("unlabeled_cifar10", "--pool", pool, *SMALL)
    root = prepared(source, tmp_path / "out", 50)
    manifest = Manifest(root, "train")
    assert (manifest.labels == UNLABELED).all() and not manifest.class_counts.any()
    assert manifest.classes == CIFAR10_CLASSES
    places = [int(manifest.key(index).removeprefix("ti_")) for index in range(len(manifest))]
    labels = manifest.column("sourced_label")
    np.testing.assert_array_equal(labels, targets[places])
    assert not label_files(root)
    number = len(manifest.shards)
    shards = np.repeat(np.arange(number), [shard.samples for shard in manifest.shards])
    for label in range(10):
        table = np.bincount(shards[labels == label], minlength=number)
        assert len(table) > 3 and table.max() - table.min() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--size-factor", "0.05"],
            "the pool has 95 images of class 'airplane' and .* are needed; lower --size-factor",
        ),
        (["--size-factor", "0"], "--size-factor"),
        (["--size-factor", "-1"], "--size-factor"),
        (["--size-factor", "nan"], "--size-factor"),
        (["--size-factor", "inf"], "--size-factor"),
        (["--size-factor", "1e308"], "--size-factor"),
        (["--size-factor", "1e-9"], "at least 1 image"),
        (["--imbalance-ratio", "0.1"], "--imbalance-ratio"),
        (["--imbalance-ratio-unlabeled", "nan"], "--imbalance-ratio"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(pool, options, message):
    with pytest.raises(UserError, match=message):
        source_of("unlabeled_cifar10", "--pool", pool, *options)


ZEROS = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        {"data": ZEROS},
        {"extrapolated_targets": [0, 1]},
        {"data": ZEROS, "extrapolated_targets": [0]},
        {"data": ZEROS, "extrapolated_targets": [0, 10]},
        {"data": ZEROS, "extrapolated_targets": [0, 10**30]},
        {"data": ZEROS, "extrapolated_targets": ["cat", "dog"]},
        {"data": ZEROS / 255, "extrapolated_targets": [0, 1]},
        {"data": ZEROS.reshape(2, -1), "extrapolated_targets": [0, 1]},
        {"data": ZEROS.transpose(0, 3, 1, 2), "extrapolated_targets": [0, 1]},
        [1, 2],
        None,
    ],
)
def test_a_pickle_of_something_else_is_named(tmp_path, content):
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="ti.pickle' does not hold 'data'"):
        source_of("unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", "--all")


def test_a_pool_that_would_run_code_is_refused_and_runs_none(tmp_path):
    content = pickle.dumps({"data": ZEROS, "extrapolated_targets": Attack(tmp_path / "attacked")})
    (tmp_path / "ti.pickle").write_bytes(content)
    for name in ("unlabeled_cifar10", "unlabeled_svhn"):
        with pytest.raises(UserError, match="ti.pickle.*refused"):
            source_of(name, "--pool", tmp_path / "ti.pickle")
    assert not (tmp_path / "attacked").exists()
    pickle.loads(content)
    assert (tmp_path / "attacked").exists(), "it would have run"


@pytest.fixture(scope="module")
def extra() -> tuple[np.ndarray, np.ndarray]:
    """Labels and pixels."""
    generator = np.random.default_rng(4)
    labels = generator.permutation(np.repeat([1, 2, 3, 4, 5, 6, 7, 8, 9, 0], POOL_SIZES))
    return labels, generator.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)


def test_svhns_extra_images_are_drawn_by_their_labels_which_stay_in_a_column(extra, tmp_path):
    labels, pixels = extra
    column = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
    savemat(tmp_path / "extra_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": column})
    options = ("--size-factor", "0.05", "--imbalance-ratio", 50)
    source = source_of("unlabeled_svhn", "--pool", tmp_path, *options)
    counts = published_counts(labeled_counts(SVHN, 50, "exp"), 50, 0.05)
    expected = published_draw(SVHN, labels, counts)
    split = source.splits["train"]
    assert (source.name, source.notes, split.labels) == ("unlabeled_svhn", [], None)
    assert source.classes == [str(digit) for digit in range(10)]
    assert split.keys == [f"extra_{index:07d}" for index in expected] and len(expected) > 120
    np.testing.assert_array_equal(split.columns["sourced_label"], labels[expected])
    counted = np.bincount(split.columns["sourced_label"])
    assert counted[1] == counts[0] == counted.max() and counted[0] == counts[9] == counted.min()
    for number in range(0, len(expected), 9):
        found = pixels_of(split.images.read(number))
        np.testing.assert_array_equal(found, pixels[expected[number]])


def test_svhns_extra_images_may_lie_in_class_folders(extra, tmp_path):
    labels, pixels = extra
    images = [png(pixels[index]) for index in range(100)]
    names = [f"{labels[index]}/{index:03d}.png" for index in range(100)]
    fill(tmp_path / "extra", dict(zip(names, images)))
    split = source_of("unlabeled_svhn", "--pool", tmp_path, "--all").splits["train"]
    order = np.argsort(labels[:100], kind="stable")
    np.testing.assert_array_equal(split.columns["sourced_label"], labels[order])
    assert split.keys == [f"extra_{index:07d}" for index in range(100)]
    for number, index in enumerate(order):
        assert split.images.read(number) == images[index]


def test_what_is_no_pool_at_all_is_refused(tmp_path):
    message = "neither a pickle nor a pool that data_prep has sharded nor cifar-10-batches-py$"
    with pytest.raises(UserError, match=message):
        source_of("unlabeled_cifar10", "--pool", tmp_path)
    with pytest.raises(UserError, match="neither extra_32x32.mat nor a folder extra/"):
        source_of("unlabeled_svhn", "--pool", tmp_path)
    with pytest.raises(UserError, match="nor SVHN's extra images"):
        source_of("unlabeled_svhn", "--pool", tmp_path / "nowhere")
