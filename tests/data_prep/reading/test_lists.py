"""Lists of images, the keys made of names, and what names may hold: read as they are, or refused
with the line or image.
"""

import os
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading import lists
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from tests.helpers.sources import contents, fill, png, prepared, samples, source_of, touch


def test_a_lists_hashes_are_git_blob_hashes():
    assert all(re.fullmatch("[0-9a-f]{8}|[0-9a-f]{40}", sha) for sha in lists.PUBLISHED.values())
    sets = {name.split("_")[0] for name in lists.PUBLISHED}
    assert sets == {"ImageNet", "iNaturalist18", "Places"}


def keys_below(root: Path) -> list[str]:
    return source_of("folder", "--source", root).splits["train"].keys


def test_keys_have_no_dots_and_differ_where_only_the_suffix_does(tmp_path):
    """A webdataset key ends at its first dot."""
    touch(tmp_path, "v1.0/x.y.jpg", "v1.0/z.jpg", "v1.0/z.png")
    assert keys_below(tmp_path) == ["v1_0/x_y", "v1_0/z_jpg", "v1_0/z_png"]


def test_a_class_folder_that_webdataset_would_pass_over_gets_another_key(tmp_path):
    touch(tmp_path, "__bg__/1.jpg", "cat/__2__.jpg", "__dog/3.jpg")
    assert keys_below(tmp_path) == ["_bg__/1", "__dog/3", "cat/__2__"]


def test_keys_hold_as_much_of_the_path_as_tells_files_apart(tmp_path):
    touch(tmp_path, "a/x/1.jpg", "b/x/1.jpg")
    assert keys_below(tmp_path) == ["a/x/1", "b/x/1"]


def test_of_keys_that_only_dots_told_apart_the_changed_ones_get_a_checksum(tmp_path):
    """The same whatever else is there; all other keys are as they would be without."""
    touch(tmp_path, "a/x.1.jpg", "a/x_1.jpg", "a/x_2.jpg", "b/y.jpg", "b/y.png", "b/z.jpg")
    expected = [
        f"a/x_1_{zlib.crc32(b'a/x.1.jpg'):08x}",
        "a/x_1",
        "a/x_2",
        "b/y_jpg",
        "b/y_png",
        "b/z",
    ]
    assert keys_below(tmp_path) == expected
    touch(tmp_path, "a/x_1.png")
    expected[1:2] = ["a/x_1_jpg", "a/x_1_png"]
    assert keys_below(tmp_path) == ["a/x_1", *expected[1:]], "a suffix is enough"
    touch(tmp_path, "a/1.x.y.jpg", "a/1.x_y.jpg", "a/1_x.y.jpg")
    keys = keys_below(tmp_path)
    assert len(set(keys)) == len(keys) == 10 and not any("." in key for key in keys)
    assert sorted(key[:8] for key in keys if key.startswith("a/1")) == ["a/1_x_y_"] * 3


def test_lists_make_splits(tmp_path):
    touch(tmp_path, "images/a b.jpg", "images/1.jpg", "images/2.jpg")
    (tmp_path / "train.txt").write_text("images/a b.jpg 0\n\nimages/1.jpg 1\n")
    (tmp_path / "val.txt").write_text("2.jpg 0\n")
    beside = source_of("folder", "--list", tmp_path / "train.txt")
    assert samples(beside) == {"train": {"images/a b": "0", "images/1": "1"}}
    (tmp_path / "train.txt").write_text("1.jpg 0\n")
    lists = ["--list", tmp_path / "train.txt", "--val-list", tmp_path / "val.txt"]
    elsewhere = source_of("folder", "--source", tmp_path / "images", *lists)
    assert samples(elsewhere) == {"train": {"1": "0"}, "val": {"2": "0"}}


@pytest.mark.parametrize("between", [" ", "\t", " \t ", "\t\t"])
def test_spaces_or_tabs_stand_before_a_label(tmp_path, between):
    touch(tmp_path, "a b.jpg", "c.jpg")
    (tmp_path / "train.txt").write_text(f"a b.jpg{between}1\nc.jpg{between}0\n")
    source = source_of("folder", "--list", tmp_path / "train.txt")
    assert samples(source) == {"train": {"a b": "1", "c": "0"}}
    (note,) = source.notes
    assert "--val-fraction 0.1" in note  # and none about the lines


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
        ("1.jpg 0\n2.jpg,1\n", "line 2"),
        ("1.jpg 0\n2\t.jpg 1\n", "1 of the 2 images|not valid text"),
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
    options = []
    for split, lines in lists.items():
        (root / f"{split}.txt").write_text(lines, encoding="utf-8")
        options += [f"--{split}-list".replace("--train-", "--"), root / f"{split}.txt"]
    return options


@pytest.mark.parametrize("split", ["val", "test"])
def test_labels_that_training_lacks_are_counted_and_the_first_named(tmp_path, split):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    options = write_lists(tmp_path, {"train": LABELS["train"], split: LABELS["val"]})
    message = (
        rf"2 {split} image\(s\) have a label out of range, first 2 \(3.jpg\);"
        " training labels go from 0 to 1"
    )
    with pytest.raises(UserError, match=message):
        source_of("folder", *options)


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_missing_images_are_counted_and_the_first_ten_named(tmp_path, split):
    names = [f"a/{number}.jpg" for number in range(1000)]
    touch(tmp_path, *names[::2])
    lists = {"train": f"{names[0]} 0\n"} | {split: "".join(f"{name} 0\n" for name in names)}
    with pytest.raises(UserError) as error:
        source_of("folder", *write_lists(tmp_path, lists))
    message = str(error.value)
    assert message.startswith("500 of the 1000 images of ") and f"({split})" in message
    assert message.endswith(": " + ", ".join(names[1:20:2]) + ", ...") and names[21] not in message


