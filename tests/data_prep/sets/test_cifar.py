"""CIFAR-10-LT and CIFAR-100-LT: the published subsets from the official batches and from class
folders.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading.source import Source
from data_prep.reading.subsets import imbalanced_counts
from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.errors import UserError
from tests.helpers.published import published_subset
from tests.helpers.sources import (
    Attack,
    copy_files,
    fill,
    pixels_of,
    python2_pickle,
    source_of,
    touch,
    triples,
)
from tests.helpers.stand_ins import StandIn, assert_published_subset, noise, write_folders

RATIO_10 = 5000  # leaves 8,168 images, so that a stand-in for CIFAR-10 need not hold 50,000


@dataclass(frozen=True)
class Cifar:
    """A training set with little more than ``RATIO_10`` needs, in both layouts; of image number i,
    the first four bytes are i.
    """

    labels: np.ndarray  # in the order of the batches
    official: Path  # holds cifar-10-batches-py
    # train/ and test/ class folders; within a class, files are in the order of the batches
    folders: Path


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory) -> Cifar:
    root = tmp_path_factory.mktemp("cifar10")
    sizes = [5000, *(count + 20 for count in imbalanced_counts(5000, 10, RATIO_10)[1:])]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), sizes))
    test_labels = np.arange(20) % 10
    batches = root / "official" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(labels)), 5), 1):
        write_batch(batches / f"data_batch_{number}", part, labels[part])
    write_batch(batches / "test_batch", np.arange(20), test_labels)
    for split, split_labels in (("train", labels), ("test", test_labels)):
        for label, name in enumerate(CIFAR10_CLASSES):
            (root / "folders" / split / name).mkdir(parents=True)
            for rank, index in enumerate(np.flatnonzero(split_labels == label).tolist()):
                with open(f"{root}/folders/{split}/{name}/{rank:04d}.png", "wb") as file:
                    file.write(index.to_bytes(4, "little"))  # no image: nothing is decoded here
    return Cifar(labels, root / "official", root / "folders")


def write_batch(path: Path, indices: np.ndarray, labels: np.ndarray) -> None:
    """As published: protocol 2, with the module name that NumPy had then."""
    pixels = np.zeros((len(indices), 3 * 32 * 32), np.uint8)
    pixels[:, :4] = indices.astype("<u4")[:, None].view(np.uint8)
    batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}
    content = pickle.dumps(batch, protocol=2)
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.fixture(scope="module")
def both_layouts(cifar10) -> tuple[Source, Source]:
    return tuple(
        source_of("cifar10_lt", "--source", root, "--imbalance-ratio", RATIO_10)
        for root in (cifar10.official, cifar10.folders)
    )


def test_pickles_give_the_published_subset_under_their_place_in_the_class(cifar10, both_layouts):
    train = both_layouts[0].splits["train"]
    expected = published_subset(cifar10.labels, range(10), 5000, 1 / RATIO_10)
    keys = []
    for index, label in zip(expected, train.labels):
        place = np.flatnonzero(cifar10.labels == label).searchsorted(index)
        keys.append(f"{CIFAR10_CLASSES[label]}/{place:04d}")
    assert train.keys == keys
    np.testing.assert_array_equal(train.labels, cifar10.labels[expected])


def test_pickles_and_class_folders_give_the_same_images(both_layouts):
    """The labels of all, and which image every 50th is; the test set, taken whole, may come in
    another order.
    """
    official, folders = (source.splits["train"] for source in both_layouts)
    np.testing.assert_array_equal(official.labels, folders.labels)
    test_counts = [np.bincount(source.splits["test"].labels) for source in both_layouts]
    np.testing.assert_array_equal(*test_counts)
    for index in range(0, len(official.labels), 50):
        planes = pixels_of(official.images.read(index)).transpose(2, 0, 1).tobytes()
        assert planes[:4] == folders.images.read(index)


def test_pickles_and_class_folders_give_the_same_keys(both_layouts):
    """So that what is computed for one (scores, pseudo-labels) fits the other."""
    np.testing.assert_array_equal(*(source.splits["train"].keys for source in both_layouts))


def test_another_seed_is_noted_as_not_the_published_subset(cifar10, both_layouts):
    options = ["--source", cifar10.official, "--imbalance-ratio", RATIO_10]
    other = source_of("cifar10_lt", *options, "--seed", 1)
    assert other.splits["train"].keys[:10] != both_layouts[0].splits["train"].keys[:10]
    assert "not the published subset" in other.notes[0] and not both_layouts[0].notes


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path):
    content = pickle.dumps({b"data": Attack(tmp_path / "attacked"), b"labels": []})
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_1.*refused"):
        source_of("cifar10_lt", "--source", tmp_path)
    assert not (tmp_path / "attacked").exists()
    pickle.loads(content)
    assert (tmp_path / "attacked").exists(), "it would have run"


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"not a pickle", pickle.dumps({b"labels": [1]}), pickle.dumps([1, 2])]
)
def test_a_damaged_batch_is_named(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_1"):
        source_of("cifar10_lt", "--source", tmp_path)


def test_a_cifar_with_too_few_images_is_refused(tmp_path):
    for split in ("train", "test"):
        touch(tmp_path / split, *(f"{name}/0.png" for name in CIFAR10_CLASSES))
    message = "class 'airplane'.*has 1 training images and 5000 are needed"
    with pytest.raises(UserError, match=message):
        source_of("cifar10_lt", "--source", tmp_path)


NAMES = [f"class_{label:03d}" for label in range(100)]
RATIO_100 = 500  # leaves the smallest class of CIFAR-100 one image


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory) -> StandIn:
    return make_cifar100(tmp_path_factory.mktemp("cifar100"), 500, RATIO_100)


def make_cifar100(root: Path, per_class: int, ratio: float) -> StandIn:
    """The official files; of few images, also the class folders."""
    sizes = [int(per_class * (1 / ratio) ** (label / 99)) + 1 for label in range(100)]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), sizes))
    test_labels = np.random.default_rng(1).permutation(np.repeat(np.arange(100), 2))
    found = {"train": (labels, noise(labels, 2)), "test": (test_labels, noise(test_labels, 3))}
    meta = {"fine_label_names": NAMES, "coarse_label_names": ["fish"]}
    official = {"meta": python2_pickle(meta)}
    for split, (split_labels, pixels) in found.items():
        batch = {
            "filenames": ["x.png"],
            "fine_labels": split_labels.tolist(),
            "coarse_labels": (split_labels // 5).tolist(),
            "data": pixels.transpose(0, 3, 1, 2).reshape(-1, 3072),
        }
        official[split] = python2_pickle(batch)
        if per_class < 500:
            write_folders(root / "folders" / split, NAMES, split_labels, pixels)
    fill(root / "official" / "cifar-100-python", official)
    return StandIn(labels, found["train"][1], root / "official", root / "folders", *found["test"])


def test_cifar100_lt_is_the_published_subset(cifar100):
    source = source_of("cifar100_lt", "--source", cifar100.official, "--imbalance-ratio", RATIO_100)
    assert (source.name, source.classes, source.notes) == ("cifar100_lt", NAMES, [])
    expected = published_subset(cifar100.labels, range(100), 500, 1 / RATIO_100)
    assert_published_subset(source, cifar100, NAMES, expected)


def test_cifar100_lt_is_the_same_in_both_layouts(tmp_path):
    """With 20 images of the largest class in place of 500: files take time to write."""
    small = make_cifar100(tmp_path, 20, 20)
    expected = published_subset(small.labels, range(100), 20, 1 / 20)
    options = ["--imbalance-ratio", 20, "--largest", 20]
    for root in (small.official, small.folders):
        source = source_of("cifar100_lt", "--source", root, *options)
        assert source.classes == NAMES
        assert_published_subset(source, small, NAMES, expected)


def test_cifar100s_files_may_lie_in_the_source_itself_and_be_of_python_3(cifar100, tmp_path):
    for file in (cifar100.official / "cifar-100-python").iterdir():
        text = {}
        for key, value in pickle.loads(file.read_bytes(), encoding="bytes").items():
            is_text = key.endswith(b"names")
            text[key.decode()] = [item.decode() for item in value] if is_text else value
        (tmp_path / file.name).write_bytes(pickle.dumps(text))
    one, other = (
        source_of("cifar100_lt", "--source", root, "--imbalance-ratio", RATIO_100)
        for root in (tmp_path, cifar100.official)
    )
    assert one.classes == other.classes
    assert one.splits["train"].keys == other.splits["train"].keys


def test_another_seed_is_another_subset_and_noted(cifar100):
    options = ["--source", cifar100.official, "--imbalance-ratio", RATIO_100, "--seed"]
    first, other = (source_of("cifar100_lt", *options, seed) for seed in (0, 1))
    assert first.splits["train"].keys != other.splits["train"].keys
    assert first.splits["test"].keys == other.splits["test"].keys
    assert "not the published subset" in other.notes[0] and not first.notes


def test_cifar100_must_have_100_classes(cifar100, tmp_path):
    for split in ("train", "test"):
        touch(tmp_path / "few", *(f"{split}/{name}/1.png" for name in NAMES[:99]))
        touch(tmp_path / "many", *(f"{split}/{name}/1.png" for name in [*NAMES, "more"]))
    copy_files(cifar100.official / "cifar-100-python", tmp_path / "meta")
    (tmp_path / "meta" / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES[:42]}))
    for root, number in (("few", 99), ("many", 101), ("meta", 42)):
        with pytest.raises(UserError, match=f"has {number} classes, not the 100 of cifar100"):
            source_of("cifar100_lt", "--source", tmp_path / root, "--imbalance-ratio", RATIO_100)


@pytest.mark.parametrize("victim", ["train", "test", "meta"])
def test_a_cifar100_pickle_that_would_run_code_is_refused_and_runs_none(cifar100, tmp_path, victim):
    copy_files(cifar100.official / "cifar-100-python", tmp_path)
    attack = {"fine_labels": [], "fine_label_names": [], "data": Attack(tmp_path / "attacked")}
    content = pickle.dumps(attack, protocol=2)
    (tmp_path / victim).write_bytes(content)
    with pytest.raises(UserError, match=f"{victim}'.*refused"):
        source_of("cifar100_lt", "--source", tmp_path, "--imbalance-ratio", RATIO_100)
    assert not (tmp_path / "attacked").exists()
    pickle.loads(content)
    assert (tmp_path / "attacked").exists(), "it would have run"


GOOD = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "batch",
    [
        {"fine_labels": [0, 100], "data": GOOD},
        {"fine_labels": [0, -1], "data": GOOD},
        {"fine_labels": [0], "data": GOOD},
        {"fine_labels": [0, 10**30], "data": GOOD},
        {"fine_labels": [0, None], "data": GOOD},
        {"labels": [0, 1], "data": GOOD},
        {"fine_labels": [0, 1], "data": GOOD / 255},
        {"fine_labels": [0, 1], "data": GOOD[:, :-1]},
        {"fine_labels": [0, 1], "data": [[300] * 3072] * 2},
        {"fine_labels": [0, 1], "data": None},
    ],
)
def test_a_batch_of_something_else_is_named(cifar100, tmp_path, batch):
    copy_files(cifar100.official / "cifar-100-python", tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match="train' is not a batch of cifar-100-python"):
        source_of("cifar100_lt", "--source", tmp_path, "--imbalance-ratio", RATIO_100)


@pytest.mark.parametrize(
    "content", [{"fine_label_names": 3}, {}, [1], {"fine_label_names": [b"\xff"] * 100}]
)
def test_a_bad_meta_file_is_named(cifar100, tmp_path, content):
    copy_files(cifar100.official / "cifar-100-python", tmp_path)
    (tmp_path / "meta").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="meta' does not name the classes"):
        source_of("cifar100_lt", "--source", tmp_path)


def test_the_largest_class_can_be_smaller_than_the_published_one(cifar):
    options = ["--source", cifar["cifar10"]["official"], "--imbalance-ratio", 4]
    source = source_of("cifar10_lt", *options, "--largest", 20)
    counts = np.bincount(source.splits["train"].labels)
    np.testing.assert_array_equal(counts, imbalanced_counts(20, 10, 4))
    assert source.notes == ["--largest is not 5000: this is not the published subset"]
    assert len(source.splits["test"].labels) == 10
    with pytest.raises(UserError, match="5000 are needed"):
        source_of("cifar10_lt", *options)


def test_fewer_labeled_images_are_the_first_of_the_published_draw(cifar):
    options = ["--source", cifar["cifar10"]["official"], "--imbalance-ratio", 4, "--largest"]
    small, large = (triples(source_of("cifar10_lt", *options, largest)) for largest in (20, 40))
    assert set(small) < set(large)
