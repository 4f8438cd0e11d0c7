"""Where images come from: the published CIFAR-10-LT, class folders, lists of 'path label' lines,
and CSVs.
"""

import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.reading.check import Checker
from data_prep.reading.source import Source
from data_prep.reading.subsets import Draw, imbalanced_counts
from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from tests.helpers.sources import Attack, contents, fill, png, prepared, samples, source_of, touch

PER_CLASS = 5000


# --- CIFAR-10-LT


def published_algorithm(labels: np.ndarray, imb_factor: float) -> list[int]:
    """IMBALANCECIFAR10 of Cao et al. 2019 (LDAM-DRW), retold: its np.random.seed(0) is a
    RandomState(0).
    """
    img_max, cls_num = 50_000 / 10, 10
    random, new_indices = np.random.RandomState(0), []
    for the_class in range(cls_num):
        the_img_num = int(img_max * (imb_factor ** (the_class / (cls_num - 1.0))))
        idx = np.where(labels == the_class)[0]
        random.shuffle(idx)
        new_indices.extend(idx[:the_img_num].tolist())
    return new_indices


@pytest.mark.parametrize(
    ("ratio", "imb_factor", "size"), [(100, 0.01, 12_406), (50, 0.02, 13_996), (10, 0.1, 20_431)]
)
def test_cifar10_lt_is_the_published_subset_index_for_index(ratio, imb_factor, size):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), PER_CLASS))
    counts = imbalanced_counts(PER_CLASS, 10, ratio)
    chosen = Draw(0).subset(labels, counts)
    assert len(chosen) == size and (counts[0], counts[9]) == (PER_CLASS, PER_CLASS // ratio)
    np.testing.assert_array_equal(chosen, published_algorithm(labels, imb_factor))


RATIO = 5000  # leaves 8,168 images, so that a stand-in for CIFAR-10 need not hold 50,000


@dataclass(frozen=True)
class Cifar:
    """A training set with little more than RATIO needs, in both layouts; of image number i, the
    first four bytes are i.
    """

    labels: np.ndarray  # in the order of the batches
    official: Path  # holds cifar-10-batches-py
    # train/ and test/ class folders; within a class, files are in the order of the batches
    folders: Path


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
    batch = pickle.dumps(
        {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}, protocol=2
    )
    path.write_bytes(batch.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.fixture(scope="module")
def both_layouts(cifar10) -> tuple[Source, Source]:
    return tuple(
        source_of("cifar10_lt", "--source", root, "--imbalance-ratio", RATIO)
        for root in (cifar10.official, cifar10.folders)
    )


def test_pickles_give_the_published_subset_under_their_place_in_the_class(cifar10, both_layouts):
    train = both_layouts[0].splits["train"]
    expected = published_algorithm(cifar10.labels, 1 / RATIO)
    keys = [
        f"{CIFAR10_CLASSES[label]}/{np.flatnonzero(cifar10.labels == label).searchsorted(index):04d}"
        for index, label in zip(expected, train.labels)
    ]
    assert train.keys == keys
    np.testing.assert_array_equal(train.labels, cifar10.labels[expected])


def test_pickles_and_class_folders_give_the_same_images(both_layouts):
    """The labels of all, and which image every 50th is; the test set, taken whole, may come in
    another order.
    """
    official, folders = both_layouts
    np.testing.assert_array_equal(official.splits["train"].labels, folders.splits["train"].labels)
    np.testing.assert_array_equal(
        *(np.bincount(source.splits["test"].labels) for source in both_layouts)
    )
    for index in range(0, len(official.splits["train"].labels), 50):
        pixels = np.asarray(Image.open(io.BytesIO(official.splits["train"].images.read(index))))
        planes = pixels.transpose(2, 0, 1).tobytes()
        assert planes[:4] == folders.splits["train"].images.read(index)


def test_pickles_and_class_folders_give_the_same_keys(both_layouts):
    """So that what is computed for one (scores, pseudo-labels) fits the other."""
    np.testing.assert_array_equal(*(source.splits["train"].keys for source in both_layouts))


def test_another_seed_is_noted_as_not_the_published_subset(cifar10, both_layouts):
    other = source_of(
        "cifar10_lt", "--source", cifar10.official, "--imbalance-ratio", RATIO, "--seed", 1
    )
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
        for name in CIFAR10_CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").touch()
    with pytest.raises(
        UserError, match="class 'airplane'.*has 1 training images and 5000 are needed"
    ):
        source_of("cifar10_lt", "--source", tmp_path)


# --- class folders


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
    assert source_of("folder", "--source", tmp_path).splits["train"].keys == [
        "v1_0/x_y",
        "v1_0/z_jpg",
        "v1_0/z_png",
    ]


def test_a_class_folder_that_webdataset_would_pass_over_gets_another_key(tmp_path):
    touch(tmp_path, "__bg__/1.jpg", "cat/__2__.jpg", "__dog/3.jpg")
    assert source_of("folder", "--source", tmp_path).splits["train"].keys == [
        "_bg__/1",
        "__dog/3",
        "cat/__2__",
    ]


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
    touch(
        tmp_path,
        *(f"{name}/{number}.jpg" for name, count in counts.items() for number in range(count)),
    )
    arguments = [
        "--source",
        tmp_path,
        *(f"--{split}-fraction={share}" for split, share in options.items()),
    ]
    splits = samples(source_of("folder", *arguments))
    for split, share in options.items():
        held_out = list(splits[split].values())
        assert {name: held_out.count(name) for name in counts} == {
            name: round(share * n) for name, n in counts.items()
        }
    assert sorted(key for split in splits.values() for key in split) == sorted(
        f"{name}/{number}" for name, count in counts.items() for number in range(count)
    )
    assert samples(source_of("folder", *arguments)) == splits, "the same samples every time"
    assert samples(source_of("folder", *arguments, "--seed", 1)) != splits


@pytest.mark.parametrize(("val", "test"), [(1, 0), (-0.1, 0), (0.6, 0.5)])
def test_impossible_fractions_are_refused(tmp_path, val, test):
    touch(tmp_path, "a/1.jpg")
    with pytest.raises(UserError, match="--val-fraction"):
        source_of(
            "folder", "--source", tmp_path, f"--val-fraction={val}", f"--test-fraction={test}"
        )


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
        "folder",
        "--source",
        tmp_path / "images",
        "--list",
        tmp_path / "train.txt",
        "--val-list",
        tmp_path / "val.txt",
    )
    assert samples(elsewhere) == {"train": {"1": "0"}, "val": {"2": "0"}}


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
        (f"1.jpg 0\n2.jpg {'9' * 5000}\n", "line 2"),
        ("1.jpg 0\n2.jpg\t1\n", "line 2"),
        ("1.jpg 0\n./1.jpg 0\n", "same key"),
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


LABELS = {"train": "1.jpg 0\n2.jpg 1\n", "val": "1.jpg 0\n3.jpg 2\n2.jpg 2\n"}


def write_lists(root: Path, lists: dict[str, str]) -> list:
    """The options that name them."""
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text(lines, encoding="utf-8")
    return [
        word
        for split in lists
        for word in (f"--{split}-list".replace("--train-", "--"), root / f"{split}.txt")
    ]


@pytest.mark.parametrize("split", ["val", "test"])
def test_labels_that_training_lacks_are_counted_and_the_first_named(tmp_path, split):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    with pytest.raises(
        UserError,
        match=(
            rf"2 {split} image\(s\) have a label out of range, first 2 \(3.jpg\); training labels"
            r" go from 0 to 1"
        ),
    ):
        source_of(
            "folder", *write_lists(tmp_path, {"train": LABELS["train"], split: LABELS["val"]})
        )


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_missing_images_are_counted_and_the_first_ten_named(tmp_path, split):
    names = [f"a/{number}.jpg" for number in range(1000)]
    touch(tmp_path, *names[::2])
    lists = {"train": f"{names[0]} 0\n"} | {split: "".join(f"{name} 0\n" for name in names)}
    with pytest.raises(UserError) as error:
        source_of("folder", *write_lists(tmp_path, lists))
    assert str(error.value).startswith("500 of the 1000 images of ") and f"({split})" in str(
        error.value
    )
    assert str(error.value).endswith(": " + ", ".join(names[1:20:2]) + ", ...") and names[
        21
    ] not in str(error.value)


def test_up_to_ten_missing_images_are_all_named(tmp_path):
    with pytest.raises(UserError, match="10 of the 10 images .*: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9$"):
        source_of(
            "folder",
            *write_lists(tmp_path, {"train": "".join(f"{number} 0\n" for number in range(10))}),
        )


OUTSIDE = [
    *("../secret.jpg", "a/../../secret.jpg", "..", "/etc/hostname", "//etc/hostname"),
    *("{root}/../secret.jpg", "{parent}/secret.jpg", "{root}/{parent}/secret.jpg"),
]


@pytest.mark.parametrize("kind", ["list", "csv"])
@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_out_of_the_source_folder_is_refused(tmp_path, kind, path):
    """The last one, when what the source folder is called is taken off its front, is absolute
    still.
    """
    touch(tmp_path, "secret.jpg", "root/a/1.jpg")
    path = path.format(root=tmp_path / "root", parent=tmp_path)
    lines = {"list": f"a/1.jpg 0\n{path} 0\n", "csv": f"path,label\na/1.jpg,0\n{path},0\n"}
    (tmp_path / "file").write_text(lines[kind])
    with pytest.raises(
        UserError,
        match="leaves the source folder|lies outside|1 of the 2 images .* do not exist under",
    ):
        source_of("folder", "--source", tmp_path / "root", f"--{kind}", tmp_path / "file")


def test_nothing_absolute_is_left_of_a_path_in_the_source_folder(tmp_path):
    """Else it would lead out again when it is joined to the folder."""
    touch(tmp_path, "root/a/1.jpg", "root/a/2.jpg")
    root = tmp_path / "root"
    lists = write_lists(tmp_path, {"train": f"{root}/a/1.jpg 0\n{root}//a/./2.jpg 0\n"})
    source = source_of("folder", "--source", root, *lists)
    assert source.splits["train"].images.names == ["a/1.jpg", "a/2.jpg"] and source.splits[
        "train"
    ].keys == ["a/1", "a/2"]
    (tmp_path / "train.txt").write_text(f"{root}//etc/hostname 0\n")
    with pytest.raises(
        UserError, match="1 of the 1 images .* do not exist under .*: etc/hostname$"
    ):
        source_of("folder", "--source", root, *lists)


STRANGE = [
    *("a b", " c  d", "it's", '"q"', "a,b", "#1", "50%"),
    *(
        "\N{SNOWMAN}",
        "\N{GRINNING FACE}",
        "e\N{COMBINING ACUTE ACCENT}",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
    ),
    *(
        "\N{NO-BREAK SPACE}x",
        "x\N{IDEOGRAPHIC SPACE}y",
        "\N{NARROW NO-BREAK SPACE}PM",
        "line\N{LINE SEPARATOR}line",
    ),
    "\N{ARABIC LETTER BEH}\N{ZERO WIDTH NON-JOINER}\N{ARABIC LETTER BEH}",
]


def test_any_text_may_be_in_a_name(tmp_path):
    """Spaces, both forms of an accented letter, joiners of scripts that need them, quotes, commas:
    in folders, lists, CSVs and shards.
    """
    images = tmp_path / "images"
    pixels = np.arange(len(STRANGE) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    fill(
        images,
        {
            f"{'xy'[number % 2]} \N{SNOWMAN}/{name}.png": png(pixels[number])
            for number, name in enumerate(STRANGE)
        },
    )
    rows = sorted(
        (f"{folder} \N{SNOWMAN}/{name}.png", label)
        for label, folder in enumerate("xy")
        for name in STRANGE[label::2]
    )
    (tmp_path / "list").write_text(
        "".join(f"{name} {label}\n" for name, label in rows), encoding="utf-8"
    )
    quoted = [name.replace('"', '""') for name, _ in rows]
    (tmp_path / "csv").write_text(
        "path,label\n" + "".join(f'"{name}",{label}\n' for name, (_, label) in zip(quoted, rows)),
        encoding="utf-8",
    )
    sources = [
        source_of("folder", "--source", images, *more)
        for more in ([], ["--list", tmp_path / "list"], ["--csv", tmp_path / "csv"])
    ]
    expected = {
        "train": [
            (name.removesuffix(".png"), label, (images / name).read_bytes()) for name, label in rows
        ]
    }
    assert all(
        contents(source) == expected and source.classes == ["x \N{SNOWMAN}", "y \N{SNOWMAN}"]
        for source in sources
    )
    manifest = Manifest(prepared(sources[1], tmp_path / "out", 5), "train")
    found = {
        manifest.key(index): (int(manifest.labels[index]), bytes(manifest.read(index)))
        for index in range(len(manifest))
    }
    assert found == {key: (label, content) for key, label, content in expected["train"]}


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x1bb", os.fsdecode(b"caf\xe9")])
def test_control_characters_and_what_is_not_utf8_are_refused(tmp_path, name):
    touch(tmp_path, f"c/{name}.jpg")
    with pytest.raises(UserError, match="the file name 'c/.*' is not valid text; rename it"):
        source_of("folder", "--source", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lists_and_csvs_of_windows_are_read(tmp_path, encoding, newline):
    touch(tmp_path, "1.jpg", "2 \N{SNOWMAN}.jpg")
    (tmp_path / "list").write_bytes(
        newline.join(["1.jpg 0", "2 \N{SNOWMAN}.jpg 1", ""]).encode(encoding)
    )
    (tmp_path / "csv").write_bytes(
        newline.join(["path,label", "1.jpg,0", "2 \N{SNOWMAN}.jpg,1", ""]).encode(encoding)
    )
    for kind in ("list", "csv"):
        assert samples(source_of("folder", f"--{kind}", tmp_path / kind)) == {
            "train": {"1": "0", "2 \N{SNOWMAN}": "1"}
        }


def test_a_list_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "list").write_bytes(b"caf\xe9.jpg 0\n")
    with pytest.raises(UserError, match="cannot read the list"):
        source_of("folder", "--list", tmp_path / "list")


@pytest.mark.parametrize("others", [["--source"], ["--csv"], []])
def test_more_lists_without_a_training_list_are_refused_not_ignored(tmp_path, others):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "file").write_text("path,label\na/1.jpg,0\n")
    options = {"--source": tmp_path, "--csv": tmp_path / "file"}
    for option in ("--val-list", "--test-list"):
        with pytest.raises(UserError, match="go with --list"):
            source_of(
                "folder",
                option,
                tmp_path / "list",
                *(word for other in others for word in (other, options[other])),
            )


def test_a_folder_that_cannot_be_listed_is_named_not_left_out(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "a/private/2.jpg", "b/1.jpg")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for recipe in ("folder", "tinyimages"):
        with pytest.raises(UserError, match="cannot read '.*a/private': Permission denied"):
            source_of(recipe, "--source", tmp_path)


# --- CSVs


def test_a_csv_makes_splits_with_classes_by_name(tmp_path):
    touch(tmp_path, *(f"images/{number}.jpg" for number in range(6)))
    (tmp_path / "all.csv").write_text(
        "author, Image , CLASS ,split\nme, images/0.jpg ,dog,train\nyou,images/1.jpg,"
        " cat,validation\n,images/2.jpg,cat,\n\n"
        "x,images/3.jpg,dog,TEST\nx,images/4.jpg,cat,Training\nx,images/5.jpg,dog,val,more,columns\n"
    )
    source = source_of("folder", "--csv", tmp_path / "all.csv", "--name", "pets")
    assert (source.name, source.classes) == ("pets", ["cat", "dog"])
    assert samples(source) == {
        "train": {"images/0": "dog", "images/2": "cat", "images/4": "cat"},
        "val": {"images/1": "cat", "images/5": "dog"},
        "test": {"images/3": "dog"},
    }


def test_a_csv_of_numbers_keeps_them_as_labels_and_names_classes_by_folder(tmp_path):
    touch(tmp_path, *(f"{folder}/1.jpg" for folder in "cab"))
    (tmp_path / "all.csv").write_text("label,filename\n10,a/1.jpg\n")
    with pytest.raises(UserError, match="no training image has label 0, though labels go up to 10"):
        source_of("folder", "--csv", tmp_path / "all.csv")
    (tmp_path / "all.csv").write_text("label,filename\n2,b/1.jpg\n0,c/1.jpg\n01,a/1.jpg\n")
    source = source_of("folder", "--csv", tmp_path / "all.csv")
    assert source.classes == ["c", "a", "b"] and source.splits["train"].labels.tolist() == [2, 0, 1]


def test_a_csvs_paths_are_relative_to_the_source(tmp_path):
    touch(tmp_path, "images/a/1.jpg", "images/b/2.jpg")
    (tmp_path / "all.csv").write_text(f"path,label\na/1.jpg,x\n{tmp_path}/images/b/2.jpg,y\n")
    assert samples(
        source_of("folder", "--csv", tmp_path / "all.csv", "--source", tmp_path / "images")
    ) == {"train": {"a/1": "x", "b/2": "y"}}
    with pytest.raises(UserError, match="1 of the 2 images .*a/1.jpg"):
        source_of("folder", "--csv", tmp_path / "all.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'path'"),
        (b"path,kind\n1.jpg,x\n", "has no column 'label' .*class_name.* in its header: path, kind"),
        (b"1.jpg,x\n2.jpg,y\n", "has no column 'path'"),
        (b"path,label\n", "has no training images"),
        (b"path,label,split\n1.jpg,x,val\n", "has no training images"),
        (b"path,label\n1.jpg,x\n2.jpg\n", "line 3: needs a path, a label"),
        (b"path,label\n1.jpg,x\n,y\n", "line 3"),
        (b'path,label\n1.jpg,"x\ny"\n2.jpg,\n', "line 4"),
        (b"path,label,split\n1.jpg,x,train\n2.jpg,x,dev\n", "line 3: .*split of train, val, test"),
        (
            b"path,label,split\n1.jpg,x,train\n2.jpg,y,test\n",
            "the class 'y' .* has no training images",
        ),
        (
            b"path,label,split\n1.jpg,0,train\n2.jpg,1,val\n",
            r"1 val image\(s\) have a label out of range",
        ),
        (b"path,label\n1.jpg,0\n2.jpg,99999999999999999999\n", "no training image has label 1"),
        (b"path,label\n1.jpg,0\n1.jpg,0\n", "same key"),
        (b"path,label\ngone.jpg,0\n", "1 of the 1 images"),
        (b"path,label\ncaf\xe9.jpg,0\n", "cannot read the CSV"),
        (b"path,label\n" + b"x" * 200_000 + b",0\n", "cannot read the CSV"),
    ],
)
def test_a_bad_csv_is_refused_with_the_line(tmp_path, content, message):
    touch(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "all.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        source_of("folder", "--csv", tmp_path / "all.csv")


def test_numbers_too_long_for_labels_are_names(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "all.csv").write_text(f"path,label\n1.jpg,{'9' * 5000}\n2.jpg,0\n")
    assert source_of("folder", "--csv", tmp_path / "all.csv").classes == ["0", "9" * 5000]


def test_a_missing_csv_and_a_csv_with_a_list_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the CSV .*nowhere.csv"):
        source_of("folder", "--csv", tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="--list or --csv, not both"):
        source_of("folder", "--csv", tmp_path / "a.csv", "--list", tmp_path / "list")


# --- a tail made of one's own images

SIZES = {"a": 40, "b": 100, "c": 60, "d": 3, "e": 100}


@pytest.fixture
def balanced(tmp_path) -> Path:
    for name, size in SIZES.items():
        touch(tmp_path, *(f"train/{name}/{number:03d}.jpg" for number in range(size)))
        touch(tmp_path, *(f"test/{name}/{number}.jpg" for number in range(1 + size // 10)))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (
            "exp",
            {
                "b": 100,
                "e": int(100 * 0.05**0.25),
                "c": int(100 * 0.05**0.5),
                "a": int(100 * 0.05**0.75),
                "d": 3,
            },
        ),  # of d, 5 are wanted
        ("step", {"b": 100, "e": 100, "c": 5, "a": 5, "d": 3}),
    ],
)
def test_a_tail_begins_with_the_largest_class(balanced, kind, wanted):
    whole = source_of("folder", "--source", balanced)
    source = source_of(
        "folder", "--source", balanced, "--imbalance-ratio", 20, "--imbalance-type", kind
    )
    found = samples(source)
    classes = list(found["train"].values())
    assert {name: classes.count(name) for name in SIZES} == wanted
    assert samples(whole)["test"] == found["test"] and len(found["test"]) == 35
    assert list(found["train"]) == sorted(found["train"]), "in the source's order"
    kept = (
        f"--imbalance-ratio keeps {sum(wanted.values())} of 303 training images, 100 to 3 a class"
    )
    assert source.notes == [f"{kept}; 1 class(es) have fewer images than their share"]
    assert not whole.notes


def test_a_tail_is_drawn_as_the_published_ones_and_follows_from_the_seed(balanced):
    labels = np.repeat(np.arange(5), list(SIZES.values()))
    random, expected = np.random.RandomState(4), []
    for label, count in zip([1, 4, 2, 0, 3], imbalanced_counts(100, 5, 50)):
        indices = np.flatnonzero(labels == label)
        random.shuffle(indices)
        expected += indices[:count].tolist()
    whole = source_of("folder", "--source", balanced).splits["train"].keys
    options = ["--source", balanced, "--imbalance-ratio", 50, "--seed"]
    first, again, other = (
        source_of("folder", *options, seed).splits["train"].keys for seed in (4, 4, 5)
    )
    assert first == again == [whole[index] for index in sorted(expected)] and first != other


def test_every_class_keeps_an_image_however_long_the_tail(balanced):
    source = source_of("folder", "--source", balanced, "--imbalance-ratio", 1e9)
    assert np.bincount(source.splits["train"].labels).tolist() == [1, 100, 1, 1, 1]
    assert "100 to 1 a class" in source.notes[0] and "fewer" not in source.notes[0]


@pytest.mark.parametrize("ratio", ["0.5", "0", "-3", "nan", "inf"])
def test_an_impossible_tail_is_refused(balanced, ratio):
    with pytest.raises(UserError, match="--imbalance-ratio"):
        source_of("folder", "--source", balanced, "--imbalance-ratio", ratio)


def test_what_is_held_out_is_not_in_the_tail_and_is_as_large_as_without_one(balanced):
    options = ["--source", balanced, "--val-fraction", 0.2]
    held_out, both = (
        samples(source_of("folder", *options, *more)) for more in ([], ["--imbalance-ratio", 20])
    )
    assert both["val"] == held_out["val"] and len(both["val"]) == 8 + 20 + 12 + 1 + 20
    assert both["train"].items() < held_out["train"].items() and not set(both["train"]) & set(
        both["val"]
    )
    assert list(both["train"].values()).count("b") == 80


@pytest.mark.parametrize(
    "options",
    [
        ["--val-fraction", 0.9],
        ["--val-fraction", 0.5, "--test-fraction", 0.49],
        ["--test-fraction", 0.99],
    ],
)
def test_a_training_image_of_every_class_stays(tmp_path, options):
    """One of one would be held out by 0.9, and two of two by 0.5 and 0.49."""
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg", "c/3.jpg")
    source = source_of("folder", "--source", tmp_path, *options)
    assert np.bincount(source.splits["train"].labels).tolist() == [1, 1, 1]
    assert sum(len(split.keys) for split in source.splits.values()) == 6


# --- the decoder check


@pytest.mark.parametrize(
    ("largest", "good"), [(255, True), (100, True), (1023, False), (65535, False)]
)
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_a_ppm_of_more_than_8_bits_is_refused(kind, largest, good):
    """Pillow makes 8 bits of it without a word."""
    content = (
        kind
        + b"\n4 2\n%d\n" % largest
        + bytes(8 * (1 if kind == b"P5" else 3) * (1 if good else 2))
    )
    if good:
        assert (Checker()(content).extension, Checker()(content).content) == ("ppm", content)
    else:
        with pytest.raises(ValueError, match="not 8 bits a channel"):
            Checker()(content)