def test_up_to_ten_missing_images_are_all_named(tmp_path):
    options = write_lists(tmp_path, {"train": "".join(f"{number} 0\n" for number in range(10))})
    with pytest.raises(UserError, match="10 of the 10 images .*: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9$"):
        source_of("folder", *options)


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
    message = "leaves the source folder|lies outside|1 of the 2 images .* do not exist under"
    with pytest.raises(UserError, match=message):
        source_of("folder", "--source", tmp_path / "root", f"--{kind}", tmp_path / "file")


def test_nothing_absolute_is_left_of_a_path_in_the_source_folder(tmp_path):
    """Else it would lead out again when it is joined to the folder."""
    touch(tmp_path, "root/a/1.jpg", "root/a/2.jpg")
    root = tmp_path / "root"
    lists = write_lists(tmp_path, {"train": f"{root}/a/1.jpg 0\n{root}//a/./2.jpg 0\n"})
    train = source_of("folder", "--source", root, *lists).splits["train"]
    assert (train.images.names, train.keys) == (["a/1.jpg", "a/2.jpg"], ["a/1", "a/2"])
    (tmp_path / "train.txt").write_text(f"{root}//etc/hostname 0\n")
    message = "1 of the 1 images .* do not exist under .*: etc/hostname$"
    with pytest.raises(UserError, match=message):
        source_of("folder", "--source", root, *lists)


STRANGE = [
    *("a b", " c  d", "it's", '"q"', "a,b", "#1", "50%"),
    "\N{SNOWMAN}",
    "\N{GRINNING FACE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\N{NO-BREAK SPACE}x",
    "x\N{IDEOGRAPHIC SPACE}y",
    "\N{NARROW NO-BREAK SPACE}PM",
    "line\N{LINE SEPARATOR}line",
    "\N{ARABIC LETTER BEH}\N{ZERO WIDTH NON-JOINER}\N{ARABIC LETTER BEH}",
]


def test_any_text_may_be_in_a_name(tmp_path):
    """Spaces, both forms of an accented letter, joiners of scripts that need them, quotes, commas:
    in folders, lists, CSVs and shards.
    """
    classes = ["x \N{SNOWMAN}", "y \N{SNOWMAN}"]
    labels = {f"{classes[n % 2]}/{name}.png": n % 2 for n, name in enumerate(STRANGE)}
    pixels = np.arange(len(STRANGE) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3)
    images = fill(tmp_path / "images", dict(zip(labels, map(png, pixels))))
    rows = sorted(labels.items())
    lines = "".join(f"{name} {label}\n" for name, label in rows)
    (tmp_path / "list").write_text(lines, encoding="utf-8")
    quoted = [(name.replace('"', '""'), label) for name, label in rows]
    lines = "path,label\n" + "".join(f'"{name}",{label}\n' for name, label in quoted)
    (tmp_path / "csv").write_text(lines, encoding="utf-8")

    expected = [
        (name.removesuffix(".png"), label, (images / name).read_bytes()) for name, label in rows
    ]
    for more in ([], ["--csv", tmp_path / "csv"], ["--list", tmp_path / "list"]):
        source = source_of("folder", "--source", images, *more)
        assert contents(source) == {"train": expected} and source.classes == classes
    manifest = Manifest(prepared(source, tmp_path / "out", 5), "train")
    found = [
        (manifest.key(index), int(manifest.labels[index]), bytes(manifest.read(index)))
        for index in range(len(manifest))
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a\x1bb", os.fsdecode(b"caf\xe9")])
def test_control_characters_and_what_is_not_utf8_are_refused(tmp_path, name):
    touch(tmp_path, f"c/{name}.jpg")
    with pytest.raises(UserError, match="the file name 'c/.*' is not valid text; rename it"):
        source_of("folder", "--source", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lists_and_csvs_of_windows_are_read(tmp_path, encoding, newline):
    touch(tmp_path, "1.jpg", "2 \N{SNOWMAN}.jpg")
    files = {
        "list": ["1.jpg 0", "2 \N{SNOWMAN}.jpg 1", ""],
        "csv": ["path,label", "1.jpg,0", "2 \N{SNOWMAN}.jpg,1", ""],
    }
    for kind, lines in files.items():
        (tmp_path / kind).write_bytes(newline.join(lines).encode(encoding))
        found = samples(source_of("folder", f"--{kind}", tmp_path / kind))
        assert found == {"train": {"1": "0", "2 \N{SNOWMAN}": "1"}}


def test_a_list_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "list").write_bytes(b"caf\xe9.jpg 0\n")
    with pytest.raises(UserError, match="cannot read the list"):
        source_of("folder", "--list", tmp_path / "list")


@pytest.mark.parametrize("others", [["--source"], ["--csv"], []])
def test_more_lists_without_a_training_list_are_refused_not_ignored(tmp_path, others):
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "file").write_text("path,label\na/1.jpg,0\n")
    values = {"--source": tmp_path, "--csv": tmp_path / "file"}
    given = [word for other in others for word in (other, values[other])]
    for option in ("--val-list", "--test-list"):
        with pytest.raises(UserError, match="go with --list"):
            source_of("folder", option, tmp_path / "list", *given)
