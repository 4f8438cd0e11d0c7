"""Submit a config or a pipeline to Slurm: ``python launch/slurm.py NAME --nodes N [key=value
...]``; ``status RUN_DIR``, ``cancel RUN_DIR``.
"""

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the checkout that this file is of, not the folder or an installed one
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.arguments import make_parser
from launch.batch import script
from launch.cluster import require_slurm
from launch.console import results, show
from launch.pipeline import COMMANDS, Experiment, StageJob, listing, load_experiment
from launch.sites import SITE_FILE, Site, load_site
from launch.snapshot import take_snapshot
from launch.submission import (
    Submitted,
    check_stages,
    new_folder,
    next_folder,
    site_of,
    submit,
    submit_call,
)
from lt_train.arguments import Parser
from lt_train.config.load import load_config
from lt_train.errors import UserError, run_cli

OPTIONS = {  # of a job; the site file has the same names
    "nodes": (int, "machines"),
    "gpus_per_node": (int, "GPUs, and ranks, a machine"),
    "cpus_per_gpu": (int, "cores a rank"),
    "mem_per_gpu": (str, "memory a rank, such as 32G"),
    "cpu_ranks_per_node": (int, "ranks a machine without GPUs"),
    "partition": (str, ""),
    "account": (str, ""),
    "qos": (str, ""),
    "constraint": (str, ""),
    "time": (str, "limit of one job, HH:MM:SS; a longer run goes on in the next"),
    "max_requeues": (
        int,
        "restarts after time limits, preemptions and failures (default: 100); three that make no"
        " new checkpoint end a job too",
    ),
}
SWITCHES = {
    "dry_run": "print the batch scripts and submit nothing",
    "follow": "stay, and show progress until all jobs have ended",
    "check": (
        "no experiment: test network, file system, DALI, clocks and versions of --nodes machines"
    ),
    "benchmark": (
        "measure the config on 1, 2, 4, ... --nodes machines: a table with scaling efficiency"
    ),
}
# how lines of the check's log begin that others wrote
NOT_OF_THE_CHECK = ("submitit ", "srun: ", "slurmstepd: ", "launch: ")
PROGRAM = "python launch/slurm.py"


def main(words: list[str] | None = None, program: str = PROGRAM) -> int:
    """Do what ``words`` (default: the process's) say; ``program`` stands in its usage."""
    words = sys.argv[1:] if words is None else words
    if words[:1] in (["status"], ["cancel"]):
        return _manage(words[0], words[1:], program)
    arguments = _parse(words, program)
    if arguments.list:
        sys.stdout.write(listing())
        return 0
    options = {name: getattr(arguments, name) for name in OPTIONS}
    site = load_site(arguments.site, options)
    if arguments.dry_run and (arguments.check or arguments.benchmark):
        raise UserError(
            "--dry-run prints the scripts of an experiment; it does not go with --check or"
            " --benchmark"
        )
    if arguments.check:
        return _check(site)
    if arguments.experiment is None:
        raise UserError("name a config or a pipeline, or give --check or --list")
    if arguments.benchmark:
        return _benchmark(arguments.experiment, arguments.overrides, arguments.seconds, site)
    experiments = [
        load_experiment(arguments.experiment, arguments.overrides, more)
        for more in _seeds(arguments.array_seeds)
    ]
    if arguments.dry_run:
        for experiment in experiments:
            _dry_run(experiment, site, options, arguments.after)
        return 0
    require_slurm()
    stages: list[Submitted] = []
    for experiment in experiments:
        stages += _submit(experiment, site, options, arguments.after, stages)
    if not arguments.follow:
        return 0
    from launch.status import follow

    completed = follow(stages, results)
    for experiment in experiments if completed else []:
        if experiment.has_report:
            subprocess.run(
                [sys.executable, "-m", "lt_train", "report", *experiment.report], check=False
            )
    return 0 if completed else 1


def _parse(words: list[str], program: str) -> argparse.Namespace:
    parser = make_parser(
        program,
        "Submit a config, or a pipeline as a chain of jobs, to Slurm. The same command again goes"
        " on with what is not finished. Also: status RUN_DIR, cancel RUN_DIR.",
    )
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument(
        "--site",
        type=Path,
        metavar="FILE",
        help=f"defaults of this cluster (default: {SITE_FILE}, if there is one)",
    )
    parser.add_argument(
        "--array-seeds",
        metavar="A-B",
        help="once for each seed from A to B, each in a folder of its own",
    )
    parser.add_argument("--after", metavar="JOBID", help="start when this job has completed")
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="with --benchmark: about how long each measurement takes (default: 3)",
    )
    return parser.parse_intermixed_args(words)


def _seeds(text: str | None) -> list[list[str]]:
    """What is overridden beside the rest, for each seed."""
    if text is None:
        return [[]]
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise UserError(f"--array-seeds must be like 0-4, not '{text}'")
    return [[f"seed={seed}"] for seed in range(first, last + 1)]


