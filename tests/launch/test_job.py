"""launch/job.py: what a job decides before and after an attempt, and what its ranks and tasks leave
behind.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import job, room
from launch.job import RankJob, TaskJob, begin, end
from lt_train.errors import LostPeer, UserError
from tests.helpers.stubs import stub

ROOT = Path(__file__).parents[2]


# --- before and after an attempt: SLURM's variables, and a scontrol that keeps what it was asked


@pytest.fixture
def slurm_job(tmp_path, monkeypatch):
    """Job 71 on n1 and n2. Function: its folder of attempts, at a restart count."""
    stub(
        tmp_path,
        "scontrol",
        f'[ "$1" = ping ] || echo "$@" >> {tmp_path}/asked',
        'case "$1" in',
        f"ping) [ ! -e {tmp_path}/away ] && echo 'Slurmctld(primary) at head is UP'; exit 0;;",
        "show) echo n1; echo n2;;",
        "write) echo '#!/bin/bash'; echo '#SBATCH --dependency=afterok:5'; echo 'srun x';;",
        # only a job that waits can be told to keep away from a node
        f"update) [ -e {tmp_path}/waits ] || {{ touch {tmp_path}/waits; exit 1; }};;",
        "esac",
    )
    stub(tmp_path, "squeue", f"cat {tmp_path}/excluded 2>/dev/null; exit 0")
    stub(
        tmp_path,
        "sbatch",
        f'echo "sbatch $@" "$(wc -l)" >> {tmp_path}/asked; [ ! -e {tmp_path}/full ]',
    )
    stub(tmp_path, "srun", f'echo "$@" >> {tmp_path}/steps')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in {
        "JOB_ID": "71",
        "STEP_ID": "0",
        "PROCID": "0",
        "JOB_NODELIST": "n[1-2]",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
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
            if not line.startswith(("show", "write"))
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
        ({"rank_0": "n1 0 9", "rank_1": "n2 0 9"}, 0, 0, 0, False, ""),
        ({"rank_0": "n1 2 9", "rank_1": "n2"}, 143, 0, 2, False, "a mistake"),
        # a time-out of gloo's, a wrong Python: whatever is not known to be a mistake is tried again
        ({}, 2, 0, 2, True, "ended with status 2: restart 1"),
        ({"rank_0": "n1 76 9", "rank_1": "n2 2 8"}, 2, 0, 2, True, "rank 1 on n2 ended with"),
        ({"rank_0": "n1 75 9", "rank_1": "n2 75 9"}, 75, 0, 75, True, "asked to leave: restart 1"),
        ({"rank_0": "n1 75 9", "rank_1": "n2"}, 137, 2, 137, True, "restart 3 of at most 3"),
        ({"rank_0": "n1 75 9"}, 75, 3, 75, False, "asked to leave, after 3 restarts: giving up"),
        ({"rank_0": "n1 75 9", "rank_1": "n2 killed 8"}, 137, 0, 137, True, "n2 was killed: rest"),
        ({"rank_0": "n1 error 8", "rank_1": "n2 76 9"}, 1, 0, 1, True, "an error, see above: rest"),
        ({}, 1, 1, 1, True, "ended with status 1: restart 2"),
        ({"rank_0": "n1 74 9", "rank_1": "n2 76 9"}, 74, 0, 74, True, "status 74: restart 1"),
        ({"rank_0": "n1", "rank_1": "n2 76 9"}, 137, 3, 137, False, "after 3 restarts: giving up"),
    ],
)
def test_what_follows_an_attempt(
    slurm_job, asked, capsys, tmp_path, marks, status, restart, leaves, requeued, words
):
    attempts = slurm_job(restart)
    mark(attempts, restart, **marks)
    assert end(attempts, tmp_path / "run", status, 3) == leaves
    assert asked() == (["requeue 71"] if requeued else [])
    assert words in capsys.readouterr().err


def test_restarts_go_on_while_there_is_progress_and_end_without(slurm_job, asked, capsys, tmp_path):
    steps = [0, 5, 5, 10, 10, 10, 10]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    for restart, step in enumerate(steps):
        (tmp_path / "run" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        attempts = slurm_job(restart)
        mark(attempts, restart, rank_0=f"n{restart} 74 9")
        assert end(attempts, tmp_path / "run", 74, 99) == 74
    assert len(asked()) == len(steps) - 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "3 restarts have come no further: giving up; submit again" in last


def test_preemptions_before_the_first_checkpoint_are_not_fruitless(slurm_job, asked, tmp_path):
    for restart in range(6):
        attempts = slurm_job(restart)
        mark(attempts, restart, rank_0="n1 75 9", rank_1="n2 75 10")
        end(attempts, tmp_path / "run", 75, 99)
    assert asked() == ["requeue 71"] * 6


def test_of_an_array_the_task_alone_starts_again(slurm_job, asked, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    attempts = slurm_job(0)
    mark(attempts, 0, rank_0="n1 75 9")
    end(attempts, attempts, 75, 3)
    assert asked() == ["requeue 70_4"]


def test_a_job_that_slurm_does_not_take_back_is_one_line(slurm_job, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "ASK_AGAIN", 0.01)
    stub(
        tmp_path,
        "scontrol",
        '[ "$1" = ping ] && { echo "Slurmctld(primary) at head is UP"; exit 0; }',
        "echo 'Requested operation is presently disabled' >&2; exit 1",
    )
    attempts = slurm_job(0)
    mark(attempts, 0, rank_0="n1 75 9")
    assert end(attempts, tmp_path / "run", 75, 3) == 75
    assert capsys.readouterr().err.splitlines()[1:] == [
        "launch: cannot restart: Requested operation is presently disabled"
    ]


def test_a_slurmctld_that_is_away_is_waited_for(slurm_job, asked, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "ASK_AGAIN", 0.1)
    (tmp_path / "away").touch()
    attempts = slurm_job(0)
    mark(attempts, 0, rank_0="n1 75 9")
    back = threading.Timer(0.6, (tmp_path / "away").unlink)
    back.start()
    assert end(attempts, tmp_path / "run", 75, 3) == 75
    assert asked() == ["requeue 71"] and not (tmp_path / "away").exists()
    assert capsys.readouterr().err.count("slurmctld does not answer") == 1


def test_a_slurmctld_that_leaves_while_it_is_asked_is_asked_again(
    slurm_job, asked, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(job, "ASK_AGAIN", 0.1)
    text = (tmp_path / "scontrol").read_text()
    once = (
        f"requeue) [ -e {tmp_path}/left ] || {{ touch {tmp_path}/left {tmp_path}/away; exit 1; }};;"
    )
    (tmp_path / "scontrol").write_text(text.replace("show)", f"{once}\nshow)"))
    attempts = slurm_job(0)
    mark(attempts, 0, rank_0="n1 75 9")
    threading.Timer(0.6, lambda: (tmp_path / "away").unlink(missing_ok=True)).start()
    assert end(attempts, tmp_path / "run", 75, 3) == 75
    assert asked() == ["requeue 71"] * 2 and "cannot restart" not in capsys.readouterr().err


FAILED = {"rank_0": "n1 76 9", "rank_1": "n2 killed 8", "rank_2": "n3"}


def test_a_job_leaves_a_node_that_failed_twice(slurm_job, asked, capsys, tmp_path):
    attempts = slurm_job(1)
    mark(attempts, 0, **FAILED)
    mark(attempts, 1, **FAILED)
    (tmp_path / "excluded").write_text("n[7-8]\n")  # as the site file says
    end(attempts, attempts, 1, 9)
    trial = "sbatch --test-only --exclude=n[7-8],n2 2"  # of a script without its dependency
    update = "update JobId=71 ExcNodeList=n[7-8],n2"
    assert asked() == [trial, "requeue 71", update, update]  # at first the job did not wait yet
    assert "excluded: n[7-8],n2" in capsys.readouterr().err
    # Slurm gave it again
    assert begin(slurm_job(2), 9) == 1 and asked()[4:] == [trial, "requeue 71", update]
    assert begin(slurm_job(9), 9) == 0 and len(asked()) == 7  # no restart is left
    mark(attempts, 3, rank_0="n1 killed 8", rank_1="n7 76 9")
    stub(tmp_path, "scontrol", (tmp_path / "scontrol").read_text().replace("echo n2", "echo n7"))
    end(slurm_job(3), attempts, 1, 9)
    assert asked()[7:] == ["requeue 71"], "the node has been left"


def test_a_job_does_not_leave_a_node_that_it_cannot_do_without(slurm_job, asked, capsys, tmp_path):
    attempts = slurm_job(1)
    mark(attempts, 0, **FAILED)
    mark(attempts, 1, **FAILED)
    (tmp_path / "full").touch()
    end(attempts, attempts, 1, 9)
    trial = "sbatch --test-only --exclude=n2 2"
    assert asked() == [trial, "requeue 71"]
    assert "node n2 failed 2 times, but the job cannot do without it" in capsys.readouterr().err
    assert begin(slurm_job(2), 9) == 0 and asked()[2:] == [trial]


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
    mark(attempts, 0, rank_0="n1 75 9")
    mark(attempts, 1, rank_0="n1")
    assert begin(attempts, 3) == 0 and asked() == []
    assert {path.name for path in folder.iterdir()} == {*names[2:], "attempts"}
    assert (attempts / "0" / "rank-0").exists() and not list((attempts / "1").iterdir())


def test_the_step_of_an_attempt_has_a_number_of_its_own(slurm_job, tmp_path):
    """Slurm counts from 0 again after a restart."""
    steps = tmp_path / "steps"
    begin(slurm_job(0), 9)
    assert not steps.exists()
    for restart, used in ((1, 1), (2, 2), (7, 7), (8, 0), (9, 1)):
        steps.write_text("")
        begin(slurm_job(restart), 99)
        assert steps.read_text().splitlines() == ["--nodes=1 --ntasks=1 true"] * used


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


def test_who_was_overtaken_does_not_start_the_job_again(slurm_job, asked, capsys, tmp_path):
    """Slurm had lost its node, and the other's rank with it: the restart is not disturbed."""
    text = (tmp_path / "scontrol").read_text()
    (tmp_path / "scontrol").write_text(text.replace("show) ", "show) echo JobId=71 Restarts=2; "))
    attempts = slurm_job(1)
    mark(attempts, 1, rank_0="n1 76 9", rank_1="n2", rank_2="n3")
    assert end(attempts, tmp_path / "run", 76, 9) == 76
    assert asked() == [] and "decides nothing" in capsys.readouterr().err
    mark(attempts, 2, rank_0="n1 76 9", rank_1="n2", rank_2="n3")
    end(slurm_job(2), tmp_path / "run", 76, 9)
    assert asked() == ["requeue 71"]


