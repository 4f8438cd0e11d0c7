"""Tables that are not what they say: each is one line before anything in them is used."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.inspect import problems
from lt_train.data.dataset import read_dataset, write_dataset
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from lt_train.files import file_sha256

TABLE, INDEX = "train.arrow", "train.class_index.arrow"


@pytest.fixture
def copy(small, damaged_copy) -> Path:
    """The small data set, to be damaged by a test: 23 samples in three shards, of four classes."""
    return damaged_copy(small.root)


def trust(root: Path, checksums: bool) -> None:
    """Whoever changed the tables made their checksums too, or left them out, as early versions."""
    dataset = read_dataset(root)
    part = dataset.splits["train"]
    sums = {name: file_sha256(root / name) for name in (TABLE, INDEX)} if checksums else {}
    splits = dataset.splits | {"train": replace(part, tables=sums)}
    write_dataset(root, replace(dataset, splits=splits))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = change(pa.ipc.open_file(path.read_bytes()).read_all()).combine_chunks()
    path.unlink()  # somebody may have it mapped
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table)


def put(column: str, value: int, row: int = 7) -> Callable[[Path], None]:
    """Damage: one value of one column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_numpy().copy()
        values[row] = value
        return table.set_column(table.column_names.index(column), column, pa.array(values))

    return lambda root: rewrite(root / TABLE, change)


def columns(**changed: pa.Array | None) -> Callable[[Path], None]:
    """Damage: whole columns, or none in their place."""

    def change(table: pa.Table) -> pa.Table:
        arrays = dict(zip(table.column_names, table.columns)) | changed
        return pa.table({name: array for name, array in arrays.items() if array is not None})

    return lambda root: rewrite(root / TABLE, change)


def index_of(ids: Callable[[list[list[int]]], list]) -> Callable[[Path], None]:
    """Damage: other lists of sample ids."""

    def change(table: pa.Table) -> pa.Table:
        lists = pa.array(ids(table["sample_ids"].to_pylist()), pa.large_list(pa.int64()))
        return pa.table({"sample_ids": lists})

    return lambda root: rewrite(root / INDEX, change)


def swapped(lists: list[list[int]]) -> list[list[int]]:
    """The first of two classes' samples in each other's place."""
    (one, *first), (other, *second), *rest = lists
    return [[other, *first], [one, *second], *rest]


def null_in(kind: pa.DataType) -> pa.Array:
    return pa.array([None] + [1] * 22, kind)


def two_of_one_name(root: Path) -> None:
    rewrite(root / TABLE, lambda table: table.append_column("key", table["key"]))


def offsets_beyond(root: Path) -> None:
    """Characters of a key where there are none: reading them would end the process."""
    table = pa.ipc.open_file((root / TABLE).read_bytes()).read_all()
    _, ends, letters = table["key"].combine_chunks().buffers()
    changed = np.frombuffer(ends, np.int32).copy()
    changed[5] = 2**31 - 1
    keys = pa.StringArray.from_buffers(23, pa.py_buffer(changed), letters)
    columns(key=keys)(root)


