"""What runs on the nodes: a call per srun task, and what the batch script does before and after
them.

A stage is one process per rank, started by srun, so every rank hears signals itself. Ranks that are
asked to leave save and exit with 75. Whatever ends an attempt, the batch script then decides
(``python -m launch.job end``): done, a mistake that only the user can mend, or once more. What it
knows of an attempt lies in files, see launch/attempts.py.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.attempts import (
    ASKED,
    ERROR,
    EXCLUDE_AFTER,
    KILLED,
    LEAVE,
    Mark,
    bad_nodes,
    endings,
    first_to_end,
    forget,
    fruitless_restarts,
    is_mistake,
    note_failure,
    progress,
)
from launch.console import say
from launch.room import obstacle, wait_for_room
from launch.sites import parse_time
from lt_train.arguments import Parser
from lt_train.errors import (
    EXIT_MISTAKE,
    EXIT_PREEMPTED,
    UserError,
    exit_status,
    exit_with,
    on_leaving,
    run_cli,
)
from lt_train.locks import WAIT

FRUITLESS = 3  # restarts without a new checkpoint, after which another would not help either
ASK_AGAIN = 5.0  # seconds between questions to a slurmctld that does not answer
REFUSALS = 3  # of one that does, until it is believed
PATIENCE = 10  # minutes that a job keeps its nodes while its disk is full or read-only, ...
LATER = 60  # ... and those that it then waits in the queue before it tries again
STEPS = 8  # attempts in a row whose steps have numbers of their own
# of a torchrun around the submission, or of a user's shell: a rank would take itself for another
FOREIGN = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+)"
)


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
        mark = _mark(self.attempts)
        on_leaving.append(mark.end)
        status: int | str = ERROR

        def main() -> int:
            try:
                return self.main(list(self.words[1:]))
            except UserError as error:  # noted before ranks wait for the one that speaks first
                mark.end(error.status)
                raise

        try:
            for name in filter(FOREIGN.fullmatch, list(os.environ)):
                del os.environ[name]
            status = exit_status(self.words[0], main)
        except SystemExit as leaving:
            status = leaving.code or 0
        finally:
            mark.end(status)
        if status:
            exit_with(status)


@dataclass(frozen=True)
class TaskJob:
    """One task of an array that shares a command: ``--task I/N`` is appended to it."""

    module: str
    words: tuple[str, ...]
    index: int
    count: int
    attempts: str

    def __call__(self) -> None:
        task = ["--task", f"{self.index}/{self.count}"] if self.count > 1 else []
        mark = _mark(self.attempts)
        child = subprocess.Popen([sys.executable, "-m", self.module, *self.words, *task])
        asked = []

        def leave(*_) -> None:  # what is written is kept: the same command goes on
            asked.append(True)
            child.kill()

        for number in LEAVE:
            signal.signal(number, leave)
        status = child.wait()
        if status < 0:
            mark.end(ASKED if asked else KILLED)
            sys.exit(EXIT_PREEMPTED if asked else 128 - status)
        mark.end(status)
        if status:
            exit_with(status)


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


def _mark(attempts: str) -> Mark:
    rank, node = int(os.environ["SLURM_PROCID"]), os.environ["SLURMD_NODENAME"]
    return Mark(_attempt(Path(attempts)), rank, node)


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
    """Before the ranks: wait for room, forget results of earlier attempts, and move away from nodes
    that keep failing, while restarts are left.
    """
    submission = attempts.parent.parent
    if why := obstacle(submission):
        say(f"{why}: waiting until it can be")
        if not _wait_for_room(submission) and _restart() < max_requeues:
            return int(_requeue([], later=True))
    # submitit takes one for the end of the job
    for stale in submission.rglob(f"{_job_id()}_*_result.pkl"):
        stale.unlink()
    here = _attempt(attempts)
    here.mkdir(parents=True, exist_ok=True)
    forget(here)
    bad = _bad_nodes_here(attempts, _restart())
    if bad and _restart() < max_requeues and _requeue(bad, only_without=True):
        return 1
    _use_up_steps(_restart() % STEPS)
    return 0


def _use_up_steps(count: int) -> None:
    """Start empty steps, so that the ranks' has another number than in the attempts before.

    Where Slurm has lost a node and it comes back, the srun of the attempt there is told so and
    cancels its step, by the number alone: it would be this attempt's.
    """
    for _ in range(count):
        _ask("srun", "--nodes=1", "--ntasks=1", "true")


def end(attempts: Path, run_dir: Path, status: int, max_requeues: int) -> int:
    """After the ranks, which ended with ``status``: start again, if that can help; returns the
    script's exit status.
    """
    if status == 0:
        return 0
    here = _attempt(attempts)
    ranks = endings(here)
    if is_mistake(ranks):
        say("a rank stopped with a mistake that a restart would not mend; see its message above")
        return EXIT_MISTAKE
    first = first_to_end(ranks)
    what = str(first) if first else f"ended with status {status}"
    again = "submit again to go on from the last checkpoint"
    if _restart() >= max_requeues:
        say(f"{what}, after {_restart()} restarts: giving up; {again}")
        return status
    later = False
    if first is None or first.status != ASKED:
        if why := obstacle(run_dir):
            say(f"{what}, and {why}: waiting until it can be")
            later = not _wait_for_room(run_dir)
            forget(here)  # no node's fault, and no sign that restarts are of no use
        elif fruitless := _fruitless(attempts, progress(run_dir)):
            say(f"{what}, and {fruitless} restarts have come no further: giving up; {again}")
            return status
    say(f"{what}: restart {_restart() + 1} of at most {max_requeues}")
    _requeue(_bad_nodes_here(attempts, _restart() + 1), later=later)
    return status


def _fruitless(attempts: Path, step: int) -> int:
    """Restarts that have come no further than ``step``, if they are so many that another would not
    help either; else 0. The present attempt is noted.
    """
    note_failure(_attempt(attempts), step)
    restarts = fruitless_restarts(attempts, step)
    return restarts if restarts >= FRUITLESS else 0


def _wait_for_room(folder: Path) -> bool:
    """Whether there is room again, before the job has waited too long on its nodes, or its time
    limit would end it.
    """
    left = _ask("squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%L").stdout.strip()
    try:
        minutes = min(PATIENCE, parse_time(left) - 2)
    except UserError:  # no limit, or nobody to ask
        minutes = PATIENCE
    if wait_for_room(folder, 60.0 * minutes):
        return True
    say(f"there is still no room: trying again in {LATER} minutes, and no node is kept until then")
    return False


def _bad_nodes_here(attempts: Path, before: int) -> list[str]:
    """Those of :func:`bad_nodes` that the job has now; it excludes earlier ones already."""
    bad = bad_nodes(attempts, before)
    own = _ask("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).stdout.split()
    return [node for node in bad if node in own]


def _requeue(bad: list[str], only_without: bool = False, later: bool = False) -> bool:
    """Back into the queue as soon as slurmctld answers, without those of the ``bad`` nodes that can
    be missed; ``only_without``: or not at all. ``later``: not to start at once. Returns whether.

    Slurm ends this script for it, so that nothing may be left to do afterwards.
    """
    for number in LEAVE:
        signal.signal(number, signal.SIG_IGN)
    _wait_for_controller()
    if _is_overtaken():
        say("Slurm has started the job again meanwhile: this attempt ends, and decides nothing")
        return False
    excluded, missed = _excluded_with(bad)
    if missed:
        say(f"node(s) {', '.join(missed)} failed {EXCLUDE_AFTER} times: moving away")
    elif only_without:
        return False
    job, refused = _job_id(), 0
    while (done := _ask("scontrol", "requeue", job)).returncode:
        refused += _controller_answers()  # or it went away just then
        if refused == REFUSALS:
            say(f"cannot restart: {' '.join(done.stderr.split())}")
            return False
        time.sleep(ASK_AGAIN)
    changes = [f"ExcNodeList={excluded}"] if missed else []
    if later:
        changes.append(f"StartTime=now+{LATER}minutes")
    if changes and _update(job, changes) and missed:
        say(f"excluded: {excluded}")
    return True


def _wait_for_controller() -> None:
    if _controller_answers():
        return
    say("slurmctld does not answer: asking again until it does")
    while not _controller_answers():
        time.sleep(ASK_AGAIN)


def _is_overtaken() -> bool:
    """Whether the job is a later attempt's: Slurm had lost the node that this one is on."""
    restarts = re.search(r"\bRestarts=(\d+)", _ask("scontrol", "show", "job", _job_id()).stdout)
    return restarts is not None and int(restarts[1]) > _restart()


