"""What a person sees of submitted jobs: states from Slurm, progress from the runs' own files."""

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from launch.cluster import is_live, job_states, slurm, waiting
from launch.console import say
from launch.submission import Submitted, own_jobs, read_submission, waiting_beside
from lt_train.errors import UserError
from lt_train.run_files import parse_log

COLUMNS = ("stage", "job", "state", "restarts", "step", "images/s", "left")
POLL_SECONDS = 5.0
SETTLE_SECONDS = 30.0  # a job that is requeued can look as if it had ended for so long ...
FINAL = {"COMPLETED", "CANCELLED", "TIMEOUT", "DEADLINE"}  # ... but not so


@dataclass(frozen=True)
class Progress:
    """What the last training line of a run's metrics.jsonl tells."""

    step: int
    last_step: int
    images_per_s: float
    seconds_left: float


def read_progress(run_dir: str) -> Progress | None:
    """How far a run is; None before its first logged step."""
    try:
        records, _ = parse_log((Path(run_dir) / "metrics.jsonl").read_bytes())
    except OSError:
        return None
    for record in reversed(records):
        try:
            return Progress(*(_finite(record[field.name]) for field in fields(Progress)))
        except (ValueError, KeyError):  # an evaluation
            continue
    return None


def _finite(value: Any) -> float:
    """``value``; a :class:`ValueError` if it is no number that a table could show."""
    if not isinstance(value, (int, float)) or not abs(value) < 2**63:
        raise ValueError
    return value


def show_stages(root: Path, console: Console) -> None:
    """Print a line a stage: job, state, restarts, progress."""
    stages = _stages(root)
    states = job_states([stage.job for stage in stages if stage.job])
    table = Table(*COLUMNS, box=SIMPLE_HEAD, pad_edge=False)
    for stage in stages:
        state, restarts = states.get(stage.job, ("finished before", 0))
        progress = read_progress(stage.run_dir) if stage.kind == "train" else None
        step = rate = left = ""
        if progress:
            step = f"{progress.step:,}/{progress.last_step:,}"
            rate = f"{progress.images_per_s:,.0f}"
            left = duration(progress.seconds_left) if is_live(state) else ""
        table.add_row(stage.name, stage.job or "-", state, str(restarts), step, rate, left)
    console.print(table)
    for job, why in waiting([stage.job for stage in stages if stage.job]).items():
        _print(console, f"job {job} waits: {why}")
    for stage in stages:
        if stage.logs:
            _print(console, f"{stage.name}: {stage.run_dir}, log {stage.logs}")


def cancel(root: Path) -> list[str]:
    """Cancel the jobs of the newest submission that live; returns their ids.

    Those of another experiment that this one waits for go on. An experiment that waits for one of
    these is named.
    """
    jobs = own_jobs(root, _stages(root))
    live = [job for job, (state, _) in job_states(jobs).items() if is_live(state)]
    for other, shared in waiting_beside(root, live).items():
        say(
            f"{other} waits for job {', '.join(shared)}: what comes after it there is cancelled"
            " too; submit it again"
        )
    if live:
        slurm("scancel", *reversed(live))  # those that wait first, or they would start
    return live


def follow(stages: list[Submitted], console: Console) -> bool:
    """Print states and progress as they change until all jobs have ended; whether all completed."""
    by_job = {stage.job: stage for stage in stages if stage.job}  # seeds may share some
    shown: dict[str, str] = {}
    ended_at = None
    while True:
        states, waits = job_states(list(by_job)), waiting(list(by_job))
        for job, stage in by_job.items():
            line, why = _line(stage, *states[job]), waits.get(job)
            told = f"{line} {why.reason if why else ''}"  # when it starts is estimated ever anew
            if shown.get(job) != told:
                shown[job] = told
                _print(console, f"{time.strftime('%X')} {line}{f' ({why})' if why else ''}")
        if all(state == "COMPLETED" for state, _ in states.values()):
            return True
        if any(is_live(state) for state, _ in states.values()):
            ended_at = None
        else:
            ended_at = ended_at or time.monotonic()
            settled = all(state in FINAL for state, _ in states.values())
            if settled or time.monotonic() - ended_at > SETTLE_SECONDS:
                return False
        time.sleep(POLL_SECONDS)


def _line(stage: Submitted, state: str, restarts: int) -> str:
    line = f"{stage.name} (job {stage.job}): {state}"
    if restarts:
        line += f", restart {restarts}"
    trains = stage.kind == "train" and state == "RUNNING"
    if trains and (progress := read_progress(stage.run_dir)):
        line += (
            f", step {progress.step}/{progress.last_step}, {progress.images_per_s:,.0f} images/s,"
            f" {duration(progress.seconds_left)} left"
        )
    return line


def wait(jobs: list[str], console: Console) -> dict[str, str]:
    """The states in which jobs end. Why one waits is printed; if it would do so for ever, or on
    Ctrl-C, all are cancelled.
    """
    told: dict[str, str] = {}
    try:
        while True:
            states = {job: state for job, (state, _) in job_states(jobs).items()}
            if not any(is_live(state) or state == "UNKNOWN" for state in states.values()):
                return states
            for job, why in waiting(jobs).items():
                if why.for_ever:
                    slurm("scancel", *jobs)
                    raise UserError(f"job {job} cannot start, and is cancelled: {why}")
                if told.get(job) != why.reason:
                    told[job] = why.reason
                    _print(console, f"job {job} waits: {why}")
            time.sleep(POLL_SECONDS / 2)
    except KeyboardInterrupt:
        slurm("scancel", *jobs)
        raise


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """Seconds as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _stages(root: Path) -> list[Submitted]:
    stages = read_submission(root)
    if not stages:
        raise UserError(
            f"'{root}' has no submitted jobs; name the folder that python launch/slurm.py has"
            " printed"
        )
    return stages
