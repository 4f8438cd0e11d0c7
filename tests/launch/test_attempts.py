"""launch/attempts.py: what ranks leave behind, and who is to blame for the end of an attempt."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.attempts import (
    bad_nodes,
    endings,
    first_to_end,
    fruitless_restarts,
    is_mistake,
    note_failure,
    progress,
)

ROOT = Path(__file__).parents[2]


def attempt(folder: Path, *ranks: str) -> Path:
    """A folder with a mark for each rank, such as "n1 75 12.5"."""
    folder.mkdir()
    for number, text in enumerate(ranks):
        (folder / f"rank-{number}").write_text(text)
    return folder


# --- who ended an attempt


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        # three nodes, one of them raises; the others lose contact or are killed without a word
        (("n1 76 11", "n2 error 10", "n3"), "rank 1 on n2 ended with an error, see above"),
        (("n1 76 11", "n2 killed 10", "n3"), "rank 1 on n2 was killed"),
        # srun ends those that are not in training yet by SIGTERM: they were not asked to leave
        (("n1 75 12", "n2 killed 10", "n3 killed 13"), "rank 1 on n2 was killed"),
        (("n1 75 10", "n2 killed 10.1"), "rank 1 on n2 was killed"),  # n1's clock is behind
        (("n1 75 10", "n2 75 10.1"), "asked to leave"),
        (("n1 75 10", "n2"), "asked to leave"),
        (("n1 error 11", "n2 74 10"), "rank 1 on n2 ended with status 74"),
        (("n1 0 9", "n2 error 10"), "rank 1 on n2 ended with an error, see above"),
        # the machine of one node is gone without a word
        (("n1 76 10", "n2 76 10", "n3", "n3"), "rank 2 on n3 was killed"),
        (("n1 76 10", "n2", "n3"), None),  # two are silent: nobody can tell
        (("n1", "n2"), None),  # the job was cancelled, or Slurm took it back
        (("n1 76 10", "n2 76 11"), None),  # all waited for each other: a network, or a hang
        (("", "n2 75"), None),  # marks that were being written
        ((), None),
    ],
)
def test_the_first_to_end_for_a_reason_of_its_own_is_the_cause(tmp_path, ranks, said):
    first = first_to_end(endings(attempt(tmp_path / "0", *ranks)))
    assert (first and str(first)) == said


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (("n1 2 10", "n2"), True),  # rank 0 meets what all meet, and speaks first
        (("n1 2 11", "n1 2 10"), True),
        (("n1 76 12", "n2 2 10", "n3 2 11"), True),
        (("n1 76 12", "n2 2 10"), False),  # a data set that one node does not see
        (("n1 76 12", "n2 2 10", "n2 2 10"), False),
        (("n1 2 11", "n2 killed 10"), False),
        (("n1 75 10", "n2 2 11"), False),
        ((), False),
    ],
)
def test_a_mistake_of_the_user_is_not_what_one_node_alone_meets(tmp_path, ranks, expected):
    assert is_mistake(endings(attempt(tmp_path / "0", *ranks))) == expected


RAISED = ("n1 76 11", "n2 error 10", "n3")
LEFT = ("n1 75 10", "n2", "n3 75 15")
HUNG = ("n1 killed 10.5", "n2 killed 10", "n3 76 11")  # by NCCL's watchdogs, whoever is to blame


@pytest.mark.parametrize(
    ("attempts", "bad"),
    [
        ([RAISED], []),
        ([RAISED, RAISED], ["n2"]),
        ([("n1 76 11", "n2 killed 10", "n3")] * 2, ["n2"]),
        ([RAISED, LEFT, ("n1 76 11", "n2 74 10")], ["n2"]),
        ([RAISED, ("n1 76 11", "n2", "n3 error 9")], []),  # once each
        ([LEFT, LEFT, LEFT], []),  # time limits and preemptions
        ([HUNG] * 3, []),
        ([("n1", "n2")] * 3, []),  # a controller that was away
        ([("n1 2 10", "n2")] * 2, []),
        ([("n1 76 12", "n2 2 10")] * 2, ["n2"]),
        ([RAISED, RAISED, *[("n1 killed 10", "n2 76 11")] * 3], ["n1", "n2"]),  # the worst first
    ],
)
def test_a_node_is_bad_that_has_ended_two_attempts(tmp_path, attempts, bad):
    for number, ranks in enumerate(attempts):
        attempt(tmp_path / str(number), *ranks)
    assert bad_nodes(tmp_path, len(attempts)) == bad
    assert bad_nodes(tmp_path, 1) == [], "later attempts do not count"


def test_attempts_that_never_began_are_passed_over(tmp_path):
    attempt(tmp_path / "3", *RAISED)
    attempt(tmp_path / "5", *RAISED)
    assert bad_nodes(tmp_path, 6) == ["n2"]


# --- progress


def test_of_what_is_no_training_files_are_progress(tmp_path):
    counted = [progress(tmp_path)]
    (tmp_path / ".partial").mkdir()
    for name in ("train-000000.tar", ".partial/train-000000.arrow"):
        (tmp_path / name).touch()
        counted.append(progress(tmp_path))
    assert counted == [0, 1, 2]


def test_restarts_count_that_have_made_no_new_checkpoint(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    assert progress(tmp_path / "run") == 0
    checkpoints.mkdir(parents=True)
    (checkpoints.parent / "config.yaml").touch()
    counted = []
    for number, step in enumerate((0, 0, 20, 20, 20, 20)):
        (checkpoints / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        (checkpoints / f".step-{step + 5:08d}.ab.partial").mkdir(exist_ok=True)
        (checkpoints / "step-notes").mkdir(exist_ok=True)
        note_failure(attempt(tmp_path / str(number)), progress(tmp_path / "run"))
        counted.append(fruitless_restarts(tmp_path, progress(tmp_path / "run")))
    assert counted == [0, 1, 0, 1, 2, 3]


# --- marks: a real process that ends in every way

RANK = """
import os, signal, sys, time
from pathlib import Path
from launch.attempts import LEAVE, Mark
mark = Mark(Path(sys.argv[1]), 0, "n1")
for number in LEAVE:
    signal.signal(number, lambda *_: None)