def _submit(
    experiment: Experiment,
    site: Site,
    options: dict[str, Any],
    after: str | None,
    others: list[Submitted],
) -> list[Submitted]:
    stages = submit(experiment, site, options, after, others)
    for stage, job in zip(experiment.stages, stages):
        if not job.job:
            show(f"{stage.title}: finished, skipped ({job.run_dir})")
            continue
        show(
            f"{stage.title}: job {job.job}, {job.nodes} node(s), {_ranks(stage, job.ranks)};"
            f" {job.run_dir}"
        )
        show(f"  log: tail -F {job.logs}")
    show(f"status: python launch/slurm.py status {experiment.root}")
    return stages


def _ranks(stage: StageJob, ranks: int) -> str:
    if stage.kind in COMMANDS:
        return f"{stage.tasks} task(s)" if stage.kind == "prepare" else f"{ranks} rank(s)"
    size = stage.resolve().global_batch_size
    local = f"{size // ranks}" + (f" to {-(-size // ranks)}" if size % ranks else "")
    return f"{ranks} rank(s), global batch {size}, {local} a rank"


def _dry_run(
    experiment: Experiment, site: Site, options: dict[str, Any], after: str | None
) -> None:
    check_stages(experiment, site, options)
    folder = next_folder(Path(experiment.root).resolve())
    for key, value in dataclasses.asdict(site).items():
        show(f"# site {key}: {value}")
    unfinished = {stage.name for stage in experiment.stages if not stage.is_finished()}
    for stage in experiment.stages:
        mine = site_of(stage, experiment, site, options)
        waits = f", after {', '.join(stage.after)}" if stage.after else ""
        goes_to = folder / stage.name if stage.name in unfinished else "finished, would be skipped"
        show(f"\n# stage {stage.name}{waits}: {goes_to}")
        if stage.why:
            show(f"# {stage.why}")
        show(f"# python -m {COMMANDS.get(stage.kind, 'lt_train')} {shlex.join(stage.command)}")
        jobs = [f"<job of {name}>" for name in stage.after if name in unfinished]
        show(script(stage, mine, folder, jobs or ([after] if after else [])))


def _check(site: Site) -> int:
    from launch import job
    from launch.status import wait

    require_slurm()
    folder = new_folder(Path("runs/check").resolve())
    take_snapshot(folder / "code")
    submitted = submit_call("check", job.check, [str(folder)], site, folder, [])
    show(
        f"check: job {submitted.job}, {submitted.nodes} node(s), {submitted.ranks} rank(s), log"
        f" {submitted.logs}"
    )
    state = wait([submitted.job], results)[submitted.job]
    log = Path(submitted.logs)
    for line in log.read_text(errors="replace").splitlines() if log.exists() else []:
        if not line.startswith(NOT_OF_THE_CHECK):
            show(line)
    if state != "COMPLETED":
        raise UserError(f"the check ended as {state}; see {submitted.logs}")
    return 0


def _benchmark(config: str, overrides: list[str], seconds: float, site: Site) -> int:
    from launch import job
    from launch.scaling import show_scaling
    from launch.status import wait

    require_slurm()
    load_config(config, overrides)  # a mistake is told before anything waits in a queue
    folder = new_folder(Path(f"runs/benchmark-{Path(config).stem}").resolve())
    take_snapshot(folder / "code")
    powers = {2**power for power in range(site.nodes.bit_length())}  # none above the number itself
    counts = sorted(powers | {site.nodes})
    submitted: list[Submitted] = []
    for count in counts:
        options = ["--seconds", str(seconds), "--json", str(folder / f"{count}.json")]
        words = [config, *overrides, *options]
        mine = dataclasses.replace(site, nodes=count)
        # one after the other: they would share the network
        before = [done.job for done in submitted[-1:]]
        made = submit_call(f"benchmark-{count}", job.benchmark, words, mine, folder, before)
        submitted.append(made)
        show(f"{count} node(s): job {made.job}, log {made.logs}")
    states = wait([done.job for done in submitted], results)
    failed = [
        f"{done.name} ({states[done.job]}, {done.logs})"
        for done in submitted
        if states[done.job] != "COMPLETED"
    ]
    files = {count: folder / f"{count}.json" for count in counts}
    show_scaling(files, folder / "scaling.md", results)
    if failed:
        raise UserError(f"did not complete: {', '.join(failed)}")
    return 0


def _manage(action: str, words: list[str], program: str) -> int:
    from launch.status import cancel, show_stages

    parser = Parser(prog=f"{program} {action}")
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the folder of the experiment"
    )
    root = parser.parse_args(words).run_dir
    if action == "status":
        show_stages(root, results)
    else:
        jobs = cancel(root)
        show(f"cancelled: {', '.join(jobs)}" if jobs else f"no job of {root} is in the queue")
    return 0


if __name__ == "__main__":
    run_cli("launch/slurm.py", main)
