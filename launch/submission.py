"""An experiment as Slurm jobs: one for each stage that is not finished, chained, with all they need
in the experiment's folder.

slurm/N/submission.json    what was submitted: stages, job ids, resources, the command slurm/N/code/
the code, as it was then slurm/N/STAGE/             the resolved config, the batch script, logs, and
submitit's files slurm/N/STAGE/attempts/    nodes and exit statuses of every attempt, see
launch/job.py
"""

import contextlib
import dataclasses
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import job
from launch.cluster import is_live, job_states, require_slurm
from launch.pipeline import COMMANDS, Experiment, StageJob
from launch.sites import Site, apply, environment
from launch.snapshot import take_snapshot
from lt_train.config.load import load_config, to_yaml
from lt_train.errors import UserError

SHARED = ("prepare", "train")  # kinds of stages whose folder may be another experiment's too


@dataclass(frozen=True)
class Submitted:
    """A stage that was submitted, or skipped because it is finished (job "")."""

    name: str
    kind: str
    run_dir: str
    job: str
    nodes: int
    ranks: int
    logs: str


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
    for stage in experiment.stages:  # a mistake is told before any stage is in the queue
        site_of(stage, experiment, site, options)
    root = Path(experiment.root).resolve()
    refuse_live(root)
    beside = _beside(root)
    shared = {stage.name: _shared(stage, others, beside) for stage in experiment.stages}
    folder = new_folder(root)
    commit = take_snapshot(folder / "code")
    submitted: list[Submitted] = []
    try:
        for stage in experiment.stages:
            submitted.append(
                shared[stage.name]
                or _submit_stage(stage, experiment, site, options, folder, submitted, after)
            )
    finally:  # also when a later stage is refused: what is in the queue must be known
        about = {
            "experiment": experiment.name,
            "command": shlex.join(sys.argv),
            "commit": commit,
            "time": time.strftime("%F %T"),
        }
        stages = [dataclasses.asdict(stage) for stage in submitted]
        (folder / "submission.json").write_text(
            json.dumps({**about, "stages": stages}, indent=1) + "\n"
        )
    return submitted


def _beside(root: Path) -> list[Submitted]:
    """What the experiments beside this one have submitted."""
    found = []
    for folder in sorted(root.parent.glob("*/slurm")):
        with contextlib.suppress(UserError):  # a damaged one is told to those who ask for it
            found += [
                stage
                for stage in read_submission(folder.parent)
                if stage.job and folder.parent != root
            ]
    return found


def _shared(
    stage: StageJob, submitted: list[Submitted], beside: list[Submitted]
) -> Submitted | None:
    """The job of another experiment that makes what ``stage`` would: one ``submitted`` just before,
    or one ``beside`` that lives.
    """
    if stage.kind not in SHARED:
        return None
    same, elsewhere = (
        [other for other in others if (other.kind, other.run_dir) == (stage.kind, stage.run_dir)]
        for others in (submitted, beside)
    )
    if not same:
        states = job_states([other.job for other in elsewhere])
        same = [other for other in elsewhere if is_live(states[other.job][0])]
    if not same:
        return None
    found, logs = same[0], Path(same[0].logs)
    if (
        found.job
        and stage.kind == "train"
        and (logs.parent / f"{logs.parent.name}.yaml").read_text() != _resolved(stage)
    ):
        raise UserError(
            f"stage {stage.name}: job {found.job} trains in {stage.run_dir} with other keys: give"
            " the same ones, or cancel it first"
        )
    return dataclasses.replace(found, name=stage.name)


def _resolved(stage: StageJob) -> str:
    return to_yaml(load_config(stage.config, list(stage.overrides)))


