"""One data set, whoever makes it and however often it is interrupted: tasks, kills, Ctrl-C, two at
once.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest
from PIL import Image

from lt_train.files import file_sha256
from tests.helpers.data_prep_runs import (
    LIMIT,
    assert_one_line,
    call,
    command,
    finished,
    identity,
    noise,
    succeed,
    tree,
)
from tests.helpers.pictures import encode
from tests.helpers.sources import fill


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, of which nothing is left after the block."""
    pipe = {"stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(*arguments), start_new_session=True, **pipe)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def end_of(process: subprocess.Popen) -> subprocess.CompletedProcess:
    _, errors = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, "", errors)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def children(process: subprocess.Popen) -> list[int]:
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        return [*map(int, file.read_text().split())]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state(pid: int) -> str:
    """The kernel's letter for what a process does; X: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@dataclass(frozen=True)
class Big:
    """Enough images to be interrupted, how to prepare them (``--out`` left out), and what an
    undisturbed run makes of them.
    """

    command: list[str]
    tree: dict[str, str]

    @property
    def shards(self) -> int:
        return sum(name.endswith(".tar") for name in self.tree)


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Big:
    root = tmp_path_factory.mktemp("big")
    pixels = [Image.fromarray(noise(number, 256)) for number in range(8)]
    images = [encode(image, "JPEG", quality=90) for image in pixels]
    sizes = {
        "train/many": 360,
        "train/medium": 90,
        "train/few": 7,
        "test/many": 20,
        "test/medium": 20,
        "test/few": 20,
    }
    names = [f"{folder}/{n:04d}.jpg" for folder, size in sizes.items() for n in range(size)]
    fill(root / "photos", dict(zip(names, cycle(images))))
    arguments = ["folder", "--source", str(root / "photos"), "--samples-per-shard", "10"]
    succeed(*arguments, "--out", root / "set", "--workers", 1)
    return Big(arguments, tree(root / "set"))


@pytest.mark.slow
def test_two_workers_make_the_same_files_as_one(big, tmp_path):
    succeed(*big.command, "--out", tmp_path / "set", "--workers", 2)
    assert tree(tmp_path / "set") == big.tree
    assert big.shards == 46 + 6


@pytest.mark.slow
def test_tasks_in_any_order_make_the_same_files(big, tmp_path):
    """Each but the last says how many shards are missing; once the set is complete, any of them
    says so and writes nothing.
    """
    for number, order in enumerate([(0, 1, 2), (2, 0, 1)]):
        out, left = tmp_path / str(number) / "set", big.shards
        for task in order[:-1]:
            done = succeed(*big.command, "--out", out, "--task", f"{task}/3")
            left -= len(range(task, big.shards, 3))
            assert f"; {left} shards of other tasks are missing" in done.stderr
            assert "complete," not in done.stderr
            assert not (out / "dataset.json").exists()
        done = succeed(*big.command, "--out", out, "--task", f"{order[-1]}/3")
        assert done.stderr.rstrip().endswith(", complete")
        assert tree(out) == big.tree
    assert "already complete" in succeed(*big.command, "--out", out, "--task", "1/3").stderr
    assert tree(out) == big.tree


@pytest.mark.slow
def test_tasks_at_the_same_time_make_the_same_files(big, tmp_path):
    out = tmp_path / "set"
    tasks = []
    for task in range(3):
        words = command(*big.command, "--out", out, "--task", f"{task}/3", "--workers", 1)
        tasks.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True))
    ends = [end_of(task) for task in tasks]
    for end in ends:
        assert end.returncode == 0, end.stderr
    assert any(end.stderr.rstrip().endswith(", complete") for end in ends)
    assert tree(out) == big.tree


@pytest.mark.slow
def test_a_finished_task_writes_nothing_while_others_are_missing(big, tmp_path):
    arguments = [*big.command, "--out", tmp_path / "set", "--task", "0/20"]
    succeed(*arguments)
    before = identity(finished(tmp_path / "set"))
    done = succeed(*arguments)
    for words in (
        "0 images",
        "3 shards were finished before",
        "49 shards of other tasks are missing",
    ):
        assert words in done.stderr
    assert len(before) == 3 and identity(list(before)) == before


DISTURBANCES = {  # what happens to a run with its workers -> exit status, words of its one line
    "kill -9": (-signal.SIGKILL, None),
    "kill -9 of a worker": (2, "a worker process was killed"),
    "Ctrl-C": (130, "interrupted"),
    "Ctrl-C as workers start": (130, "interrupted"),
}


def disturb(process: subprocess.Popen, kind: str, out: Path) -> list[int]:
    """Returns the worker processes that there were."""
    if kind == "Ctrl-C as workers start":
        while not children(process):  # without a pause: the moment is short
            assert process.poll() is None
    else:
        wait_until(lambda: len(finished(out)) >= 2 or process.poll() is not None)
    workers = children(process)
    if kind == "kill -9":
        process.kill()
    elif kind == "kill -9 of a worker":
        os.kill(workers[0], signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)
    return workers


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_a_disturbed_run_leaves_no_process_and_goes_on(big, tmp_path, kind):
    """The same command again keeps what is finished and ends with the bytes of an undisturbed
    run.
    """
    out, (status, words) = tmp_path / "set", DISTURBANCES[kind]
    arguments = [*big.command, "--out", out, "--workers", 2]
    with running(*arguments) as process:
        workers = disturb(process, kind, out)
        end = end_of(process)
        assert end.returncode == status, end.stderr
        assert len(workers) == 2 or kind == "Ctrl-C as workers start"
        wait_until(lambda: all(state(pid) in "ZX" for pid in workers))
    understood, *lines = end.stderr.splitlines()
    assert understood == "set: 517 images of 3 classes: train 457, test 60"
    if words is None:
        assert not lines
    else:
        (line,) = lines
        assert words in line
        assert not list((out / ".partial").glob("*.tmp")), "what was half-written takes no space"
    before = identity(finished(out))
    assert len(before) < big.shards and not (out / "dataset.json").exists()
    named = {path.name: file_sha256(path) for path in out.glob("*.tar")}
    assert named.items() <= big.tree.items(), "what has its final name is whole"
    done = succeed(*arguments)
    assert tree(out) == big.tree
    assert identity(list(before)) == before
    if kind != "Ctrl-C as workers start":
        assert len(before) >= 2
        assert f"{len(before)} shards were finished before" in done.stderr


@contextmanager
def halted(*arguments: str | Path, out: Path) -> Iterator[subprocess.Popen]:
    """A run that stands still in the middle of its work, with all its processes."""
    with running(*arguments, "--out", out) as process:
        wait_until(lambda: finished(out) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGSTOP)
        wait_until(lambda: all(state(pid) == "T" for pid in (process.pid, *children(process))))
        assert process.poll() is None and not (out / "dataset.json").exists()
        yield process


@pytest.mark.slow
def test_a_second_run_is_refused_and_the_first_finishes_undisturbed(big, tmp_path):
    out = tmp_path / "set"
    with halted(*big.command, "--workers", 2, out=out) as first:
        before = tree(out)
        for arguments in ([], ["--task", "1/2"]):
            done = call(*big.command, "--out", out, *arguments)
            assert_one_line(done, "another data_prep is writing to", str(out), reports=1)
        assert tree(out) == before
        os.killpg(first.pid, signal.SIGCONT)
        end = end_of(first)
    assert end.returncode == 0 and end.stderr.rstrip().endswith(", complete")
    assert tree(out) == big.tree


@pytest.mark.slow
def test_a_task_runs_once_at_a_time_and_not_beside_a_run_of_all(big, tmp_path):
    out = tmp_path / "set"
    with halted(*big.command, "--task", "1/2", "--workers", 1, out=out) as first:
        for arguments in (["--task", "1/2"], []):
            done = call(*big.command, "--out", out, *arguments)
            assert_one_line(done, "another data_prep is writing to", str(out), reports=1)
        other = succeed(*big.command, "--out", out, "--task", "0/2")
        assert "shards of other tasks are missing" in other.stderr
        # as if a third one were writing the manifest
        with open(out / ".partial" / "finish.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.killpg(first.pid, signal.SIGCONT)
            wait_until(lambda: waits_for_a_lock(first.pid) or first.poll() is not None)
            assert len(finished(out)) == big.shards and not (out / "dataset.json").exists()
        end = end_of(first)
    assert end.returncode == 0 and end.stderr.rstrip().endswith(", complete")
    assert tree(out) == big.tree


def waits_for_a_lock(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any({"->", str(pid)} <= set(line.split()) for line in lines)
