"""An experiment as Slurm jobs: one for each stage that is not finished, chained, with all they need
in the experiment's folder.

    slurm/N/submission.json    what was submitted: stages, job ids, resources, the command
    slurm/N/code/              the code, as it was then
    slurm/N/STAGE/             the resolved config, the batch script, logs, and submitit's files
    slurm/N/STAGE/attempts/    how ranks ended in every attempt, see launch/attempts.py
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import job
from launch.batch import calls, parameters, send
from launch.cluster import is_live, job_states, partition_limits, require_slurm
from launch.console import say
from launch.pipeline import COMMANDS, Experiment, StageJob
from launch.sites import Site, apply
from launch.snapshot import take_snapshot
from lt_train.config.load import to_yaml
from lt_train.errors import UserError, unreadable
from lt_train.files import is_url, write_atomically
from lt_train.locks import one_at_a_time

SHARED = ("prepare", "train")  # kinds of stages whose folder may be another experiment's too


@dataclass(frozen=True)
class Submitted:
    """A stage that was submitted, or skipped because it is finished (job "").

    ``config_sha256``: digest of the resolved config's YAML; "" of stages without a config, of
    skipped ones, and in what earlier versions have written.
    """

    name: str
    kind: str
    run_dir: str
    job: str
    nodes: int
    ranks: int
    logs: str
    config_sha256: str = ""


def submit(
    experiment: Experiment,
    site: Site,
    options: dict[str, Any],
    after: str | None,
    others: list[Submitted],
) -> list[Submitted]:
    """Submit the stages that are not finished; refuses while jobs of an earlier submission live.

    What ``others``, submitted just before, or jobs of experiments beside this one make in the same
    folder is waited for, not made twice.
    """
    require_slurm()
    check_stages(experiment, site, options)
    for stage in experiment.stages:
        mine = site_of(stage, experiment, site, options)
        nodes = 1 if stage.kind == "prepare" else mine.nodes
        for why in partition_limits(mine.partition, nodes, mine.minutes):
            say(f"stage {stage.name} may never start: {why}")
    root = Path(experiment.root).resolve()
    with _alone(root.parent):
        refuse_live(root)
        beside = list(itertools.chain.from_iterable(experiments_beside(root).values()))
        shared = {stage.name: _shared(stage, others, beside) for stage in experiment.stages}
        folder = new_folder(root)
        commit = take_snapshot(folder / "code")
        submitted: list[Submitted] = []
        try:
            for stage in experiment.stages:
                mine = site_of(stage, experiment, site, options)
                submitted.append(
                    shared[stage.name] or _submit_stage(stage, mine, folder, submitted, after)
                )
        finally:  # also when a later stage is refused: what is in the queue must be known
            _write_submission(folder, experiment.name, commit, submitted)
    return submitted


@contextlib.contextmanager
def _alone(runs: Path) -> Iterator[None]:
    """Wait for other submissions of experiments in this folder: what they submit must be seen."""
    with contextlib.ExitStack() as stack:
        try:
            runs.mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_at_a_time(runs / ".submission.lock"))
        except OSError as error:
            raise UserError(f"cannot write to {runs}: {error.strerror}") from error
        yield


def site_of(stage: StageJob, experiment: Experiment, site: Site, options: dict[str, Any]) -> Site:
    """The site with the stage's own resources, and the command line's over both."""
    return apply(site, stage.resources, f"{experiment.name}, stage {stage.name}: ", options)


def check_stages(experiment: Experiment, site: Site, options: dict[str, Any]) -> None:
    """What can be told before any stage is in the queue: a :class:`UserError` for wrong resources,
    and for more ranks than samples in a batch; a line for data that this host does not see and no
    stage makes.
    """
    for stage in experiment.stages:
        mine = site_of(stage, experiment, site, options)
        if stage.kind not in COMMANDS:
            _check_stage(stage, mine, experiment)


def _check_stage(stage: StageJob, site: Site, experiment: Experiment) -> None:
    config, ranks = stage.resolve(), site.nodes * site.ranks_per_node
    if stage.kind == "train" and ranks > config.global_batch_size:
        raise UserError(
            f"stage {stage.name}: {ranks} ranks for a global_batch_size of"
            f" {config.global_batch_size}: each needs a sample; give fewer nodes, or a larger batch"
        )
    made = [Path(other.run_dir) for other in experiment.stages]
    roots = {"data.root": config.data.root, "unlabeled.root": config.unlabeled.root}
    for key, root in roots.items():
        is_made = any(Path(root).is_relative_to(folder) for folder in made)
        is_here = is_url(root) or os.path.lexists(root)
        if root and not is_made and not is_here:
            say(f"stage {stage.name}: there is no {key}={root} on this host; nodes must have it")


def submit_call(
    name: str,
    main: Callable[[list[str]], int],
    words: list[str],
    site: Site,
    folder: Path,
    after: list[str],
) -> Submitted:
    """A job of its own in ``folder``/``name`` that calls ``main(words)`` on every rank, once the
    jobs ``after`` have ended.
    """
    require_slurm()
    here = folder / name
    wanted = parameters(
        StageJob(name, "train", str(here)), dataclasses.replace(site, max_requeues=0), folder, []
    )
    if after:
        wanted["dependency"] = f"afterany:{':'.join(after)}"
    here.mkdir(parents=True)
    call = job.RankJob(main, (name, *words), str(here / "attempts"))
    number = send(here, wanted, [call], site)
    ranks = site.nodes * site.ranks_per_node
    logs = str(here / f"{number}_0_log.out")
    return Submitted(name, "call", str(here), number, site.nodes, ranks, logs)


def _submit_stage(
    stage: StageJob, site: Site, folder: Path, before: list[Submitted], after: str | None
) -> Submitted:
    ranks = 1 if stage.kind == "prepare" else site.nodes * site.ranks_per_node
    if stage.is_finished():
        return Submitted(stage.name, stage.kind, stage.run_dir, "", site.nodes, ranks, "")
    here, digest = folder / stage.name, ""
    here.mkdir(parents=True)
    if stage.kind not in COMMANDS:
        resolved, digest = _resolve(stage)
        write_atomically(here / f"{stage.name}.yaml", resolved)
    jobs = [done.job for done in before if done.name in stage.after and done.job]
    wanted = parameters(stage, site, folder, jobs or ([after] if after else []))
    number = send(here, wanted, calls(stage, site, folder), site)
    logs = here / (f"{number}_*_log.out" if stage.tasks > 1 else f"{number}_0_log.out")
    return Submitted(
        stage.name, stage.kind, stage.run_dir, number, wanted["nodes"], ranks, str(logs), digest
    )


def _resolve(stage: StageJob) -> tuple[bytes, str]:
    """The stage's config as YAML, and its digest."""
    text = to_yaml(stage.resolve()).encode()
    return text, hashlib.sha256(text).hexdigest()


