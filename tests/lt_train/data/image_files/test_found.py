"""What may be named as a place of images, and what is found there."""

import os

import pytest

from lt_train.data.image_files.found import find_images
from lt_train.data.image_files.walk import PassedOver
from lt_train.errors import UserError
from tests.helpers.sources import fill, tar_of


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Images whose content is their name."""
    monkeypatch.chdir(tmp_path)
    names = ("b.jpg", "a/2.png", "a/10.PNG", "a/deep/x.webp", ".hidden/y.jpg", "a/notes.md")
    fill(tmp_path, {f"photos/{name}": name.encode() for name in names})
    one = {"./k/1.jpg": b"k1", "./k/1.cls": b"0"}
    fill(tmp_path, {"t-0.tar": tar_of(one), "t-1.tar": tar_of({"k/2.jpg": b"k2"})})
    lines = b"\xef\xbb\xbfb.jpg\r\n\na/2.png\nmissing \xff.jpg\n"
    lines += os.fsencode(tmp_path) + b"/photos/b.jpg"
    fill(tmp_path, {"photos/some.txt": lines, "photos/empty.txt": b"\n"})
    return tmp_path


@pytest.mark.parametrize(
    ("place", "names", "passed"),
    [
        ("photos/b.jpg", ["photos/b.jpg"], ""),
        ("photos/*", None, "passed over: 2 .txt, 1 .md"),
        (
            "photos",
            ["photos/a/10.PNG", "photos/a/2.png", "photos/a/deep/x.webp", "photos/b.jpg"],
            "passed over: 2 .txt, 1 .md, 1 hidden",
        ),
        ("photos/a/*.p*", ["photos/a/2.png"], ""),
        ("t-0.tar", ["t-0.tar/k/1.jpg"], "passed over: 1 .cls"),
        ("t-*.tar", ["t-0.tar/k/1.jpg", "t-1.tar/k/2.jpg"], None),
        ("[pt]*", None, None),
    ],
)
def test_every_kind_of_place(place, names, passed, places):
    passed_over = PassedOver()
    found = find_images(place, passed_over)
    assert len(found.names) == (6 if place == "[pt]*" else 4 if names is None else len(names))
    assert names is None or found.names == names
    assert passed is None or passed_over.told() == passed
    contents = {"k/1.jpg": b"k1", "k/2.jpg": b"k2"}
    for index, name in enumerate(found.names):
        inside = name.partition("/")[2]
        assert found.images.read(index) == contents.get(inside, inside.encode())


def test_a_list_is_relative_to_its_folder_and_may_name_what_is_not_there(places):
    found = find_images("photos/some.txt", PassedOver())
    own = str(places / "photos" / "b.jpg")
    assert found.names == ["b.jpg", "a/2.png", "missing \udcff.jpg", own]
    assert [found.images.read(index) for index in (0, 1, 3)] == [b"b.jpg", b"a/2.png", b"b.jpg"]
    with pytest.raises(FileNotFoundError):
        found.images.read(2)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "there is no file or folder 'nowhere'"),
        ("photos/*.bmp", "there is no file or folder"),
        ("empty", "'empty' has no images .*passed over: 1 .md"),
        ("photos/empty.txt", "'photos/empty.txt' has no images"),
        ("photos/a/notes.md", "is neither a folder, an image .*, a list .* nor"),
        ("cut.tar", "'cut.tar' is not a whole uncompressed tar"),
    ],
)
def test_where_there_is_none_is_one_line(place, message, places):
    fill(places, {"empty/x.md": b"", "cut.tar": (places / "t-0.tar").read_bytes()[:700]})
    with pytest.raises(UserError, match=message):
        find_images(place, PassedOver())