print("up", flush=True)
{rest}
"""


ASKED = "os.kill(os.getpid(), signal.SIGTERM)"


def end_of(folder: Path, rest: str, *signals: int) -> tuple[str, float]:
    """Status and time of a rank that does ``rest``, or is sent signals."""
    command = [sys.executable, "-c", RANK.format(rest=rest), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        for number in signals:
            time.sleep(0.3)
            process.send_signal(number)
        process.stdout.read()  # until the child beside it is gone as well
        process.wait(30)
    (rank,) = endings(folder)
    assert rank.node == "n1"
    return rank.status, rank.time


@pytest.mark.parametrize(
    ("rest", "signals", "status"),
    [
        ("mark.end(3)", (), "3"),
        ("mark.end(74); mark.end(1)", (), "74"),
        ("time.sleep(60)", (signal.SIGKILL,), "killed"),
        ("os.abort()", (), "killed"),
        ("os._exit(0)", (), "killed"),  # a library that ends the process is no good end either
        ("while True: time.sleep(1)", (signal.SIGTERM, signal.SIGKILL), "75"),
        ("while True: time.sleep(1)", (signal.SIGUSR2, signal.SIGKILL), "75"),
        ("mark.end(2); time.sleep(60)", (signal.SIGKILL,), "2"),
        # after the signal: whatever fails then is no failure of the node
        (f"{ASKED}; mark.end('error')", (), "75"),
        (f"{ASKED}; mark.end(74)", (), "75"),
        (f"{ASKED}; mark.end(76)", (), "76"),
        (f"{ASKED}; mark.end(2)", (), "2"),
        (f"{ASKED}; mark.end(0)", (), "0"),
    ],
)
def test_however_a_rank_ends_it_is_known(tmp_path, rest, signals, status):
    before = time.time()
    said, when = end_of(tmp_path, rest, *signals)
    assert said == status and before - 0.01 <= when <= time.time()


def test_who_did_not_leave_in_time_was_asked_when_the_signal_came(tmp_path):
    started = time.time()
    _, when = end_of(tmp_path, "while True: time.sleep(1)", *[signal.SIGTERM] * 4, signal.SIGKILL)
    assert time.time() - when > 1.0 and when > started


def test_a_rank_that_is_killed_with_its_whole_step_leaves_no_word(tmp_path):
    command = [sys.executable, "-c", RANK.format(rest="time.sleep(60)"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    (rank,) = endings(tmp_path)
    assert (rank.node, rank.status) == ("n1", "")