# what other experiments make


def experiments_beside(root: Path) -> dict[Path, list[Submitted]]:
    """The folders of the experiments beside this one, each with the stages that have jobs."""
    found = {}
    for folder in sorted(root.parent.glob("*/slurm")):
        if folder.parent == root:
            continue
        with contextlib.suppress(UserError):  # a damaged one is told to those who ask for it
            stages = read_submission(folder.parent)
            found[folder.parent] = [stage for stage in stages if stage.job]
    return found


def waiting_beside(root: Path, jobs: list[str]) -> dict[Path, list[str]]:
    """The folders of other experiments that wait for some of an experiment's ``jobs``, which live,
    each with these.
    """
    found = {}
    for other, stages in experiments_beside(root.resolve()).items():
        shared = [stage.job for stage in stages if stage.job in jobs]
        states = job_states(own_jobs(other, stages) if shared else [])
        if any(is_live(state) for state, _ in states.values()):
            found[other] = shared
    return found


def _shared(
    stage: StageJob, submitted: list[Submitted], beside: list[Submitted]
) -> Submitted | None:
    """The job of another experiment that makes what ``stage`` would: one ``submitted`` just before,
    or one ``beside`` that lives.
    """
    if stage.kind not in SHARED:
        return None
    same = _into_its_folder(stage, submitted)
    if not same:
        elsewhere = _into_its_folder(stage, beside)
        states = job_states([other.job for other in elsewhere])
        same = [other for other in elsewhere if is_live(states[other.job][0])]
    if not same:
        return None
    found = same[0]
    # a job without a digest may have any keys: it counts as one with others, for the run that comes
    # of it must not be taken for this one
    if found.job and stage.kind == "train" and found.config_sha256 != _resolve(stage)[1]:
        raise UserError(
            f"stage {stage.name}: job {found.job} trains in {stage.run_dir} with other keys: give"
            " the same ones, or cancel it first"
        )
    return dataclasses.replace(found, name=stage.name)


def _into_its_folder(stage: StageJob, others: list[Submitted]) -> list[Submitted]:
    made = stage.kind, stage.run_dir
    return [other for other in others if (other.kind, other.run_dir) == made]


# files


def _write_submission(
    folder: Path, experiment: str, commit: str, submitted: list[Submitted]
) -> None:
    content = {
        "experiment": experiment,
        "command": shlex.join(sys.argv),
        "commit": commit,
        "time": time.strftime("%F %T"),
        "stages": [dataclasses.asdict(stage) for stage in submitted],
    }
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(folder / "submission.json", text.encode())


def read_submission(root: Path) -> list[Submitted]:
    """The stages of the newest submission in an experiment's folder; none if there is none."""
    files = (root / "slurm").glob("*/submission.json")
    numbered = [path for path in files if path.parent.name.isdecimal()]
    if not numbered:
        return []
    newest = max(numbered, key=lambda path: int(path.parent.name))
    try:
        return [Submitted(**stage) for stage in json.loads(newest.read_text())["stages"]]
    except OSError as error:
        raise unreadable(error, f"cannot read {newest}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{newest} is damaged: {error}") from error


def own_jobs(root: Path, stages: list[Submitted]) -> list[str]:
    """The jobs of an experiment, without those of others that it waits for."""
    root = root.resolve()
    return [stage.job for stage in stages if stage.job and Path(stage.logs).is_relative_to(root)]


def refuse_live(root: Path) -> None:
    """A :class:`UserError` if jobs of an earlier submission are still in the queue: two would write
    to the same folders.
    """
    jobs = own_jobs(root, read_submission(root))
    live = [number for number, (state, _) in job_states(jobs).items() if is_live(state)]
    if live:
        raise UserError(
            f"jobs {', '.join(live)} of {root} are still in the queue: wait, or python"
            f" launch/slurm.py cancel {root}"
        )


def new_folder(root: Path) -> Path:
    """Make the folder of a new submission."""
    try:
        (root / "slurm").mkdir(parents=True, exist_ok=True)
        folder = next_folder(root)
        folder.mkdir()
    except OSError as error:
        raise unreadable(error, f"cannot write to {root}: {error.strerror}") from error
    return folder


def next_folder(root: Path) -> Path:
    """Where the next submission of an experiment goes."""
    numbers = [int(path.name) for path in (root / "slurm").glob("*") if path.name.isdecimal()]
    return root / "slurm" / str(max(numbers, default=0) + 1)