# --- disks that are full or read-only


@pytest.fixture
def disk(monkeypatch):
    """Function: from now on so many files cannot be written, on any disk."""
    errors, reserve = [], os.posix_fallocate

    def allocate(*arguments) -> None:
        if errors:
            raise errors.pop()
        reserve(*arguments)

    def fail(times: int, number: int = errno.ENOSPC) -> None:
        errors[:] = [OSError(number, os.strerror(number))] * times

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(room, "POLL", 0.01)
    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS], ids=os.strerror)
def test_room_is_waited_for_and_its_lack_neither_counts_nor_is_a_node_s_fault(
    slurm_job, asked, capsys, disk, tmp_path, number
):
    (tmp_path / "run").mkdir()
    for restart in range(6):
        attempts = slurm_job(restart)
        mark(attempts, restart, rank_0="n1 74 9", rank_1="n2 76 10")
        disk(3, number)
        assert end(attempts, tmp_path / "run", 74, 9) == 74
    assert asked() == ["requeue 71"] * 6
    line = f"{tmp_path}/run cannot be written: {os.strerror(number)}: waiting until it can be"
    assert capsys.readouterr().err.count(f"rank 0 on n1 ended with status 74, and {line}") == 6
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("step", ["begin", "end"])
def test_where_no_room_comes_the_job_waits_in_the_queue(
    slurm_job, asked, capsys, disk, tmp_path, monkeypatch, step
):
    monkeypatch.setattr(job, "PATIENCE", 0)
    (tmp_path / "run").mkdir()
    attempts = slurm_job(0)
    disk(99)
    if step == "end":
        mark(attempts, 0, rank_0="n1 74 9")
        end(attempts, tmp_path / "run", 74, 9)
    else:
        assert begin(attempts, 9) == 1
    update = "update JobId=71 StartTime=now+60minutes"
    assert asked() == ["requeue 71", update, update]  # at first the job did not wait yet
    assert "trying again in 60 minutes" in capsys.readouterr().err
    if step == "begin":
        assert begin(slurm_job(9), 9) == 0, "no restart is left: the ranks tell what is wrong"


