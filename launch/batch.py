"""One stage as a batch job: what Slurm is asked for, what runs, and the script that says so."""

import contextlib
import io
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import job
from launch.pipeline import StageJob
from launch.sites import Site, environment
from lt_train.errors import UserError

OPTIONAL = ("partition", "account", "qos", "constraint")  # of sbatch, where the site has them
STAND_INS = {"sbatch": "echo Submitted batch job 1", "srun": "exit 1"}  # for scripts to look at


def parameters(stage: StageJob, site: Site, folder: Path, after: list[str]) -> dict[str, Any]:
    """What submitit's executor is told for a stage that waits for the jobs ``after``.

    ``folder``: of the submission.
    """
    optional = {key: getattr(site, key) for key in OPTIONAL}
    other = {"requeue": True, **site.sbatch}
    wanted = {
        "job_name": stage.name,
        "nodes": site.nodes,
        "ntasks_per_node": site.ranks_per_node,
        "cpus_per_task": site.cpus_per_gpu,
        "time": site.minutes,
        # half of the limit, if that is shorter
        "signal_delay_s": min(site.signal_before_end, site.minutes * 30),
        # since 22.05 srun does not take its cores from sbatch
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={site.cpus_per_gpu}"],
        "stderr_to_stdout": True,
        **_shell(stage, site, folder),
    }
    wanted |= {key: value for key, value in optional.items() if value}
    wanted["additional_parameters"] = {
        key: value for key, value in other.items() if value is not None and value is not False
    }
    if stage.kind == "prepare":  # no GPUs, and no ranks: one process with workers
        wanted |= {"nodes": 1, "ntasks_per_node": 1}
    elif not site.cpu_ranks_per_node:
        wanted["gpus_per_node"] = site.gpus_per_node
    if after:
        wanted["dependency"] = f"afterok:{':'.join(after)}"
        wanted["additional_parameters"]["kill-on-invalid-dep"] = "yes"
    if site.mem_per_gpu and "gpus_per_node" in wanted:
        wanted["mem_per_gpu"] = site.mem_per_gpu
    elif site.mem_per_gpu:
        memory = _times(site.mem_per_gpu, wanted["ntasks_per_node"])
        wanted["additional_parameters"]["mem"] = memory
    return wanted


def _shell(stage: StageJob, site: Site, folder: Path) -> dict[str, list[str]]:
    """The script's lines before and after the ranks."""
    python = site.python or shlex.quote(sys.executable)
    here = folder / stage.name
    attempts = shlex.quote(str(here / "attempts"))
    if stage.tasks > 1:
        attempts += "/$SLURM_ARRAY_TASK_ID"
    others = os.environ.get("PYTHONPATH")
    variables = {
        **environment(site),
        # written when a NCCL collective hangs
        "TORCH_FR_DUMP_TEMP_FILE": str(here / "flight_recorder_rank_"),
        # or `python -m` would prefer the checkout that the job was submitted from
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": f"{folder / 'code'}{os.pathsep + others if others else ''}",
    }
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    begin = f"{python} -m launch.job begin {attempts} {site.max_requeues} || exit $?"
    run_dir = shlex.quote(stage.run_dir)
    end = f"{python} -m launch.job end {attempts} {run_dir} $status {site.max_requeues}"
    return {
        "setup": [*site.setup, *exports, begin],
        "teardown": ["status=$?", end, "exit $?"],
    }


def _times(memory: str, number: int) -> str:
    unit = memory.lstrip("0123456789")
    return f"{int(memory.removesuffix(unit) or 0) * number}{unit}"


def calls(stage: StageJob, site: Site, folder: Path) -> list[job.RankJob] | list[job.TaskJob]:
    """What the stage's job runs: one call for all ranks, or one for each task of an array."""
    attempts = str(folder / stage.name / "attempts")
    if stage.kind == "prepare":
        chosen = any(word.partition("=")[0] == "--workers" for word in stage.words)
        words = stage.words if chosen else (*stage.words, "--workers", str(site.cpus_per_gpu))
        return [
            job.TaskJob("data_prep", words, index, stage.tasks, _of_task(attempts, stage, index))
            for index in range(stage.tasks)
        ]
    if stage.kind == "run":
        return [job.RankJob(job.train, ("lt_train", *stage.words), attempts)]
    config = str(folder / stage.name / f"{stage.name}.yaml")
    if stage.kind == "train":
        return [job.RankJob(job.train, ("lt_train", config), attempts)]
    found = []
    for index in range(stage.tasks):
        words = ("lt_train", "score", config, "--task", f"{index}/{stage.tasks}")
        found.append(job.RankJob(job.train, words, _of_task(attempts, stage, index)))
    return found


def _of_task(attempts: str, stage: StageJob, index: int) -> str:
    return f"{attempts}/{index}" if stage.tasks > 1 else attempts


def send(folder: Path, wanted: dict[str, Any], functions: Sequence[Any], site: Site) -> str:
    """Have sbatch take a job that makes these calls, an array if they are several; returns its id.

    ``folder`` is for submitit's files and the logs.
    """
    return _send(folder, wanted, functions, site).job_id.split("_")[0]


def _send(folder: Path, wanted: dict[str, Any], functions: Sequence[Any], site: Site) -> Any:
    """submitit's job, an array's first."""
    import submitit

    executor = submitit.SlurmExecutor(folder, python=site.python)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats there what errors say
            executor.update_parameters(**wanted)
            return executor.submit_array(functions)[0]
    except submitit.core.utils.FailedJobError as error:
        said = "; ".join(str(error).replace("sbatch: error: ", "").splitlines())
        raise UserError(f"sbatch refuses the job: {said}") from error


def script(stage: StageJob, site: Site, folder: Path, after: list[str]) -> str:
    """The batch script that would be submitted.

    submitit writes it for stand-ins of Slurm's commands into a temporary folder, whose name in the
    text is replaced.
    """
    from submitit.helpers import environment_variables

    wanted, functions = parameters(stage, site, folder, after), calls(stage, site, folder)
    here = str(folder / stage.name)
    quoted = shlex.quote(here)
    with tempfile.TemporaryDirectory() as temporary:
        for name, answer in STAND_INS.items():
            (Path(temporary) / name).write_text(f"#!/bin/sh\n{answer}\n")
            (Path(temporary) / name).chmod(0o755)
        if not shutil.which("sbatch", path=temporary):
            raise UserError(f"no program can run in {temporary}: set TMPDIR to another folder")
        # both names need quotes in the shell, or neither
        place = Path(temporary) / ("job" if quoted == here else "a job")
        with environment_variables(PATH=temporary):
            text = _send(place, wanted, functions, site).paths.submission_file.read_text()
    return text.replace(str(place), here if quoted == here else quoted[1:-1])
