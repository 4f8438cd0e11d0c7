"""How far a run is, as its metrics.jsonl tells, and what is told of jobs that wait."""

import io
import json

import pytest
from rich.console import Console

from launch import status
from launch.cluster import Waiting
from launch.status import Progress, follow, read_progress, show_stages, wait
from launch.submission import Submitted
from lt_train.errors import UserError

TRAINED = {"step": 5, "last_step": 9, "images_per_s": 80.5, "seconds_left": 3.0, "loss": 1.0}


def test_a_run_that_has_logged_nothing_has_no_progress(tmp_path):
    assert read_progress(str(tmp_path)) is None
    (tmp_path / "metrics.jsonl").write_text("")
    assert read_progress(str(tmp_path)) is None


@pytest.mark.parametrize(
    "after",
    [
        b'{"step": 5, "split": "val", "top1": 3.0}\n',
        b'{"step": 6, "last_st',
        b"5\n",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        b"[" * 10**5,
        json.dumps({**TRAINED, "step": "x"}).encode(),
        json.dumps({**TRAINED, "seconds_left": float("inf")}).encode(),
        json.dumps({**TRAINED, "seconds_left": float("nan")}).encode(),
        json.dumps({**TRAINED, "last_step": 10**400}).encode(),
    ],
    ids=lambda after: after[:40].decode("latin-1"),
)
def test_what_follows_the_last_good_line_is_passed_over(tmp_path, after):
    (tmp_path / "metrics.jsonl").write_bytes(json.dumps(TRAINED).encode() + b"\n" + after)
    assert read_progress(str(tmp_path)) == Progress(5, 9, 80.5, 3.0)


# --- jobs that wait

FOR_EVER, SOON = Waiting("PartitionNodeLimit", ""), Waiting("Resources", "2026-11-28T10:12:22")


@pytest.fixture
def queue(monkeypatch):
    """Function: what Slurm answers to each look, (state, why it waits) of job 7; returns what it is
    told to cancel.
    """

    def answer(*looks) -> list[tuple[str, ...]]:
        states, reasons = iter([state for state, _ in looks]), iter([why for _, why in looks])

        def state(jobs):
            now = next(states)
            if isinstance(now, BaseException):
                raise now
            return {"7": (now, 0)}

        def why(jobs):
            now = next(reasons)
            return {"7": now} if now else {}

        cancelled = []
        monkeypatch.setattr(status, "job_states", state)
        monkeypatch.setattr(status, "waiting", why)
        monkeypatch.setattr(status, "slurm", lambda *command: cancelled.append(command))
        monkeypatch.setattr(status, "POLL_SECONDS", 0.0)
        return cancelled

    return answer


@pytest.fixture
def console():
    return Console(file=io.StringIO(), soft_wrap=True)


STAGE = Submitted("moco", "train", "runs/x", "7", 6, 6, "log")


def test_status_and_follow_say_why_a_job_waits(queue, console, monkeypatch):
    monkeypatch.setattr(status, "read_submission", lambda root: [STAGE])
    queue(("PENDING", FOR_EVER))
    show_stages("runs/x", console)
    assert "job 7 waits: PartitionNodeLimit: the partition gives no" in console.file.getvalue()
    later = Waiting("Resources", "2026-11-28T11:00:00")  # of which follow makes no new line
    queue(("PENDING", SOON), ("PENDING", later), ("RUNNING", None), ("COMPLETED", None))
    assert follow([STAGE], console)
    lines = [line.partition(" ")[2] for line in console.file.getvalue().splitlines()[-3:]]
    assert lines == [
        "moco (job 7): PENDING (Resources, expected to start 2026-11-28T10:12:22)",
        "moco (job 7): RUNNING",
        "moco (job 7): COMPLETED",
    ]


def test_who_waits_for_a_job_is_told_why_it_waits(queue, console):
    cancelled = queue(("PENDING", SOON), ("PENDING", SOON), ("RUNNING", None), ("FAILED", None))
    assert wait(["7"], console) == {"7": "FAILED"} and cancelled == []
    assert console.file.getvalue().count("job 7 waits: Resources, expected") == 1


def test_nobody_waits_for_a_job_that_cannot_start(queue, console):
    cancelled = queue(("PENDING", FOR_EVER))
    with pytest.raises(UserError, match="job 7 cannot start, and is cancelled: PartitionNode"):
        wait(["7"], console)
    assert cancelled == [("scancel", "7")]


def test_a_job_does_not_outlive_the_one_who_waited_for_it(queue, console):
    cancelled = queue(("PENDING", None), (KeyboardInterrupt(), None))
    with pytest.raises(KeyboardInterrupt):
        wait(["7"], console)
    assert cancelled == [("scancel", "7")]
