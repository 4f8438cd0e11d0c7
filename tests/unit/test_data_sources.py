"""Where images come from: the published CIFAR-10-LT, class folders, and lists of 'path label' lines."""

import argparse
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import RECIPES
from data_prep.cifar import CIFAR10_CLASSES
from data_prep.source import Source
from data_prep.subsets import Draw, imbalanced_counts
from lt_train.errors import UserError

PER_CLASS = 5000


def source_of(name: str, *arguments) -> Source:
    """What ``python -m data_prep NAME`` would prepare with these arguments."""
    parser = argparse.ArgumentParser()
    RECIPES[name].add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("name"))
    return RECIPES[name].make_source(parser.parse_args([*map(str, arguments)]))


# --- CIFAR-10-LT


def published_algorithm(labels: np.ndarray, imb_factor: float) -> list[int]:
    """IMBALANCECIFAR10 of Cao et al. 2019 (LDAM-DRW), retold: its np.random.seed(0) is a RandomState(0)."""
    img_max, cls_num = 50_000 / 10, 10
    random, new_indices = np.random.RandomState(0), []
    for the_class in range(cls_num):
        the_img_num = int(img_max * (imb_factor ** (the_class / (cls_num - 1.0))))
        idx = np.where(labels == the_class)[0]
        random.shuffle(idx)
        new_indices.extend(idx[:the_img_num].tolist())
    return new_indices