def test_the_room_that_is_wanted_is_a_checkpoint_s(tmp_path, monkeypatch):
    wanted = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *arguments: wanted.append(arguments[2]))
    for step in (5, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        assert room.obstacle(tmp_path) == ""
        (folder / "state.pt").write_bytes(bytes(step << 20))
    assert room.obstacle(tmp_path) == "" and wanted[:2] == [1 << 20, 1 << 20]
    assert 10 << 20 <= wanted[2] < 11 << 20
    assert room.obstacle(tmp_path / "nowhere") == "", "a restart tells"


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
        during.append(file.read_text())
        return main(words)

    call = RankJob(watched, ("lt_train", "a", "b"), str(attempts))
    if raised:
        with pytest.raises(raised) as caught:
            call()
        assert raised is not SystemExit or caught.value.code == status
    else:
        call()
    assert during == ["n1"]
    node, told, when = file.read_text().split()
    assert (node, told) == ("n1", str(status)) and abs(time.time() - float(when)) < 60


def test_a_mistake_is_noted_before_ranks_wait_for_the_one_that_speaks_first(slurm_job, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    attempts = slurm_job(0)
    mark(attempts, 0)
    started = time.time()
    with pytest.raises(SystemExit):
        RankJob(leave(UserError("x")), ("lt_train",), str(attempts))()
    when = float((attempts / "0" / "rank-1").read_text().split()[2])
    assert when - started < time.time() - when, "the 3 s that it waits come after"


def test_a_rank_that_a_thread_ends_leaves_its_status(tmp_path):
    module = """
import threading, time
from lt_train.errors import LostPeer, leave
def main(words):
    threading.Thread(target=leave, args=("lt_train", LostPeer("x"))).start()
    time.sleep(60)
"""
    call = "import part; from launch.job import RankJob; RankJob(part.main, ('x',), '.')()"
    assert run_task(tmp_path, module, call).wait(30) == 76
    assert (tmp_path / "0" / "rank-0").read_text().split()[1] == "76"


def test_what_a_login_shell_says_of_ranks_does_not_reach_them(slurm_job, monkeypatch):
    attempts = slurm_job(0)
    mark(attempts, 0)
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
    for name in (*foreign, "LOCAL_SCRATCH"):
        monkeypatch.setenv(name, "7")
    found = []
    RankJob(lambda words: found.extend(os.environ), ("x",), str(attempts))()
    assert "LOCAL_SCRATCH" in found and not {*foreign} & {*found}


def run_task(folder: Path, module: str, call: str) -> subprocess.Popen:
    """A process that makes a call of a job, whose module ``part`` has this text."""
    (folder / "part.py").write_text(module)
    (folder / "0").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "SLURM_PROCID": "0",
        "SLURMD_NODENAME": "n1",
        "SLURM_RESTART_COUNT": "0",
    }
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
    task = run_task(tmp_path, module, f"{TaskJob('part', ('a b',), count - 1, count, '.')}()")
    assert task.wait(30) == 2 and (tmp_path / "words").read_text() == repr(words)
    assert (tmp_path / "0" / "rank-0").read_text().split()[1] == "2"


def test_a_task_whose_command_is_killed_was_not_asked_to_leave(tmp_path):
    module = "import os\nos.kill(os.getpid(), 9)\n"
    task = run_task(tmp_path, module, f"{TaskJob('part', (), 0, 1, '.')}()")
    assert task.wait(30) == 137
    assert (tmp_path / "0" / "rank-0").read_text().split()[1] == "killed"


def test_a_task_that_is_asked_to_leave_ends_its_child(tmp_path):
    module = (
        "import os, pathlib,"
        " time\npathlib.Path('new').write_text(str(os.getpid()))\nos.rename('new',"
        " 'child')\ntime.sleep(60)\n"
    )
    task = run_task(tmp_path, module, f"{TaskJob('part', (), 0, 1, '.')}()")
    deadline = time.monotonic() + 30
    while not (tmp_path / "child").exists():
        assert time.monotonic() < deadline and task.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)  # its parent has set its handlers
    task.terminate()
    assert task.wait(30) == 75
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)