NO_INDEX = f"{INDEX} does not agree with {TABLE}"
MOVED = f"{TABLE} has its samples in other shards than dataset.json"
DAMAGES = {
    "a label beyond all": (put("label", 4), "(sample_id 7) with the label 4, of 4 classes"),
    "a label below all": (put("label", -2), "(sample_id 7) with the label -2, of 4 classes"),
    "another label": (put("label", 3, 0), "has other class counts than dataset.json"),
    "no label": (put("label", -1, 0), "has other class counts than dataset.json"),
    "a shard beyond all": (put("shard", 3, 22), MOVED),
    "a shard below all": (put("shard", -1, 0), MOVED),
    "another shard": (put("shard", 1, 0), MOVED),
    "a negative offset": (put("offset", -1), "(sample_id 7) with a negative offset or size"),
    "a negative size": (put("size", -5), "(sample_id 7) with a negative offset or size"),
    "a place beyond all": (put("offset", 2**62), "(sample_id 7) with bytes beyond the end"),
    "too many bytes": (put("size", 2**31 - 1), "(sample_id 7) with bytes beyond the end"),
    "no width": (put("width", 0), "(sample_id 7) with no width or no height"),
    "a negative height": (put("height", -32), "(sample_id 7) with no width or no height"),
    "fewer rows": (
        lambda root: rewrite(root / TABLE, lambda table: table.slice(0, 22)),
        "has 22 rows, dataset.json says 23",
    ),
    "no column": (columns(crc32=None), f"{TABLE} has no column 'crc32'"),
    "text for numbers": (columns(label=pa.array(["0"] * 23)), "'label' that is not all int32"),
    "wide numbers": (columns(size=pa.array([1] * 23)), "'size' that is not all int32"),
    "a label that is none": (columns(label=null_in(pa.int32())), "'label' that is not all int32"),
    "two columns of one name": (two_of_one_name, "two columns of one name"),
    "keys of nothing": (offsets_beyond, f"{TABLE}: "),
    "ids beyond all": (index_of(lambda lists: [[23, *lists[0][1:]], *lists[1:]]), NO_INDEX),
    "ids below all": (index_of(lambda lists: [[-1, *lists[0][1:]], *lists[1:]]), NO_INDEX),
    "ids of another class": (index_of(swapped), NO_INDEX),
    "an id twice": (index_of(lambda lists: [[*lists[0][:-1], lists[0][0]], *lists[1:]]), NO_INDEX),
    "ids in disorder": (index_of(lambda lists: [lists[0][::-1], *lists[1:]]), NO_INDEX),
    "an id too few": (index_of(lambda lists: [lists[0][:-1], *lists[1:]]), NO_INDEX),
    "a class too few": (index_of(lambda lists: lists[:-1]), NO_INDEX),
    "a class too many": (index_of(lambda lists: [*lists, []]), NO_INDEX),
    "a class without a list": (index_of(lambda lists: [*lists[:-1], None]), "not all large_list"),
    "no lists": (
        lambda root: rewrite(root / INDEX, lambda _: pa.table({"sample_ids": [0, 1, 2, 3]})),
        "'sample_ids' that is not all large_list",
    ),
    "an id that is none": (index_of(lambda lists: [[None, *lists[0][1:]], *lists[1:]]), INDEX),
}


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "none"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_tables_are_one_line_whoever_vouches_for_them(damage, checksums, copy):
    break_it, words = DAMAGES[damage]
    trust(copy, checksums)
    Manifest(copy, "train")
    break_it(copy)
    trust(copy, checksums)
    with pytest.raises(UserError) as refused:
        Manifest(copy, "train")
    line = str(refused.value)
    assert words in line and f"{copy}/train." in line, line
    assert f"python -m data_prep verify {copy}" in line
    assert any(words in problem for problem in problems(copy)), "verify says so too"


@pytest.mark.parametrize("name", [TABLE, INDEX])
def test_a_table_that_is_not_as_it_was_written_is_refused(name, copy):
    """Also where only a key has changed, which no other check would find."""
    path = copy / name
    rewrite(path, lambda table: table.replace_schema_metadata({"a": "b"}))
    with pytest.raises(UserError, match=f"{name} is not as it was written .*verify {copy}"):
        Manifest(copy, "train")
    Manifest(copy, "val")
    trust(copy, True)
    assert len(Manifest(copy, "train")) == 23


def test_checks_of_many_rows_are_those_of_few_at_once(copy, monkeypatch):
    monkeypatch.setattr("lt_train.data.columns.ROWS_AT_ONCE", 5)
    assert list(problems(copy)) == []
    for damage in ("a label beyond all", "too many bytes", "ids of another class", "an id twice"):
        root = Path(shutil.copytree(copy, copy / damage))
        DAMAGES[damage][0](root)
        trust(root, True)
        with pytest.raises(UserError) as refused:
            Manifest(root, "train")
        assert DAMAGES[damage][1] in str(refused.value)
