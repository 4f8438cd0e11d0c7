"""What runs on the nodes: a call per srun task, and what the batch script does before and after
them.

A stage is one process per rank, started by srun, so every rank hears signals itself. Ranks that are
asked to leave save and exit with 75. Whatever ends an attempt, the batch script then decides
(``python -m launch.job end``): done, a mistake that only the user can mend, or once more. What is
known of an attempt lies in files: ATTEMPTS/RESTART/rank-N holds the rank's node, and its exit
status once it has one.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launch.console import say
from lt_train.errors import EXIT_MISTAKE, EXIT_PREEMPTED, exit_status
from lt_train.locks import WAIT

# MASTER_PORT is one of these by the job's number, so that jobs on one node do not meet
FIRST_PORT, PORTS = 20_000, 20_000
EXCLUDE_AFTER = 2  # failures of a node
LEAVE = (signal.SIGTERM, signal.SIGUSR2)  # preemption, and Slurm's --signal before the time limit


@dataclass(frozen=True)
class RankJob:
    """One rank of a stage, or of a check or benchmark; submitit calls it in every srun task.

    ``main``: given ``words``, returns an exit status. A picklable function.
    """

    main: Callable[[list[str]], int]
    words: tuple[str, ...]
    attempts: str

    def __call__(self) -> None:
        # until training has its own handlers, and after it: there is nothing to save
        for number in LEAVE:
            signal.signal(number, lambda *_: sys.exit(EXIT_PREEMPTED))
        node, rank = os.environ["SLURMD_NODENAME"], os.environ["SLURM_PROCID"]
        mark = _attempt(Path(self.attempts)) / f"rank-{rank}"
        status: int | str = "error"
        try:
            mark.write_text(node)
            _export_rendezvous()
            status = exit_status(self.words[0], partial(self.main, list(self.words[1:])))
        except SystemExit as leaving:
            status = leaving.code or 0
        finally:
            mark.write_text(f"{node} {status}")
        if status:
            sys.exit(status)


@dataclass(frozen=True)
class TaskJob:
    """One task of an array that shares a command: ``--task I/N`` is appended to it."""

    module: str
    words: tuple[str, ...]
    index: int
    count: int

    def __call__(self) -> None:
        task = ["--task", f"{self.index}/{self.count}"] if self.count > 1 else []
        child = subprocess.Popen([sys.executable, "-m", self.module, *self.words, *task])
        for number in LEAVE:  # what is written is kept: the same command goes on
            signal.signal(number, lambda *_: child.kill())
        status = child.wait()
        if status:
            sys.exit(EXIT_PREEMPTED if status < 0 else status)


def train(words: list[str]) -> int:
    """``python -m lt_train`` in this process."""
    os.environ.setdefault(WAIT, "1")  # a run that another job makes is no failure of this one
    from lt_train.__main__ import main

    return main(words)


def check(words: list[str]) -> int:
    """launch/check.py in this process."""
    from launch.check import main

    return main(words)


def benchmark(words: list[str]) -> int:
    """``python -m lt_train.benchmark`` in this process."""
    from lt_train.benchmark.__main__ import main

    return main(words)


def _export_rendezvous() -> None:
    """Where ranks meet: the job's first node, at a port that changes with every restart."""
    from submitit import JobEnvironment

    place = JobEnvironment()
    os.environ["MASTER_ADDR"] = place.hostnames[0]
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", 0))
    number = 7 * job + step + 1009 * _restart()
    os.environ["MASTER_PORT"] = str(FIRST_PORT + number % PORTS)


def _job_id() -> str:
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _attempt(attempts: Path) -> Path:
    return attempts / str(_restart())


# the batch script


def begin(attempts: Path, max_requeues: int) -> int:
    """Before the ranks: forget results of earlier attempts, and move away from nodes that keep
    failing, while restarts are left.
    """
    # submitit takes one for the end of the job
    for stale in attempts.parent.parent.rglob(f"{_job_id()}_*_result.pkl"):
        stale.unlink()
    here = _attempt(attempts)
    here.mkdir(parents=True, exist_ok=True)
    for old in here.iterdir():
        old.unlink()
    bad = bad_nodes(attempts, _restart()) & set(_nodes())
    if bad and _restart() < max_requeues:
        say(f"node(s) {', '.join(sorted(bad))} failed {EXCLUDE_AFTER} times: moving away")
        _requeue(bad)
        return 1
    return 0


def end(attempts: Path, status: int, max_requeues: int) -> int:
    """After the ranks, which ended with ``status``: start again, if that can help; returns the
    script's exit status.
    """
    if status == 0:
        return 0
    statuses = [words[1] for words in _marks(_attempt(attempts)).values() if len(words) > 1]
    if str(EXIT_MISTAKE) in statuses or status == EXIT_MISTAKE:
        say("a rank stopped with a mistake that a restart would not mend; see its message above")
        return EXIT_MISTAKE
    asked = str(EXIT_PREEMPTED) in statuses or status == EXIT_PREEMPTED
    what = "asked to leave" if asked else f"ended with status {status}"
    if _restart() >= max_requeues:
        say(
            f"{what}, after {_restart()} restarts: giving up; submit again to go on from the last"
            " checkpoint"
        )
        return status
    say(f"{what}: restart {_restart() + 1} of at most {max_requeues}")
    _requeue(bad_nodes(attempts, _restart() + 1))
    return status


def bad_nodes(attempts: Path, before: int) -> set[str]:
    """Nodes that failed in at least two attempts with numbers below ``before``.

    A node failed when a rank there left no exit status, although ranks elsewhere did: it was
    killed, or lost its machine.
    """
    failures: Counter[str] = Counter()
    for restart in range(before):
        marks = _marks(attempts / str(restart)).values()
        ended = any(len(words) > 1 for words in marks)
        failed = {words[0] for words in marks if len(words) == 1}
        failures.update(failed if ended else ())
    return {node for node, count in failures.items() if count >= EXCLUDE_AFTER}


def _marks(attempt: Path) -> dict[str, list[str]]:
    """Rank file -> node, and exit status if it has one."""
    found = {path.name: path.read_text().split() for path in sorted(attempt.glob("rank-*"))}
    return {name: words for name, words in found.items() if words}


def _nodes() -> list[str]:
    found = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def _requeue(exclude: set[str]) -> None:
    """Back into the queue.

    Slurm ends this script for it, so that nothing may be left to do afterwards.
    """
    for number in LEAVE:
        signal.signal(number, signal.SIG_IGN)
    job = _job_id()
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        say(f"cannot restart: {' '.join(done.stderr.split())}")
    elif exclude:
        _exclude(job, ",".join(sorted(exclude)))


def _exclude(job: str, nodes: str) -> None:
    command = ["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"]
    for _ in range(20):  # only a job that waits can be told so
        if subprocess.run(command, capture_output=True).returncode == 0:
            say(f"excluded: {nodes}")
            return
        time.sleep(0.25)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.job")
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("begin", "end"):
        command = actions.add_parser(action)
        command.add_argument("attempts", type=Path)
        if action == "end":
            command.add_argument("status", type=int)
        command.add_argument("max_requeues", type=int)
    arguments = parser.parse_args()
    if arguments.action == "begin":
        return begin(arguments.attempts, arguments.max_requeues)
    return end(arguments.attempts, arguments.status, arguments.max_requeues)


if __name__ == "__main__":
    sys.exit(main())
