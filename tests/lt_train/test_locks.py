"""One writer a folder: who is refused, who takes over, and what a killed holder leaves."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lt_train import locks
from lt_train.errors import UserError
from lt_train.locks import FolderLock, Holder, one_at_a_time, read_holder, this_process

HOLD = """
import sys, time
from pathlib import Path
from lt_train.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]))
assert lock.take(0) is None
print("held", flush=True)
time.sleep(120)
"""


@contextmanager
def held_by_another(
    folder: Path, script: str = HOLD, **environment: str
) -> Iterator[subprocess.Popen]:
    """A process that holds the folder's lock."""
    command = [sys.executable, "-c", script, str(folder)]
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def lock(tmp_path) -> Iterator[FolderLock]:
    lock = FolderLock(tmp_path)
    yield lock
    lock.release()


def holder_in(folder: Path) -> Holder:
    return read_holder((folder / "run.lock").read_bytes())


def written(folder: Path, holder: Holder, seconds_ago: float = 0.0) -> None:
    """As if this holder had shown its last sign of life so long ago."""
    path = folder / "run.lock"
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - seconds_ago,) * 2)


def test_the_file_says_who_holds_it_and_is_gone_afterwards(lock, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("USER", "ada")
    assert lock.take() is None and lock.is_held
    holder = holder_in(tmp_path)
    assert (holder.user, holder.pid, holder.job, holder.restart) == ("ada", os.getpid(), "77", 2)
    assert holder.command and str(os.getpid()) in str(holder) and "job 77" in str(holder)
    lock.check()
    lock.release()
    assert list(tmp_path.iterdir()) == [] and not lock.is_held


def test_a_second_process_is_told_who_holds_it_until_that_is_killed(lock, tmp_path):
    with held_by_another(tmp_path) as other:
        before = (tmp_path / "run.lock").read_bytes()
        busy = lock.take(0).who
        assert busy == f"{tmp_path} is in use by {holder_in(tmp_path)}"
        assert f"pid {other.pid} on " in busy and ", since " in busy
        assert (tmp_path / "run.lock").read_bytes() == before and not lock.is_held
        token = holder_in(tmp_path).token
        other.kill()
        assert lock.take(locks.GRACE) is None, "nothing of it is in the way"
        assert holder_in(tmp_path).token == token + 1 and holder_in(tmp_path).pid == os.getpid()


def test_a_holder_that_stands_still_holds_it_all_the_same(lock, tmp_path):
    with held_by_another(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        assert "is in use by" in lock.take(0).who


@pytest.mark.parametrize(
    ("job", "restart", "takes_over"),
    [("77", "2", True), ("77", "1", False), ("77", "0", False), ("78", "2", False)],
)
def test_a_later_attempt_of_the_same_job_takes_over(
    lock, tmp_path, monkeypatch, job, restart, takes_over
):
    with held_by_another(tmp_path, SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1"):
        old = holder_in(tmp_path)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        assert (lock.take(0) is None) == takes_over
        assert (holder_in(tmp_path).token > old.token) == takes_over
        monkeypatch.undo()
        assert "is in use by" in FolderLock(tmp_path).take(0).who, "also after it has changed hands"


def test_who_was_overtaken_is_told_by_whom_and_leaves_the_lock_alone(lock, tmp_path):
    assert lock.take() is None
    other = replace(this_process(lock_token(tmp_path) + 1), host="node7", pid=5)
    (tmp_path / "new").write_text(json.dumps(asdict(other)))
    os.replace(tmp_path / "new", tmp_path / "run.lock")
    with pytest.raises(UserError, match="taken over by pid 5 on node7 .*writes nothing more") as it:
        lock.check()
    assert it.value.status == 2, "no launcher starts it again"
    lock.release()
    assert holder_in(tmp_path) == other


def lock_token(folder: Path) -> int:
    return holder_in(folder).token


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_lock_that_was_removed_or_damaged_stops_the_run(lock, tmp_path, content):
    assert lock.take() is None
    (tmp_path / "run.lock").unlink()
    if content is not None:
        (tmp_path / "run.lock").write_bytes(content)
    with pytest.raises(UserError, match="taken over by a run that has ended since, or removed"):
        lock.check()


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"token": "x"}', "\xff"])
def test_a_file_that_names_nobody_is_in_nobody_s_way(lock, tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content.encode("latin-1"))
    assert lock.take(0) is None and holder_in(tmp_path).pid == os.getpid()


def test_a_forked_child_that_outlives_the_holder_does_not_keep_it(lock, tmp_path):
    fork = HOLD.replace(
        "time.sleep", "import os; print(os.fork() or time.sleep(120), flush=True)\ntime.sleep"
    )
    with held_by_another(tmp_path, fork) as other:
        child = int(other.stdout.readline())
        other.kill()
        try:
            assert lock.take(locks.GRACE) is None
        finally:
            os.kill(child, signal.SIGKILL)


# a holder on another machine whose locks cannot be seen here

ELSEWHERE = replace(this_process(5), machine="another", host="node7")


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(locks, "LOST_AFTER", 0.4)
    monkeypatch.setattr(locks, "POLL", 0.05)


def test_who_shows_a_sign_of_life_elsewhere_is_believed(lock, tmp_path, quick):
    written(tmp_path, ELSEWHERE)
    busy = lock.take(0)
    assert "is in use by pid" in busy.who and not busy.is_certain
    os.utime(tmp_path / "run.lock")
    assert lock.take(0).is_certain and holder_in(tmp_path) == ELSEWHERE


def test_who_shows_none_is_gone(lock, tmp_path, quick):
    written(tmp_path, ELSEWHERE)
    assert not lock.take(0.2).is_certain
    assert lock.take(5) is None and holder_in(tmp_path).token == 6


def test_whose_last_was_long_ago_is_not_waited_for(lock, tmp_path):
    written(tmp_path, ELSEWHERE, seconds_ago=2 * locks.LONG_AGO)
    assert lock.take(0) is None


def test_a_holder_shows_that_it_lives(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    assert lock.take() is None
    os.utime(tmp_path / "run.lock", (1, 1))
    deadline = time.monotonic() + 10
    while (tmp_path / "run.lock").stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.time() - (tmp_path / "run.lock").stat().st_mtime < 60


# file systems without locks


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def without_locks(request, monkeypatch) -> None:
    def refuse(_descriptor, _kind):
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


def test_without_locks_the_token_counts_and_that_is_told(
    lock, tmp_path, without_locks, quick, capfd
):
    with held_by_another(tmp_path) as other:
        assert f"in use by pid {other.pid} on" in lock.take(0).who
        other.kill()
        other.wait()
        assert lock.take(0) is None
    assert "its file system has no locks" in capfd.readouterr().err
    written(tmp_path, ELSEWHERE)
    with pytest.raises(UserError, match="was taken over by pid"):
        lock.check()
    lock.release()
    assert FolderLock(tmp_path).take(5) is None, "after a minute without a sign"
    with one_at_a_time(tmp_path / "other"):
        pass


def test_without_locks_another_process_of_the_same_id_is_not_taken_for_the_holder(
    lock, tmp_path, without_locks, quick
):
    written(tmp_path, replace(this_process(5), pid=os.getppid()))
    assert lock.take(0).who and lock.take(5) is None


def test_other_errors_of_locks_are_not_passed_over(lock, monkeypatch):
    def fail(_descriptor, _kind):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"):
        lock.take(0)


COUNT = """
import sys
from pathlib import Path
from lt_train.locks import one_at_a_time
counter = Path(sys.argv[1]) / "counter"
for _ in range(200):
    with one_at_a_time(counter.with_name(".lock")):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_of_several_one_at_a_time_reads_and_writes_and_nothing_is_left(tmp_path):
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "600"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]
