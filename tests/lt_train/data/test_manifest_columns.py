"""Columns that are added to a prepared set's manifest."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.inspect import problems
from lt_train.data import tables
from lt_train.data.dataset import write_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.tables import add_columns, is_half_replaced
from lt_train.errors import UserError
from lt_train.files import file_sha256
from tests.helpers.early_version import forget_checksums
from tests.helpers.pools import PSEUDO, numbers


@pytest.fixture
def copy(pseudo_labeled, tmp_path) -> Path:
    return Path(shutil.copytree(pseudo_labeled, tmp_path / "copy"))


def checksums(root: Path) -> dict[Path, str]:
    return {path: file_sha256(path) for path in root.glob("*.tar")}


def test_added_columns_replace_those_of_their_names_and_nothing_else(copy):
    before, shards = Manifest(copy, "train"), checksums(copy)
    labels = np.arange(11, dtype=np.int32) % 4
    columns = {"pseudo_label": pa.array(labels), "margin": pa.array(labels / 7)}
    add_columns(copy, "train", columns, "tests")
    after = Manifest(copy, "train")
    assert after.column("pseudo_label").tolist() == labels.tolist()
    assert after.column("margin").tolist() == (labels / 7).tolist()
    assert sorted(after.columns) == sorted([*before.columns, "margin"])
    for name in set(before.columns) - {"pseudo_label"}:
        assert after._table[name].to_pylist() == before._table[name].to_pylist()
    assert shards == checksums(copy) and list(problems(copy)) == []
    assert before.dataset.splits["train"].class_counts == after.dataset.splits["train"].class_counts


def test_columns_of_several_at_once_are_all_there(copy):
    names = [f"column_{number}" for number in range(6)]
    values = {name: pa.array(np.full(11, int(name[-1]), np.int32)) for name in names}

    def add(name: str) -> None:
        add_columns(copy, "train", {name: values[name]}, "tests")

    with ThreadPoolExecutor(len(names)) as writers:
        list(writers.map(add, names))
    manifest = Manifest(copy, "train")
    for name in names:
        assert manifest.column(name).tolist() == values[name].to_pylist()
    assert list(problems(copy)) == [] and not list(copy.glob(".*"))


def test_who_has_the_manifest_open_goes_on(copy):
    reader = Manifest(copy, "train")
    keys = [reader.key(index) for index in range(11)]
    add_columns(copy, "train", {"pseudo_label": pa.array(np.full(11, 3, np.int32))}, "tests")
    assert reader.column("pseudo_label").tolist() == PSEUDO[numbers(reader)].tolist()
    assert [reader.key(index) for index in range(11)] == keys
    assert all(reader.read(index) is not None for index in range(11))


KILLS = {  # at which writing of dataset.json, and whether that one was done -> what verify says
    "before anything": (1, False, []),
    "before the table": (1, True, []),
    "after the table": (2, False, ["train.arrow has columns of a call that was killed"]),
}


@pytest.mark.parametrize("kill", KILLS)
def test_killed_at_any_time_the_set_can_be_read_and_the_same_call_mends_it(copy, kill, monkeypatch):
    number, done, said = KILLS[kill]
    calls = []

    def write(*arguments) -> None:
        calls.append(arguments)
        if len(calls) < number or done:
            write_dataset(*arguments)
        if len(calls) == number:
            raise KeyboardInterrupt

    order = numbers(Manifest(copy, "train"))
    columns = {"pseudo_label": pa.array(np.full(11, 3, np.int32))}
    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_dataset", write)
        with pytest.raises(KeyboardInterrupt):
            add_columns(copy, "train", columns, "tests")
    assert [problem.partition(";")[0] for problem in problems(copy)] == said
    part = Manifest(copy, "train")
    expected = [3] * 11 if said else PSEUDO[order].tolist()
    assert part.column("pseudo_label").tolist() == expected
    assert is_half_replaced(copy, part.dataset.splits["train"]) == bool(said)
    add_columns(copy, "train", columns, "tests")
    assert Manifest(copy, "train").column("pseudo_label").tolist() == [3] * 11
    assert list(problems(copy)) == [] and not list(copy.glob(".*"))
    assert "replacing" not in (copy / "dataset.json").read_text(), "as earlier versions read it"


def test_columns_are_not_added_to_a_damaged_table(copy):
    """Its new checksum would vouch for what nobody wrote."""
    path = copy / "train.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="train.arrow is not as it was written"):
        add_columns(copy, "train", {"new": pa.array(np.zeros(11))}, "tests")
    assert path.read_bytes() == content and not list(copy.glob(".*"))


def test_a_set_of_an_early_version_without_checksums_gets_columns_too(copy):
    forget_checksums(copy)
    add_columns(copy, "train", {"new": pa.array(np.arange(11))}, "tests")
    assert Manifest(copy, "train").column("new").tolist() == list(range(11))
    assert list(problems(copy)) == []


def test_an_empty_split_may_have_columns_too(prepare, photos):
    root = prepare({"train": ([photos["square"]], [0]), "val": ([], [])}, classes=1)
    add_columns(root, "val", {"pseudo_label": pa.array([], pa.int32())}, "tests")
    assert "pseudo_label" in Manifest(root, "val").columns and list(problems(root)) == []