@pytest.mark.parametrize(("ratio", "imb_factor", "size"), [(100, 0.01, 12_406), (50, 0.02, 13_996), (10, 0.1, 20_431)])
def test_cifar10_lt_is_the_published_subset_index_for_index(ratio, imb_factor, size):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), PER_CLASS))
    counts = imbalanced_counts(PER_CLASS, 10, ratio)
    chosen = Draw(0).subset(labels, counts)
    assert len(chosen) == size and (counts[0], counts[9]) == (PER_CLASS, PER_CLASS // ratio)
    np.testing.assert_array_equal(chosen, published_algorithm(labels, imb_factor))


RATIO = 5000  # leaves 8,168 images, so that a stand-in for CIFAR-10 need not hold 50,000


@dataclass(frozen=True)
class Cifar:
    """A training set with little more than RATIO needs, in both layouts; of image number i, the first four bytes are i."""

    labels: np.ndarray  # in the order of the batches
    official: Path  # holds cifar-10-batches-py
    folders: Path  # train/ and test/ class folders; within a class, files are in the order of the batches


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory) -> Cifar:
    root = tmp_path_factory.mktemp("cifar10")
    sizes = [PER_CLASS, *(count + 20 for count in imbalanced_counts(PER_CLASS, 10, RATIO)[1:])]
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
    batch = pickle.dumps({b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}, protocol=2)
    path.write_bytes(batch.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.fixture(scope="module")
def both_layouts(cifar10) -> tuple[Source, Source]:
    return tuple(source_of("cifar10_lt", "--source", root, "--imbalance-ratio", RATIO) for root in (cifar10.official, cifar10.folders))


def test_pickles_give_the_published_subset_under_their_place_in_the_class(cifar10, both_layouts):
    train = both_layouts[0].splits["train"]
    expected = published_algorithm(cifar10.labels, 1 / RATIO)
    keys = [f"{CIFAR10_CLASSES[label]}/{np.flatnonzero(cifar10.labels == label).searchsorted(index):04d}" for index, label in zip(expected, train.labels)]
    assert train.keys == keys
    np.testing.assert_array_equal(train.labels, cifar10.labels[expected])


def test_pickles_and_class_folders_give_the_same_images(both_layouts):
    """The labels of all, and which image every 50th is; the test set, taken whole, may come in another order."""
    official, folders = both_layouts
    np.testing.assert_array_equal(official.splits["train"].labels, folders.splits["train"].labels)
    np.testing.assert_array_equal(*(np.bincount(source.splits["test"].labels) for source in both_layouts))
    for index in range(0, len(official.splits["train"].labels), 50):
        pixels = np.asarray(Image.open(io.BytesIO(official.splits["train"].images.read(index))))
        planes = pixels.transpose(2, 0, 1).tobytes()
        assert planes[:4] == folders.splits["train"].images.read(index)


def test_pickles_and_class_folders_give_the_same_keys(both_layouts):
    """So that what is computed for one (scores, pseudo-labels) fits the other."""
    np.testing.assert_array_equal(*(source.splits["train"].keys for source in both_layouts))


def test_another_seed_is_noted_as_not_the_published_subset(cifar10, both_layouts):
    other = source_of("cifar10_lt", "--source", cifar10.official, "--imbalance-ratio", RATIO, "--seed", 1)
    assert other.splits["train"].keys[:10] != both_layouts[0].splits["train"].keys[:10]
    assert "not the published subset" in other.notes[0] and not both_layouts[0].notes


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path):
    content = pickle.dumps({b"data": Attack(tmp_path / "attacked"), b"labels": []})
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_1.*refused"):
        source_of("cifar10_lt", "--source", tmp_path)
    assert not (tmp_path / "attacked").exists()
    pickle.loads(content)
    assert (tmp_path / "attacked").exists(), "it would have run"


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps({b"labels": [1]}), pickle.dumps([1, 2])])
def test_a_damaged_batch_is_named(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_1"):
        source_of("cifar10_lt", "--source", tmp_path)


def test_a_cifar_with_too_few_images_is_refused(tmp_path):
    for split in ("train", "test"):
        for name in CIFAR10_CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").touch()
    with pytest.raises(UserError, match="class 'airplane'.*has 1 training images and 5000 are needed"):
        source_of("cifar10_lt", "--source", tmp_path)


# --- class folders


def touch(root: Path, *names: str) -> None:
    """Empty files: sources do not look into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def samples(source: Source) -> dict[str, dict[str, str]]:
    """Split -> key -> class name."""
    return {
        name: dict(zip(split.keys, (source.classes[label] for label in split.labels))) for name, split in source.splits.items()
    }


def test_class_folders_make_a_training_split(tmp_path):
    touch(tmp_path, "dog/1.jpg", "dog/deep/2.JPEG", "cat/1.png", "cat/notes.txt", "empty/readme.md")
    source = source_of("folder", "--source", tmp_path, "--name", "pets")
    assert (source.name, source.classes) == ("pets", ["cat", "dog"])
    assert samples(source) == {"train": {"cat/1": "cat", "dog/1": "dog", "deep/2": "dog"}}


def test_train_val_and_test_folders_make_splits(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/9.jpg", "test/a/5.jpg")
    assert samples(source_of("folder", "--source", tmp_path)) == {
        "train": {"a/1": "a", "b/1": "b"},
        "val": {"b/9": "b"},
        "test": {"a/5": "a"},
    }


def test_a_class_that_training_lacks_is_named(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "val/zebra/1.jpg")
    with pytest.raises(UserError, match="zebra"):
        source_of("folder", "--source", tmp_path)


def test_keys_have_no_dots_and_differ_where_only_the_suffix_does(tmp_path):
    """A webdataset key ends at its first dot."""
    touch(tmp_path, "v1.0/x.y.jpg", "v1.0/z.jpg", "v1.0/z.png")
    assert source_of("folder", "--source", tmp_path).splits["train"].keys == ["v1_0/x_y", "v1_0/z_jpg", "v1_0/z_png"]


def test_keys_hold_as_much_of_the_path_as_tells_files_apart(tmp_path):
    touch(tmp_path, "a/x/1.jpg", "b/x/1.jpg")
    assert source_of("folder", "--source", tmp_path).splits["train"].keys == ["a/x/1", "b/x/1"]


def test_files_that_would_share_a_key_are_named(tmp_path):
    touch(tmp_path, "a/x.1.jpg", "a/x_1.jpg")
    with pytest.raises(UserError, match="same key '.*a/x.1.jpg.*a/x_1.jpg"):
        source_of("folder", "--source", tmp_path)


@pytest.mark.parametrize("options", [{"val": 0.2}, {"val": 0.1, "test": 0.3}])
def test_fractions_are_held_out_of_every_class(tmp_path, options):
    counts = {"a": 50, "b": 10, "c": 3}
    touch(tmp_path, *(f"{name}/{number}.jpg" for name, count in counts.items() for number in range(count)))
    arguments = ["--source", tmp_path, *(f"--{split}-fraction={share}" for split, share in options.items())]
    splits = samples(source_of("folder", *arguments))
    for split, share in options.items():
        held_out = list(splits[split].values())
        assert {name: held_out.count(name) for name in counts} == {name: round(share * n) for name, n in counts.items()}
    assert sorted(key for split in splits.values() for key in split) == sorted(
        f"{name}/{number}" for name, count in counts.items() for number in range(count)
    )
    assert samples(source_of("folder", *arguments)) == splits, "the same samples every time"
    assert samples(source_of("folder", *arguments, "--seed", 1)) != splits


@pytest.mark.parametrize(("val", "test"), [(1, 0), (-0.1, 0), (0.6, 0.5)])
def test_impossible_fractions_are_refused(tmp_path, val, test):
    touch(tmp_path, "a/1.jpg")
    with pytest.raises(UserError, match="--val-fraction"):
        source_of("folder", "--source", tmp_path, f"--val-fraction={val}", f"--test-fraction={test}")


def test_a_fraction_for_a_split_that_exists_is_refused(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "val/a/3.jpg")
    with pytest.raises(UserError, match="has a val split already"):
        source_of("folder", "--source", tmp_path, "--val-fraction", "0.5")


# --- list files


def test_lists_make_splits(tmp_path):
    touch(tmp_path, "images/a b.jpg", "images/1.jpg", "images/2.jpg")
    (tmp_path / "train.txt").write_text("images/a b.jpg 0\n\nimages/1.jpg 1\n")
    (tmp_path / "val.txt").write_text("2.jpg 0\n")
    beside = source_of("folder", "--list", tmp_path / "train.txt")
    assert samples(beside) == {"train": {"images/a b": "0", "images/1": "1"}}
    (tmp_path / "train.txt").write_text("1.jpg 0\n")
    elsewhere = source_of(
        "folder", "--source", tmp_path / "images", "--list", tmp_path / "train.txt", "--val-list", tmp_path / "val.txt"
    )
    assert samples(elsewhere) == {"train": {"images/1": "0"}, "val": {"images/2": "0"}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1.jpg 0\ngone.jpg 0\n", "1 of the 2 images.*gone.jpg"),
        ("1.jpg 0\n2.jpg 2\n", "no training image has label 1.*up to 2"),
        ("1.jpg 0\n2.jpg\n", "line 2: '2.jpg'"),
        ("1.jpg 0\n2.jpg dog\n", "line 2: '2.jpg dog'"),
        ("1.jpg 0\n2.jpg -1\n", "line 2"),
        ("1.jpg 0\n2.jpg \N{SUPERSCRIPT TWO}\n", "line 2"),
        ("1.jpg 0\n2.jpg 100000000000000000\n", "label"),
        ("1.jpg 0\n1.jpg 0\n", "same key"),
        ("\n", "is empty"),
    ],
)
def test_a_bad_list_is_refused_with_the_line_or_image(tmp_path, lines, message):
    touch(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        source_of("folder", "--list", tmp_path / "list.txt")


def test_a_missing_list_and_no_source_at_all_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt"):
        source_of("folder", "--list", tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="--source DIR"):
        source_of("folder")
