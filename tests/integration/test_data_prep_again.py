"""The same command again: on a complete set, after a loss, on a source that changed."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import Plan, is_complete, make_plan
from data_prep.writing.shards import write
from lt_train.errors import UserError
from tests.helpers.data_prep_runs import assert_one_line, call, finished, identity, succeed, tree
from tests.helpers.sources import fill, png


def test_what_is_left_of_the_work_on_a_complete_set_is_removed(little, tmp_path):
    """As after a kill between dataset.json and the end."""
    out = tmp_path / "set"
    succeed(*little.command, "--out", out)
    before = tree(out)
    fill(out / ".partial", {"lock": b"", "train-000000.tar.rows.arrow": b"rows"})
    assert "already complete" in succeed(*little.command, "--out", out).stderr
    assert tree(out) == before and not (out / ".partial").exists()


@dataclass(frozen=True)
class Pixels:
    pixels: np.ndarray

    def read(self, index: int) -> bytes:
        return png(self.pixels[index])


def plan_of(small, out: Path) -> Plan:
    keys = [str(index) for index in range(len(small.labels))]
    split = SourceSplit(small.labels, keys, Pixels(small.pixels))
    return make_plan(Source("pixels", list("abcd"), {"train": split}), out, 0, 8)


def test_a_run_that_another_one_overtook_writes_nothing(small, tmp_path):
    """The set was not complete when the run began, and is when it gets the lock."""
    out = tmp_path / "set"
    for expected in (3, 0):
        summary = write(plan_of(small, out), 1, 0.0, "tests", lambda images, size: None)
        assert (summary.shards, summary.missing) == (expected, 0)
        if expected:
            before = identity(list(out.iterdir()))
    assert identity(list(out.iterdir())) == before and len(before) == 6


def test_a_finished_shard_that_was_lost_is_written_again(little, tmp_path):
    whole, lost = tmp_path / "whole" / "set", tmp_path / "lost" / "set"
    succeed(*little.command, "--out", whole)
    succeed(*little.command, "--out", lost, "--task", "0/2")
    (lost / "train-000000.tar").unlink()
    succeed(*little.command, "--out", lost)
    assert tree(lost) == tree(whole)


def add_file(root: Path) -> None:
    shutil.copy(root / "train/a/0.png", root / "train/a/new.png")


def change_content(root: Path) -> None:
    """As many bytes, written later."""
    path = root / "train/b/3.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def change_size(root: Path) -> None:
    path = root / "train/b/3.png"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "arguments"),
    [(add_file, ["--task", "1/2"]), (change_content, []), (change_size, [])],
)
def test_a_source_that_changed_in_between_is_refused(little, tmp_path, change, arguments):
    out = tmp_path / "set"
    succeed(*little.command, "--out", out, "--task", "0/2")
    change(little.source)
    before = identity(finished(out))
    done = call(*little.command, "--out", out, *arguments)
    assert_one_line(done, "start of another data set", "changed since", str(out), reports=1)
    assert len(before) == 3 and identity(list(before)) == before == identity(finished(out))


def test_a_source_that_changed_since_it_was_prepared_is_refused(little, tmp_path):
    out = tmp_path / "set"
    succeed(*little.command, "--out", out)
    before = tree(out)
    change_size(little.source)
    done = call(*little.command, "--out", out)
    assert_one_line(done, "holds another data set", "changed since", str(out), reports=1)
    assert tree(out) == before


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"made_by": null}', b"\xff", b'{"made_by": {"fingerp']
)
def test_a_strange_dataset_json_is_not_taken_for_this_data_set(small, tmp_path, content):
    fill(tmp_path / "set", {"dataset.json": content})
    with pytest.raises(UserError, match="holds another data set|dataset.json is damaged"):
        is_complete(plan_of(small, tmp_path / "set"))


@pytest.mark.parametrize("option", ["--max-rejected=nan", "--quality=101", "--seed=4294967296"])
def test_numbers_that_make_no_sense_are_refused(little, tmp_path, option):
    done = call(*little.command, "--out", tmp_path / "set", option)
    assert_one_line(done, f"{option.split('=')[0]} must be from ")
    assert not (tmp_path / "set").exists()
