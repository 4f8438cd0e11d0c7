"""Anyone's own images: class folders, CSVs, what is held out, and a tail made of them."""

import os
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading.subsets import imbalanced_counts
from lt_train.errors import UserError
from tests.helpers.sources import samples, source_of, touch


def test_class_folders_make_a_training_split(tmp_path):
    touch(tmp_path, "dog/1.jpg", "dog/deep/2.JPEG", "cat/1.png", "cat/notes.txt", "empty/readme.md")
    source = source_of("folder", "--source", tmp_path, "--name", "pets")
    assert (source.name, source.classes) == ("pets", ["cat", "dog"])
    assert samples(source) == {"train": {"cat/1": "cat", "dog/1": "dog", "deep/2": "dog"}}


@pytest.mark.parametrize("held_out", [True, False])
def test_that_a_set_measures_no_accuracy_is_noted(held_out, tmp_path):
    touch(tmp_path, *(f"{name}/{number}.jpg" for name in "ab" for number in range(10)))
    fraction = ["--test-fraction", 0.1] if held_out else []
    notes = source_of("folder", "--source", tmp_path, *fraction).notes
    assert ["--val-fraction 0.1" in note for note in notes] == ([] if held_out else [True])


def test_train_val_and_test_folders_make_splits(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/b/9.jpg", "test/a/5.jpg")
    assert samples(source_of("folder", "--source", tmp_path)) == {
        "train": {"a/1": "a", "b/1": "b"},
        "val": {"b/9": "b"},
        "test": {"a/5": "a"},
    }


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "valid", "Test"),
        ("TRAINING", "validation", "testing"),
        ("training", "Val", "TESTING"),
    ],
)
def test_split_folders_may_have_the_usual_names_in_any_case(tmp_path, train, val, test):
    touch(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{val}/b/9.jpg", f"{test}/a/5.jpg")
    source = source_of("folder", "--source", tmp_path)
    assert samples(source) == {
        "train": {"a/1": "a", "b/1": "b"},
        "val": {"b/9": "b"},
        "test": {"a/5": "a"},
    }
    assert list(source.splits) == ["train", "val", "test"] and not source.passed.told()
    assert all(Path(file).is_file() for file in source.files)


def test_two_folders_for_a_split_are_refused(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "validation/a/3.jpg")
    with pytest.raises(UserError, match="two folders for the split 'val': val/ and validation/"):
        source_of("folder", "--source", tmp_path)


def test_what_lies_beside_the_splits_is_told(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "extra/a/1.jpg", "loose.jpg", "labels.csv", ".git/x")
    assert source_of("folder", "--source", tmp_path).passed.told() == (
        "passed over: 1 .csv, 1 hidden, 1 images beside the splits, folder 'extra' beside train/"
    )


def test_other_splits_without_training_images_are_no_classes(tmp_path):
    """Unless they hold images themselves, beside other classes: the class may be called so."""
    touch(tmp_path, "Test/a/1.jpg", "cat/1.jpg")
    with pytest.raises(UserError, match="has Test/ and no train/"):
        source_of("folder", "--source", tmp_path)
    touch(tmp_path, "Test/2.jpg")
    assert source_of("folder", "--source", tmp_path).classes == ["Test", "cat"]
    (tmp_path / "cat/1.jpg").rename(tmp_path / "Test/3.jpg")
    (tmp_path / "cat").rmdir()
    with pytest.raises(UserError, match="has Test/ and no train/"):
        source_of("folder", "--source", tmp_path)


def test_a_class_that_training_lacks_is_named(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "val/zebra/1.jpg")
    with pytest.raises(UserError, match="zebra"):
        source_of("folder", "--source", tmp_path)


@pytest.mark.parametrize("options", [{"val": 0.2}, {"val": 0.1, "test": 0.3}])
def test_fractions_are_held_out_of_every_class(tmp_path, options):
    counts = {"a": 50, "b": 10, "c": 3}
    keys = [f"{name}/{number}" for name, count in counts.items() for number in range(count)]
    touch(tmp_path, *(f"{key}.jpg" for key in keys))
    fractions = [f"--{split}-fraction={share}" for split, share in options.items()]
    arguments = ["--source", tmp_path, *fractions]
    splits = samples(source_of("folder", *arguments))
    for split, share in options.items():
        held_out = list(splits[split].values())
        for name, count in counts.items():
            assert held_out.count(name) == round(share * count)
    assert sorted(key for split in splits.values() for key in split) == sorted(keys)
    assert samples(source_of("folder", *arguments)) == splits, "the same samples every time"
    assert samples(source_of("folder", *arguments, "--seed", 1)) != splits


@pytest.mark.parametrize(("val", "test"), [(1, 0), (-0.1, 0), (0.6, 0.5)])
def test_impossible_fractions_are_refused(tmp_path, val, test):
    touch(tmp_path, "a/1.jpg")
    fractions = [f"--val-fraction={val}", f"--test-fraction={test}"]
    with pytest.raises(UserError, match="--val-fraction"):
        source_of("folder", "--source", tmp_path, *fractions)


def test_a_fraction_for_a_split_that_exists_is_refused(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/a/2.jpg", "val/a/3.jpg")
    with pytest.raises(UserError, match="has a val split already"):
        source_of("folder", "--source", tmp_path, "--val-fraction", "0.5")


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


def test_a_csv_makes_splits_with_classes_by_name(tmp_path):
    touch(tmp_path, *(f"images/{number}.jpg" for number in range(6)))
    lines = [
        "author, Image , CLASS ,split",
        "me, images/0.jpg ,dog,train",
        "you,images/1.jpg, cat,validation",
        ",images/2.jpg,cat,",
        "",
        "x,images/3.jpg,dog,TEST",
        "x,images/4.jpg,cat,Training",
        "x,images/5.jpg,dog,val,more,columns",
        "",
    ]
    (tmp_path / "all.csv").write_text("\n".join(lines))
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


def test_classes_that_are_numbers_are_sorted_by_number(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    file = tmp_path / "all.csv"
    for labels, classes in (
        (["10.0", "0.0", "2.0", "2.0"], ["0.0", "2.0", "10.0"]),
        (["1e1", "+.5", "9.", "9"], ["+.5", "9", "9.", "1e1"]),
        (["10.0", "2.0", "x", "-"], ["-", "10.0", "2.0", "x"]),
    ):
        rows = [f"{number}.jpg,{label}\n" for number, label in enumerate(labels, 1)]
        file.write_text("path,label\n" + "".join(rows))
        source = source_of("folder", "--csv", file)
        assert source.classes == classes
        assert samples(source) == {"train": dict(zip("1234", labels))}


def test_a_csvs_paths_are_relative_to_the_source(tmp_path):
    touch(tmp_path, "images/a/1.jpg", "images/b/2.jpg")
    (tmp_path / "all.csv").write_text(f"path,label\na/1.jpg,x\n{tmp_path}/images/b/2.jpg,y\n")
    source = source_of("folder", "--csv", tmp_path / "all.csv", "--source", tmp_path / "images")
    assert samples(source) == {"train": {"a/1": "x", "b/2": "y"}}
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
        (b'path,label,by\n1.jpg,x,"x\ny"\n2.jpg,,\n', "line 4"),
        (b'path,label\n1.jpg,"x\ny"\n', r"line 3: the label 'x\\ny' is not valid text"),
        (b"path,label\n1.jpg,0\n2.jpg,-1\n", "line 3: the label '-1' is no class"),
        (b"path,label\n1.jpg,cat\n2.jpg,NaN\n", "line 3: the label 'NaN' is no class"),
        (b"path,label\n1.jpg,cat\n2.jpg,-0.5e1\n", "line 3: the label '-0.5e1' is no class"),
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
        ("exp", {"b": 100, "e": 47, "c": 22, "a": 10, "d": 3}),  # of d, 5 are wanted
        ("step", {"b": 100, "e": 100, "c": 5, "a": 5, "d": 3}),
    ],
)
def test_a_tail_begins_with_the_largest_class(balanced, kind, wanted):
    whole = source_of("folder", "--source", balanced)
    options = ["--imbalance-ratio", 20, "--imbalance-type", kind]
    source = source_of("folder", "--source", balanced, *options)
    found = samples(source)
    classes = list(found["train"].values())
    assert {name: classes.count(name) for name in SIZES} == wanted
    assert samples(whole)["test"] == found["test"] and len(found["test"]) == 35
    assert list(found["train"]) == sorted(found["train"]), "in the source's order"
    assert source.notes == [
        f"--imbalance-ratio keeps {sum(wanted.values())} of 303 training images, 100 to 3 a class;"
        " 1 class(es) have fewer images than their share"
    ]
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
    found = [source_of("folder", *options, seed) for seed in (4, 4, 5)]
    first, again, other = (source.splits["train"].keys for source in found)
    assert first == again == [whole[index] for index in sorted(expected)]
    assert first != other


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
    held_out = samples(source_of("folder", *options))
    both = samples(source_of("folder", *options, "--imbalance-ratio", 20))
    assert both["val"] == held_out["val"] and len(both["val"]) == 8 + 20 + 12 + 1 + 20
    assert both["train"].items() < held_out["train"].items()
    assert not set(both["train"]) & set(both["val"])
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