def read_submission(root: Path) -> list[Submitted]:
    """The stages of the newest submission in an experiment's folder; none if there is none."""
    found = sorted(
        (
            path
            for path in (root / "slurm").glob("*/submission.json")
            if path.parent.name.isdecimal()
        ),
        key=lambda path: int(path.parent.name),
    )
    if not found:
        return []
    try:
        return [Submitted(**stage) for stage in json.loads(found[-1].read_text())["stages"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found[-1]} is damaged: {error}") from error


def own_jobs(root: Path, stages: list[Submitted]) -> list[str]:
    """The jobs of an experiment, without those of others that it waits for."""
    return [
        stage.job
        for stage in stages
        if stage.job and Path(stage.logs).is_relative_to(root.resolve())
    ]


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


def parameters(stage: StageJob, site: Site, folder: Path, after: list[str]) -> dict[str, Any]:
    """What submitit's executor is told for a stage that waits for the jobs ``after``."""
    python = site.python or shlex.quote(sys.executable)
    attempts = shlex.quote(str(folder / stage.name / "attempts")) + (
        "/$SLURM_ARRAY_TASK_ID" if stage.tasks > 1 else ""
    )
    exports = {
        **environment(site),
        "TORCH_FR_DUMP_TEMP_FILE": str(
            folder / stage.name / "flight_recorder_rank_"
        ),  # written when a NCCL collective hangs
        "PYTHONSAFEPATH": (
            "1"
        ),  # or `python -m` would prefer the checkout that the job was submitted from
        "PYTHONPATH": (
            f"{folder / 'code'}{os.pathsep + os.environ['PYTHONPATH'] if os.environ.get('PYTHONPATH') else ''}"
        ),
    }
    wanted = {
        "job_name": stage.name,
        "nodes": site.nodes,
        "ntasks_per_node": site.ranks_per_node,
        "cpus_per_task": site.cpus_per_gpu,
        "time": site.minutes,
        "signal_delay_s": min(
            site.signal_before_end, site.minutes * 30
        ),  # half of the limit, if that is shorter
        "setup": [
            *site.setup,
            *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
            f"{python} -m launch.job begin {attempts} {site.max_requeues} || exit $?",
        ],
        "teardown": [
            "status=$?",
            f"{python} -m launch.job end {attempts} $status {site.max_requeues}",
            "exit $?",
        ],
        "srun_args": [
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={site.cpus_per_gpu}",
        ],  # since 22.05 srun does not take it from sbatch
        "stderr_to_stdout": True,
        "additional_parameters": {
            key: value
            for key, value in {"requeue": True, **site.sbatch}.items()
            if value is not None and value is not False
        },
        **{
            key: getattr(site, key)
            for key in ("partition", "account", "qos", "constraint")
            if getattr(site, key)
        },
    }
    if stage.kind == "prepare":  # no GPUs, and no ranks: one process with workers
        wanted |= {"nodes": 1, "ntasks_per_node": 1}
    elif not site.cpu_ranks_per_node:
        wanted["gpus_per_node"] = site.gpus_per_node
    if after:
        wanted["dependency"] = f"afterok:{':'.join(after)}"
        wanted["additional_parameters"] |= {"kill-on-invalid-dep": "yes"}
    if site.mem_per_gpu:
        if "gpus_per_node" in wanted:
            wanted["mem_per_gpu"] = site.mem_per_gpu
        else:
            wanted["additional_parameters"]["mem"] = _times(
                site.mem_per_gpu, wanted["ntasks_per_node"]
            )
    return wanted


def calls(stage: StageJob, site: Site, folder: Path) -> list[Any]:
    """What the stage's job runs: one call for all ranks, or one for each task of an array."""
    attempts = str(folder / stage.name / "attempts")
    if stage.kind == "prepare":
        chosen = any(word.partition("=")[0] == "--workers" for word in stage.words)
        words = stage.words if chosen else (*stage.words, "--workers", str(site.cpus_per_gpu))
        return [job.TaskJob("data_prep", words, index, stage.tasks) for index in range(stage.tasks)]
    if stage.kind == "run":
        return [job.RankJob(job.train, ("lt_train", *stage.words), attempts)]
    config = str(folder / stage.name / f"{stage.name}.yaml")
    if stage.kind == "score":
        words = ("lt_train", "score", config, "--task")
        folders = [
            f"{attempts}/{index}" if stage.tasks > 1 else attempts for index in range(stage.tasks)
        ]
        return [
            job.RankJob(job.train, (*words, f"{index}/{stage.tasks}"), place)
            for index, place in enumerate(folders)
        ]
    return [job.RankJob(job.train, ("lt_train", config), attempts)]


def site_of(stage: StageJob, experiment: Experiment, site: Site, options: dict[str, Any]) -> Site:
    """The site with the stage's own resources, and the command line's over both."""
    return apply(site, stage.resources, f"{experiment.name}, stage {stage.name}: ", options)


def _submit_stage(
    stage: StageJob,
    experiment: Experiment,
    site: Site,
    options: dict,
    folder: Path,
    before: list[Submitted],
    after: str | None,
) -> Submitted:
    mine = site_of(stage, experiment, site, options)
    ranks = 1 if stage.kind == "prepare" else mine.nodes * mine.ranks_per_node
    here = folder / stage.name
    if stage.is_finished():
        return Submitted(stage.name, stage.kind, stage.run_dir, "", mine.nodes, ranks, "")
    here.mkdir(parents=True)
    if stage.kind not in COMMANDS:
        (here / f"{stage.name}.yaml").write_text(_resolved(stage))
    jobs = [done.job for done in before if done.name in stage.after and done.job]
    wanted = parameters(stage, mine, folder, jobs or ([after] if after else []))
    number = _submit(here, wanted, calls(stage, mine, folder), mine)
    logs = here / (f"{number}_*_log.out" if stage.tasks > 1 else f"{number}_0_log.out")
    return Submitted(
        stage.name, stage.kind, stage.run_dir, number, wanted["nodes"], ranks, str(logs)
    )


def _submit(folder: Path, wanted: dict[str, Any], functions: list[Any], site: Site) -> str:
    import submitit

    executor = submitit.SlurmExecutor(folder, python=site.python)
    try:
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # submitit repeats there what the error says
            executor.update_parameters(**wanted)
            if len(functions) == 1:
                return executor.submit(functions[0]).job_id
            with executor.batch():  # an array
                jobs = [executor.submit(function) for function in functions]
            return jobs[0].job_id.split("_")[0]
    except submitit.core.utils.FailedJobError as error:
        raise UserError(
            "sbatch refuses the job:"
            f" {'; '.join(str(error).replace('sbatch: error: ', '').splitlines())}"
        ) from error


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
    stage = StageJob(name, "train", str(folder / name))
    wanted = parameters(stage, dataclasses.replace(site, max_requeues=0), folder, [])
    if after:
        wanted["dependency"] = f"afterany:{':'.join(after)}"
    (folder / name).mkdir(parents=True)
    call = job.RankJob(main, (name, *words), str(folder / name / "attempts"))
    number = _submit(folder / name, wanted, [call], site)
    return Submitted(
        name,
        "call",
        str(folder / name),
        number,
        site.nodes,
        site.nodes * site.ranks_per_node,
        str(folder / name / f"{number}_0_log.out"),
    )


def script(stage: StageJob, site: Site, folder: Path, after: list[str]) -> str:
    """The batch script that would be submitted."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = site.python or shlex.quote(sys.executable)
    here = folder / stage.name
    array = {"map_count": stage.tasks} if stage.tasks > 1 else {}
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(here))}"
    return _make_sbatch_string(command, here, **parameters(stage, site, folder, after), **array)


def new_folder(root: Path) -> Path:
    """Make the folder of a new submission."""
    try:
        (root / "slurm").mkdir(parents=True, exist_ok=True)
        folder = next_folder(root)
        folder.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror}") from error
    return folder


def next_folder(root: Path) -> Path:
    """Where the next submission of an experiment goes."""
    numbers = [int(path.name) for path in (root / "slurm").glob("*") if path.name.isdecimal()]
    return root / "slurm" / str(max(numbers, default=0) + 1)


def _times(memory: str, number: int) -> str:
    unit = memory.lstrip("0123456789")
    return f"{int(memory.removesuffix(unit) or 0) * number}{unit}"