def _excluded_with(bad: list[str]) -> tuple[str, list[str]]:
    """The nodes that the job excludes together with the ``bad`` ones, the first ones first, without
    which Slurm could still start it; and these.
    """
    if not bad:
        return "", []
    job = os.environ["SLURM_JOB_ID"]
    written = _ask("scontrol", "write", "batch_script", job, "-").stdout.splitlines(True)
    # jobs that this one came after may be forgotten by now
    script = "".join(line for line in written if "--dependency" not in line)
    excluded, missed = _ask("squeue", "-h", "-j", job, "-o", "%x").stdout.strip(), []
    for node in bad:
        wanted = f"{excluded},{node}".lstrip(",")
        if _ask("sbatch", "--test-only", f"--exclude={wanted}", script=script).returncode:
            say(f"node {node} failed {EXCLUDE_AFTER} times, but the job cannot do without it")
        else:
            excluded, missed = wanted, [*missed, node]
    return excluded, missed


def _ask(*command: str, script: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(command, input=script, capture_output=True, text=True)


def _controller_answers() -> bool:
    return " is UP" in _ask("scontrol", "ping").stdout


def _update(job: str, changes: list[str]) -> bool:
    """Change a job that was just requeued; whether Slurm has done so."""
    for _ in range(20):  # only a job that waits can be told so
        if _ask("scontrol", "update", f"JobId={job}", *changes).returncode == 0:
            return True
        time.sleep(0.25)
    return False


def main() -> int:
    parser = Parser(prog="python -m launch.job")
    actions = parser.add_subparsers(dest="action", required=True)
    for action in ("begin", "end"):
        command = actions.add_parser(action)
        command.add_argument("attempts", type=Path)
        if action == "end":
            command.add_argument("run_dir", type=Path)
            command.add_argument("status", type=int)
        command.add_argument("max_requeues", type=int)
    arguments = parser.parse_args()
    if arguments.action == "begin":
        return begin(arguments.attempts, arguments.max_requeues)
    return end(arguments.attempts, arguments.run_dir, arguments.status, arguments.max_requeues)


if __name__ == "__main__":
    run_cli("launch.job", main)
