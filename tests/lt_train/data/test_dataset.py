"""dataset.json, as anybody may have written it: read, or one line that says what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.inspect import show
from lt_train.data.dataset import Dataset, Shard, Split, read_dataset, write_dataset
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from tests.helpers.sealed import rewrite

SPLIT = Split(2, [1, 1], [Shard("train-000000.tar", 2, 4096, "0" * 64)])
DATASET = Dataset("set", ["one", "two"], {"train": SPLIT}, {"command": "tests", "seed": 0})


def test_what_is_written_is_read(tmp_path):
    write_dataset(tmp_path, DATASET)
    assert read_dataset(tmp_path) == DATASET


def test_what_early_versions_did_not_write_is_not_missed(tmp_path):
    write_dataset(tmp_path, DATASET)
    content = json.loads((tmp_path / "dataset.json").read_text())
    for name in ("rejected", "tables", "added_columns"):
        del content["splits"]["train"][name]
    del content["made_by"], content["sha256"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert read_dataset(tmp_path).splits == DATASET.splits


def test_a_changed_name_is_refused(tmp_path):
    """All is of its type, and of the right size."""
    write_dataset(tmp_path, DATASET)
    content = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(content.replace('"two"', '"twp"'))
    assert_refused(tmp_path, "it does not match its own checksum")


def set_to(*places: str | int, value: object) -> Callable[[dict], None]:
    """Change of one value, named by the keys that lead to it."""

    def change(content: dict) -> None:
        *parents, last = places
        for place in parents:
            content = content[place]
        content[last] = value

    return change


def in_split(*places: str | int, value: object) -> Callable[[dict], None]:
    return set_to("splits", "train", *places, value=value)


def another_split(name: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["splits"][name] = content["splits"].pop("train")

    return change


def without(content: dict) -> None:
    del content["splits"]["train"]["shards"][0]["sha256"]


SHARD = ("shards", 0)
MISTAKES = {
    "a shard that is a number": (in_split(*SHARD, "name", value=7), "shards.0.name is not text"),
    "a shard elsewhere": (in_split(*SHARD, "name", value="../evil.tar"), "'../evil.tar'"),
    "an absolute shard": (in_split(*SHARD, "name", value="/etc/evil.tar"), "'/etc/evil.tar'"),
    "a shard above": (in_split(*SHARD, "name", value=".."), "no plain file name"),
    "no name": (in_split(*SHARD, "name", value=""), "no plain file name"),
    "a backslash": (in_split(*SHARD, "name", value="a\\b.tar"), "no plain file name"),
    "a NUL": (in_split(*SHARD, "name", value="a\0.tar"), "no plain file name"),
    "no Unicode": (in_split(*SHARD, "name", value="\ud800.tar"), "no plain file name"),
    "a name too long": (in_split(*SHARD, "name", value="a" * 300 + ".tar"), "no plain file name"),
    "another table as shard": (in_split(*SHARD, "name", value="train.arrow"), "of a .tar"),
    "a shard twice": (
        lambda content: content["splits"]["train"]["shards"].extend(
            content["splits"]["train"]["shards"]
        ),
        "names a shard twice",
    ),
    "a negative size": (in_split(*SHARD, "bytes", value=-1), "shards.0.bytes is not from 0"),
    "a size beyond all": (in_split(*SHARD, "bytes", value=10**30), "shards.0.bytes is not from 0"),
    "half a sample": (in_split(*SHARD, "samples", value=1.5), "samples is no whole number"),
    "true samples": (in_split("samples", value=True), "samples is no whole number"),
    "samples in words": (in_split("samples", value="2"), "samples is no whole number"),
    "shards that are no list": (in_split("shards", value="ab"), "shards is not a list"),
    "a shard that is none": (in_split("shards", value=[3]), "shards.0 is not a group of keys"),
    "a shard without its sum": (without, "shards.0.sha256 is missing"),
    "a sum that is none": (in_split(*SHARD, "sha256", value=None), "sha256 is not text"),
    "an unknown key": (in_split("samplse", value=2), "samplse is no key"),
    "negative counts": (in_split("class_counts", value=[3, -1]), "class_counts.1 is not from 0"),
    "other counts": (in_split("class_counts", value=[2]), "class_counts is not of 2 classes"),
    "tables in a list": (in_split("tables", value=["a"]), "tables is not a group of keys"),
    "a table elsewhere": (in_split("tables", value={"../x": ""}), "names other files"),
    "classes that are numbers": (set_to("classes", value=["one", 2]), "classes.1 is not text"),
    "classes in a row": (set_to("classes", value="ab"), "classes is not a list"),
    "a name of numbers": (set_to("name", value=[1]), "name is not text"),
    "splits in a list": (set_to("splits", value=[]), "splits is not a group of keys"),
    "no split": (set_to("splits", value={}), "no splits"),
    "a split elsewhere": (another_split("../evil"), "the split '../evil' is no plain file name"),
    "nested history": (set_to("made_by", value={"a": [[]]}), "made_by.a is not text or a number"),
    "no version": (set_to("format_version", value=None), "format_version is not 1"),
    "version 0": (set_to("format_version", value=0), "format_version is not 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_place(mistake, tmp_path):
    change, words = MISTAKES[mistake]
    write_dataset(tmp_path, DATASET)
    rewrite(tmp_path / "dataset.json", change)
    assert_refused(tmp_path, words)


CONTENTS = {
    "deep nesting": (b'{"name": ' + b"[" * 200_000, "nested"),
    "no UTF-8": (b'{"name": "\xff"}', "utf-8"),
    "a list": (b"[1]", "object"),
    "nothing": (b"", "damaged"),
    "cut off": (b'{"name": "s', "damaged"),
    "a number of 5,000 digits": (b'{"format_version": ' + b"1" * 5000 + b"}", "digits"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_content_that_is_no_dataset_json_is_one_line(content, tmp_path):
    (tmp_path / "dataset.json").write_bytes(CONTENTS[content][0])
    assert_refused(tmp_path, CONTENTS[content][1])


def assert_refused(root: Path, words: str) -> None:
    for use in (read_dataset, lambda root: Manifest(root, "train"), lambda root: show(root, None)):
        with pytest.raises(UserError) as refused:
            use(root)
        line = str(refused.value)
        assert line.startswith(f"{root}/dataset.json is damaged: ") and words in line, line
        assert "copy it again or prepare it anew" in line and len(line) < 400 + len(str(root))


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    write_dataset(tmp_path, DATASET)

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UserError, match="cannot read .*dataset.json: Permission denied"):
        read_dataset(tmp_path)
