"""Folders as people have them: what is taken, what is passed over and told, and links."""

import os
from pathlib import Path

import pytest
from PIL import Image

from lt_train.data.image_files.check import EXTENSIONS
from lt_train.data.image_files.walk import (
    IMAGE_SUFFIXES,
    PassedOver,
    images_below,
    is_taken,
    listing,
)
from lt_train.errors import UserError
from tests.helpers.sources import samples, source_of, touch


def test_suffixes_are_those_of_formats_that_are_taken():
    formats = Image.registered_extensions()
    assert {formats[suffix] for suffix in IMAGE_SUFFIXES} == set(EXTENSIONS)
    others = {suffix for suffix, name in formats.items() if name in EXTENSIONS} - IMAGE_SUFFIXES
    assert others == {".pfm"}, "of floats, which are not taken"


CLUTTER = {
    ".ipynb_checkpoints/1-checkpoint.jpg": "hidden",
    ".git/1.jpg": "hidden",
    ".Trash-1000/files/1.jpg": "hidden",
    "._1.jpg": "hidden",
    ".DS_Store": "hidden",
    "__MACOSX/a/._1.jpg": "__MACOSX",
    "@eaDir/1.jpg": "@eaDir",
    "$RECYCLE.BIN/1.jpg": "$RECYCLE.BIN",
    "#recycle/1.jpg": "#recycle",
    "Thumbs.db": "Thumbs.db",
    "desktop.ini": "desktop.ini",
    "1.HEIC": ".heic",
    "1.gif": ".gif",
    "images.tar.gz": ".tar.gz",
    "README": "files of no known kind",
    "1.jpg~ (copy)": "files of no known kind",
}


@pytest.mark.parametrize("name", CLUTTER)
@pytest.mark.parametrize("below", ["", "a/", "a/deep/"])
def test_clutter_is_no_class_and_no_image_and_is_told(tmp_path, name, below):
    touch(tmp_path, "a/1.jpg", "b/2.jfif", f"{below}{name}")
    source = source_of("folder", "--source", tmp_path)
    assert samples(source) == {"train": {"a/1": "a", "b/2": "b"}}
    assert source.passed.told() == f"passed over: 1 {CLUTTER[name]}"
    pool = source_of("tinyimages", "--source", tmp_path)
    assert (list(pool.splits["train"].keys), pool.passed) == (["a/1", "b/2"], source.passed)
    passed = PassedOver()
    assert not is_taken(f"./{below}{name}", passed) and is_taken(f"./{below}1.JPG", passed)
    assert passed.counts == {CLUTTER[name]: 1}, "so it is in tars"


def test_a_class_may_be_called_trash(tmp_path):
    touch(tmp_path, "trash/1.jpg", "glass/1.jpg")
    assert source_of("folder", "--source", tmp_path).classes == ["glass", "trash"]


def test_folders_without_images_are_named(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/1.heic", "b/deep/2.heic", "b/.x", "c\n/1.gif", "loose.jpg")
    (tmp_path / "d").mkdir()
    assert source_of("folder", "--source", tmp_path).passed.told() == (
        "passed over: 1 images beside the class folders, folder 'b' without images (2 .heic, 1"
        " hidden), folder 'c\\n' without images (1 .gif), folder 'd' without images (empty)"
    )
    (tmp_path / "a/1.jpg").unlink()
    with pytest.raises(UserError, match="no class folders with images .*'b' without images"):
        source_of("folder", "--source", tmp_path)


def test_of_many_kinds_and_folders_the_first_are_named(tmp_path):
    touch(tmp_path, "a/1.jpg", *(f"a/x.{kind}" for kind in "bcdefghijklm"))
    for number in range(11):
        (tmp_path / f"empty_{number:02d}").mkdir()
    told = source_of("folder", "--source", tmp_path).passed.told()
    assert told.count("1 .") == 10 and told.count("(empty)") == 10
    assert told.endswith(", and 3 more kinds and folders")


def link(place: Path, target: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, place)


def test_linked_folders_and_files_are_followed(tmp_path):
    root = tmp_path / "root"
    touch(tmp_path, "disk/x/1.jpg", "disk/x/y/2.jpg", "disk/z/3.jpg", "disk/4.jpg", "root/a/5.jpg")
    link(root / "a/x", tmp_path / "disk/x")
    link(root / "a/4.jpg", tmp_path / "disk/4.jpg")
    link(root / "b", Path("../disk/z"))
    source = source_of("folder", "--source", root)
    keys = ["a/4", "a/5", "x/1", "y/2", "b/3"]
    assert sorted(source.splits["train"].keys) == sorted(keys) and not source.passed.told()
    assert source.classes == ["a", "b"]
    assert all(source.splits["train"].images.read(index) == b"" for index in range(5))


def test_circles_of_links_end_and_no_folder_is_read_twice(tmp_path):
    touch(tmp_path, "root/a/1.jpg", "root/a/b/2.jpg", "disk/3.jpg", "disk/d/4.jpg")
    a = tmp_path / "root/a"
    for name, target in {
        "up": "..",
        "here": ".",
        "b/parent": "..",
        "again": "b",
        "itself": "itself",
        "gone.jpg": "nowhere.jpg",
    }.items():
        link(a / name, Path(target))
    link(tmp_path / "root/whole", Path("."))
    link(a / "disk", tmp_path / "disk")
    link(tmp_path / "disk/d/back", tmp_path / "disk")
    link(tmp_path / "disk/d/first", a)
    source = source_of("folder", "--source", tmp_path / "root")
    images = source.splits["train"].images.names
    assert images == ["a/1.jpg", "a/b/2.jpg", "a/disk/3.jpg", "a/disk/d/4.jpg"]
    assert source.passed.counts == {
        "links to a folder around them": 5,
        "links to a folder that is read already": 2,
        "broken links or special files": 2,
    }


def test_a_pipe_is_no_image(tmp_path):
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "1.jpg")
    passed = PassedOver()
    assert listing(tmp_path, passed) == ([], []) and images_below(tmp_path, passed) == []
    assert passed.counts["broken links or special files"] == 2
