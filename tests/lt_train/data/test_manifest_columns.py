"""Columns that are added to a prepared set's manifest."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.inspect import problems
from lt_train.data import manifest
from lt_train.data.manifest import Manifest, add_columns
from lt_train.files import file_sha256
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


def test_who_has_the_manifest_open_goes_on(copy):
    reader = Manifest(copy, "train")
    keys = [reader.key(index) for index in range(11)]
    add_columns(copy, "train", {"pseudo_label": pa.array(np.full(11, 3, np.int32))}, "tests")
    assert reader.column("pseudo_label").tolist() == PSEUDO[numbers(reader)].tolist()
    assert [reader.key(index) for index in range(11)] == keys
    assert all(reader.read(index) is not None for index in range(11))


def test_killed_between_manifest_and_checksum_the_same_call_mends_it(copy, monkeypatch):
    def killed(*_) -> None:
        raise KeyboardInterrupt

    columns = {"pseudo_label": pa.array(np.full(11, 3, np.int32))}
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_dataset", killed)
        with pytest.raises(KeyboardInterrupt):
            add_columns(copy, "train", columns, "tests")
    assert list(problems(copy)) == ["train.arrow is not as it was written (sha256 differs)"]
    assert Manifest(copy, "train").column("pseudo_label").tolist() == [3] * 11
    add_columns(copy, "train", columns, "tests")
    assert list(problems(copy)) == [] and not list(copy.glob(".*"))


def test_an_empty_split_may_have_columns_too(prepare, photos):
    root = prepare({"train": ([photos["square"]], [0]), "val": ([], [])}, classes=1)
    add_columns(root, "val", {"pseudo_label": pa.array([], pa.int32())}, "tests")
    assert "pseudo_label" in Manifest(root, "val").columns and list(problems(root)) == []
