"""launch/job.py: what a job decides before and after an attempt, and what its ranks and tasks leave
behind.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import job
from launch.job import RankJob, TaskJob, bad_nodes, begin, end
from lt_train.errors import LostPeer, UserError
from tests.helpers.stubs import stub

ROOT = Path(__file__).parents[2]


# --- before and after an attempt: SLURM's variables, and a scontrol that keeps what it was asked


@pytest.fixture
def slurm_job(tmp_path, monkeypatch):
    """Job 71 on n1 and n2. Function: its folder of attempts, at a restart count."""
    record = f'echo "$@" >> {tmp_path}/asked'
    nodes = 'if [ "$1" = show ]; then echo n1; echo n2; fi'
    refusal = f"[ -e {tmp_path}/waits ] || {{ touch {tmp_path}/waits; exit 1; }}"
    stub(tmp_path, "scontrol", record, nodes, f'[ "$1" != update ] || {refusal}')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in {
        "JOB_ID": "71",
        "STEP_ID": "0",
        "PROCID": "0",
        "JOB_NODELIST": "n[1-2]",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    for name in ("SLURM_ARRAY_JOB_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    attempts = tmp_path / "slurm" / "1" / "moco" / "attempts"
    attempts.mkdir(parents=True)

    def restart(number: int) -> Path:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        return attempts

    handlers = {number: signal.getsignal(number) for number in job.LEAVE}
    yield restart
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def asked(tmp_path):
    """Function: what scontrol was asked to do."""
    return lambda: (
        [
            line
            for line in (tmp_path / "asked").read_text().splitlines()
            if not line.startswith("show")
        ]
        if (tmp_path / "asked").exists()
        else []
    )


def mark(attempts: Path, restart: int, **ranks: str) -> None:
    (attempts / str(restart)).mkdir()
    for rank, text in ranks.items():
        (attempts / str(restart) / rank.replace("_", "-")).write_text(text)


@pytest.mark.parametrize(
    ("marks", "status", "restart", "leaves", "requeued", "words"),
    [
        ({"rank_0": "n1 0", "rank_1": "n2 0"}, 0, 0, 0, False, ""),
        ({"rank_0": "n1 2", "rank_1": "n2"}, 143, 0, 2, False, "a mistake"),
        ({}, 2, 0, 2, False, "a mistake"),
        (
            {"rank_0": "n1 75", "rank_1": "n2 75"},
            75,
            0,
            75,
            True,
            "asked to leave: restart 1 of at most 3",
        ),
        (
            {"rank_0": "n1 75", "rank_1": "n2"},
            137,
            2,
            137,
            True,
            "asked to leave: restart 3 of at most 3",
        ),
        ({"rank_0": "n1 75"}, 75, 3, 75, False, "asked to leave, after 3 restarts: giving up"),
        (
            {"rank_0": "n1 error", "rank_1": "n2 76"},
            1,
            0,
            1,
            True,
            "ended with status 1: restart 1",
        ),
        ({}, 1, 1, 1, True, "ended with status 1: restart 2"),
        (
            {"rank_0": "n1 74", "rank_1": "n2 76"},
            74,
            0,
            74,
            True,
            "ended with status 74: restart 1",
        ),
        (
            {"rank_0": "n1", "rank_1": "n2 76"},
            137,
            3,
            137,
            False,
            "ended with status 137, after 3 restarts: giving up",
        ),
    ],
)
def test_what_follows_an_attempt(
    slurm_job, asked, capsys, marks, status, restart, leaves, requeued, words
):
    attempts = slurm_job(restart)
    mark(attempts, restart, **marks)
    assert end(attempts, status, 3) == leaves
    assert asked() == (["requeue 71"] if requeued else [])
    assert words in capsys.readouterr().err


def test_of_an_array_the_task_alone_starts_again(slurm_job, asked, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    end(slurm_job(0), 75, 3)
    assert asked() == ["requeue 70_4"]


def test_a_job_that_slurm_does_not_take_back_is_one_line(slurm_job, capsys, tmp_path):
    stub(tmp_path, "scontrol", "echo 'Requested operation is presently disabled' >&2; exit 1")
    assert end(slurm_job(0), 75, 3) == 75
    assert capsys.readouterr().err.splitlines()[1:] == [
        "launch: cannot restart: Requested operation is presently disabled"
    ]


def test_a_node_is_bad_when_it_fails_twice_while_others_live(tmp_path):
    mark(tmp_path, 0, rank_0="n1 76", rank_1="n2", rank_2="n2")
    assert bad_nodes(tmp_path, 1) == set()  # once, though with two ranks
    mark(
        tmp_path, 1, rank_0="n1", rank_1="n2"
    )  # all vanished: the job was cancelled, or the controller was away
    mark(tmp_path, 2, rank_0="n1", rank_1="n2 0", rank_2="")
    assert bad_nodes(tmp_path, 3) == set()
    mark(tmp_path, 4, rank_0="n1 error", rank_1="n2")  # attempt 3 never began
    assert bad_nodes(tmp_path, 4) == set() and bad_nodes(tmp_path, 5) == {"n2"}


def test_a_job_leaves_a_node_that_failed_twice(slurm_job, asked, capsys):
    attempts = slurm_job(1)
    mark(attempts, 0, rank_0="n1 76", rank_1="n2")
    mark(attempts, 1, rank_0="n1 76", rank_1="n2")
    end(attempts, 1, 9)
    update = "update JobId=71 ExcNodeList=n2"
    assert asked() == ["requeue 71", update, update]  # at first the job did not wait yet
    assert "excluded: n2" in capsys.readouterr().err
    assert begin(slurm_job(2), 9) == 1 and asked()[3:] == [
        "requeue 71",
        update,
    ]  # Slurm gave it again
    assert begin(slurm_job(9), 9) == 0 and len(asked()) == 5  # no restart is left


def test_an_attempt_begins_without_what_earlier_ones_left(slurm_job, asked, tmp_path):
    attempts = slurm_job(1)
    folder = attempts.parent
    names = (
        "71_0_result.pkl",
        "71_3_result.pkl",
        "171_0_result.pkl",
        "7_1_result.pkl",
        "71_submitted.pkl",
        "71_0_log.out",
    )
    for name in names:
        (folder / name).touch()
    mark(attempts, 0, rank_0="n1 75")
    mark(attempts, 1, rank_0="n1")
    assert begin(attempts, 3) == 0 and asked() == []
    assert {path.name for path in folder.iterdir()} == {*names[2:], "attempts"}
    assert (attempts / "0" / "rank-0").exists() and not list((attempts / "1").iterdir())


def test_an_array_task_forgets_its_own_results_alone(slurm_job, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    attempts = slurm_job(0)
    for name in ("70_1_0_result.pkl", "70_0_1_result.pkl", "70_11_0_result.pkl"):
        (attempts.parent / name).touch()
    assert begin(attempts / "1", 3) == 0
    assert sorted(path.name for path in attempts.parent.glob("*.pkl")) == [
        "70_0_1_result.pkl",
        "70_11_0_result.pkl",
    ]


# --- ranks and tasks


def leave(error: BaseException):
    """A main that raises."""

    def main(words: list[str]) -> int:
        raise error

    return main


def stop_oneself(words: list[str]) -> int:
    os.kill(os.getpid(), signal.SIGUSR2)
    return 0


@pytest.mark.parametrize(
    ("main", "raised", "status"),
    [
        (lambda words: 0, None, 0),
        (lambda words: None, None, 0),
        (lambda words: 75, SystemExit, 75),
        (lambda words: 3 if words == ["a", "b"] else 0, SystemExit, 3),
        (leave(UserError("x")), SystemExit, 2),
        (leave(LostPeer("x")), SystemExit, 76),
        (leave(SystemExit(5)), SystemExit, 5),
        (leave(SystemExit(None)), None, 0),
        (leave(RuntimeError("x")), RuntimeError, "error"),
        (stop_oneself, SystemExit, 75),
    ],
)
def test_a_rank_leaves_its_node_and_how_it_ended(slurm_job, main, raised, status):
    attempts = slurm_job(2)
    mark(attempts, 2)
    file = attempts / "2" / "rank-0"
    during = []

    def watched(words: list[str]) -> int:
        during.append((file.read_text(), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        return main(words)

    call = RankJob(watched, ("lt_train", "a", "b"), str(attempts))
    if raised:
        with pytest.raises(raised) as caught:
            call()
        assert raised is not SystemExit or caught.value.code == status
    else:
        call()
    ((node, address, port),) = during
    assert (node, address, file.read_text()) == (
        "n1",
        "n1",
        f"n1 {status}",
    ) and 20_000 <= port < 40_000


def test_ranks_meet_at_another_port_after_a_restart(slurm_job):
    ports = []
    for restart in (0, 1):
        attempts = slurm_job(restart)
        mark(attempts, restart)
        RankJob(lambda words: ports.append(os.environ["MASTER_PORT"]), ("x",), str(attempts))()
    assert ports[0] != ports[1]


def run_task(folder: Path, module: str, call: str) -> subprocess.Popen:
    """A process that makes a call of TaskJob, whose module has this text."""
    (folder / "part.py").write_text(module)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.Popen(
        [sys.executable, "-c", f"from launch.job import TaskJob; {call}"],
        env=environment,
        cwd=folder,
    )


@pytest.mark.parametrize(("count", "words"), [(1, ["a b"]), (4, ["a b", "--task", "3/4"])])
def test_a_task_passes_its_number_on_and_its_status_back(tmp_path, count, words):
    module = (
        "import pathlib, sys\npathlib.Path('words').write_text(repr(sys.argv[1:]))\nsys.exit(2)\n"
    )
    task = run_task(tmp_path, module, f"{TaskJob('part', ('a b',), count - 1, count)}()")
    assert task.wait(30) == 2 and (tmp_path / "words").read_text() == repr(words)


def test_a_task_that_is_asked_to_leave_ends_its_child(tmp_path):
    module = (
        "import os, pathlib,"
        " time\npathlib.Path('new').write_text(str(os.getpid()))\nos.rename('new',"
        " 'child')\ntime.sleep(60)\n"
    )
    task = run_task(tmp_path, module, f"{TaskJob('part', (), 0, 1)}()")
    deadline = time.monotonic() + 30
    while not (tmp_path / "child").exists():
        assert time.monotonic() < deadline and task.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)  # its parent has set its handlers
    task.terminate()
    assert task.wait(30) == 75
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)
