"""Slurm's own commands, and what they say."""

import shutil
import subprocess
from dataclasses import dataclass

from launch.sites import parse_time
from lt_train.errors import UserError

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SUSPENDED", "SIGNALING", "RESIZING"}
# why squeue says that a job waits, where it would wait for ever: what to do
FOR_EVER = {
    "PartitionNodeLimit": "the partition gives no job so many nodes: fewer --nodes, or another"
    " --partition",
    "PartitionTimeLimit": "the partition gives no job so long: a shorter --time, or another"
    " --partition",
    "PartitionDown": "the partition is closed: another --partition, or wait until it is opened",
    "PartitionInactive": "the partition is closed: another --partition, or wait until it is opened",
    "BadConstraints": "no node is as asked for: another --constraint, or fewer nodes",
    "AccountNotAllowed": "the partition is not for this --account",
    "QOSNotAllowed": "the partition is not for this --qos",
    "InvalidAccount": "this --account may not be used",
    "InvalidQOS": "this --qos may not be used",
    "DependencyNeverSatisfied": "a job that it comes after has failed",
    "JobHeldUser": "you hold it: scontrol release gives it free",
    "JobHeldAdmin": "an administrator holds it",
}
NO_SLURM = (
    "this host has no Slurm (sbatch is not there): run on this machine with python launch/local.py,"
    " or on a login node of the cluster"
)


def require_slurm() -> None:
    """A :class:`UserError` on hosts without Slurm."""
    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise UserError(NO_SLURM)


def slurm(*command: str) -> str:
    """What a command of Slurm prints; a :class:`UserError` with its own words if it fails."""
    require_slurm()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} does not answer; is slurmctld up?") from error
    except OSError as error:
        raise UserError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise UserError(
            f"{command[0]}: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}"
        )
    return done.stdout


def job_states(jobs: list[str]) -> dict[str, tuple[str, int]]:
    """Job id -> (state, restarts).

    The queue knows jobs that live or ended just now, accounting all; an array's tasks count as one.
    A job that was requeued has older records too: the newest one, or the queue's, is its state.
    """
    if not jobs:
        return {}
    tasks = _accounted(jobs)
    for line in slurm("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%F").splitlines():
        job, state, parent = line.split("|")
        recorded, restarts = tasks.get(job, ("", 0))
        # a job that has ended is in the queue until its nodes are clean
        if (job in jobs or parent in jobs) and not (
            state == "COMPLETING" and recorded and not is_live(recorded)
        ):
            tasks[job] = state, restarts
    of_jobs: dict[str, list[tuple[str, int]]] = {job: [] for job in jobs}
    for name, task in tasks.items():
        of_jobs.setdefault(name.split("_")[0], []).append(task)
    return {job: _together(of_jobs[job]) for job in jobs}


@dataclass(frozen=True)
class Waiting:
    """Why a job is not running yet, and when Slurm expects it to start ("": it does not know)."""

    reason: str
    start: str

    @property
    def for_ever(self) -> bool:
        """Whether it will not start unless somebody changes it."""
        return self.reason in FOR_EVER

    def __str__(self) -> str:
        advice = FOR_EVER.get(self.reason)
        if advice:
            return f"{self.reason}: {advice}"
        return f"{self.reason}, expected to start {self.start}" if self.start else self.reason


def waiting(jobs: list[str]) -> dict[str, Waiting]:
    """Job id -> why it waits, of those that do and of which Slurm has said why."""
    if not jobs:
        return {}
    found = {}
    for line in slurm("squeue", "-h", "-a", "-t", "PENDING", "-o", "%F|%S|%r").splitlines():
        job, start, reason = line.split("|", 2)
        if job in jobs and reason != "None":
            found.setdefault(job, Waiting(reason, "" if start == "N/A" else start))
    return found


def partition_limits(names: str | None, nodes: int, minutes: int) -> list[str]:
    """What stands against a job of so many nodes and minutes in the partitions ``names`` (None: the
    default one), a text each; nothing if one of them takes it, or Slurm does not tell.
    """
    try:
        lines = slurm("scontrol", "show", "partition", "-o").splitlines()
    except UserError:
        return []
    found = [_keys(line) for line in lines]
    if names is None:
        wanted = [about for about in found if about.get("Default") == "YES"]
    else:
        wanted = [about for about in found if about.get("PartitionName") in names.split(",")]
    told = [_limits(about, nodes, minutes) for about in wanted]
    return [text for text in told if text] if all(told) else []


def _keys(line: str) -> dict[str, str]:
    """A line of scontrol, KEY=VALUE KEY=VALUE ..., as a dict."""
    return dict(word.partition("=")[::2] for word in line.split())


def _limits(partition: dict[str, str], nodes: int, minutes: int) -> str:
    """What in a line of `scontrol show partition` stands against a job; "" if nothing does."""
    told = [] if partition.get("State", "UP") == "UP" else [f"is {partition['State']}"]
    for key, text in {"TotalNodes": "has", "MaxNodes": "gives a job at most"}.items():
        limit = partition.get(key, "")
        if limit.isdecimal() and int(limit) < nodes:
            told.append(f"{text} {limit} node(s), not {nodes}")
    longest = partition.get("MaxTime", "")
    if longest[:1].isdecimal() and parse_time(longest) < minutes:
        told.append(f"gives a job at most {longest}, not {minutes} minutes")
    return f"partition {partition['PartitionName']} {' and '.join(told)}" if told else ""


def _accounted(jobs: list[str]) -> dict[str, tuple[str, int]]:
    """Job or array task -> (state, restarts), by accounting; nothing where there is none."""
    found: dict[str, list[str]] = {}
    columns = "-o", "JobID,State"
    try:
        lines = slurm("sacct", "-n", "-X", "-P", "-D", "-j", ",".join(jobs), *columns).splitlines()
    except UserError:  # the queue alone must do
        return {}
    for line in lines:
        job, state = line.split("|")[:2]
        found.setdefault(job, []).append(state.split()[0])
    return {job: (states[-1], len(states) - 1) for job, states in found.items()}


def _together(tasks: list[tuple[str, int]]) -> tuple[str, int]:
    """One state for an array: of those that run, wait, fail or are done, the first that any task
    has.
    """
    if not tasks:
        return "UNKNOWN", 0
    states = [state for state, _ in tasks]
    return min(states, key=_rank), max(restarts for _, restarts in tasks)


def _rank(state: str) -> int:
    if state in RUNNING:
        return 0
    if state in WAITING:
        return 1
    return 3 if state == "COMPLETED" else 2


def is_live(state: str) -> bool:
    """Whether a job in this state may still do something."""
    return state in WAITING or state in RUNNING
