"""Where the data set goes: full disks, and what cannot be written."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lt_train.errors import EXIT_MACHINE
from tests.helpers.data_prep_runs import LIMIT, assert_one_line, call, finished, succeed, tree


@dataclass(frozen=True)
class SmallDisk:
    path: Path

    def remount(self, options: str) -> None:
        words = ["mount", "-o", f"remount,{options}", str(self.path)]
        subprocess.run(words, check=True, timeout=LIMIT)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    mounted = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT)
    if mounted.returncode and re.search("superuser|denied|not permitted", mounted.stderr):
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    yield SmallDisk(path)
    subprocess.run(["umount", str(path)], check=True, timeout=LIMIT)


@pytest.mark.slow
def test_on_a_full_disk_nothing_is_half_written_and_with_more_room_the_same_command_goes_on(
    little, small_disk, tmp_path
):
    """Grown bit by bit, so that it is full at many points of the work: in a shard, in its rows, in
    a manifest.
    """
    succeed(*little.command, "--out", tmp_path / "set", "--dali-index")
    whole, out, size, stages = tree(tmp_path / "set"), small_disk.path / "set", 64, set()
    arguments = [*little.command, "--out", out, "--workers", 2, "--dali-index"]
    while (done := call(*arguments)).returncode:
        # after what was understood, a report says that the set is complete, though its index is not
        is_complete = (out / "dataset.json").exists()
        words = ("No space left on device", str(out), "the same command again goes on")
        assert_one_line(done, *words, reports=1 + is_complete, status=EXIT_MACHINE)
        for name, digest in tree(out).items():
            assert name.startswith(".partial") or digest == whole.get(name), "whole"
        assert not list(out.rglob("*.tmp"))
        stages.add("manifest" if len(finished(out)) == 6 else "index" if is_complete else "shards")
        size += 16
        small_disk.remount(f"size={size}k")
    assert tree(out) == whole
    assert {"shards", "manifest"} <= stages, (size, stages)


@pytest.mark.slow
def test_what_cannot_be_written_is_told_in_one_line(little, small_disk, tmp_path):
    (tmp_path / "file").write_text("")
    small_disk.remount("size=1m")
    complete = [*little.command, "--out", small_disk.path / "set"]
    succeed(*complete)
    small_disk.remount("ro")
    read_only = "Read-only file system"  # as a disk may be for a while, so not the user's mistake
    done = call(*little.command, "--out", small_disk.path / "other")
    assert_one_line(done, str(small_disk.path), read_only, reports=1, status=EXIT_MACHINE)
    cases = {
        tmp_path / "file" / "set": "Not a directory",
        Path("/proc/nowhere/set"): "No such file or directory",
        tmp_path / ("x" * 300): "File name too long",
    }
    for out, words in cases.items():
        assert_one_line(call(*little.command, "--out", out), str(out), words, reports=1)
    done = call(*complete, "--dali-index")
    assert_one_line(done, str(small_disk.path), read_only, reports=2, status=EXIT_MACHINE)
    assert "already complete" in succeed(*complete).stderr, "which needs nothing written"
