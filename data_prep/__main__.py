"""Prepare a data set: ``python -m data_prep DATASET --out DIR ...``; look at one: ``python -m data_prep verify|info DIR``."""

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep import cifar, demo, folder
from lt_train.errors import UserError, run_cli

DATASETS = {"cifar10_lt": cifar, "demo": demo, "folder": folder}
console = Console(stderr=True, soft_wrap=True)


def main() -> int:
    arguments = _parse()
    return {"verify": _verify, "info": _info}.get(arguments.command, _prepare)(arguments)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data_prep", description="Turn raw images into webdataset shards with a manifest.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in DATASETS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the prepared data set goes; the same command again goes on")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--samples-per-shard", type=int, default=1000)
        command.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)")
        command.add_argument("--max-rejected", type=float, default=0.001, help="share of images that may be unusable (default: 0.001)")
    for name, text in (("verify", "read every byte and compare checksums"), ("info", "counts, shard sizes, shot groups, histogram")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("dir", type=Path, metavar="DIR")
    return parser.parse_args()


def _prepare(arguments: argparse.Namespace) -> int:
    from data_prep import shards

    for name, least in (("seed", 0), ("workers", 1), ("samples_per_shard", 1), ("val", 0), ("test", 0)):
        if getattr(arguments, name, least) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(arguments, name)}")
    plan = shards.make_plan(DATASETS[arguments.command].make_source(arguments), arguments.out, arguments.seed, arguments.samples_per_shard)
    for note in plan.source.notes:
        console.print(f"note: {note}", highlight=False)
    if shards.is_complete(plan):
        console.print(f"{arguments.out} is already complete", highlight=False)
        return 0
    columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}", "left", TimeRemainingColumn())
    columns = [TextColumn(column) if isinstance(column, str) else column for column in columns]
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        total = sum(len(indices) for _, _, indices in plan.shards)
        task = progress.add_task(plan.source.name, total=total, rate="")
        written = 0

        def report(images: int, size: int) -> None:
            nonlocal written
            written += size
            seconds = progress.tasks[task].elapsed or 1e-9
            done = progress.tasks[task].completed + images
            progress.update(task, advance=images, rate=f"{done / seconds:,.0f} images/s, {written / 1e6 / seconds:,.0f} MB/s")

        command = shlex.join(["python", "-m", "data_prep", *sys.argv[1:]])
        summary = shards.write(plan, arguments.workers, arguments.max_rejected, command, report)
    rate = f"{summary.images / summary.seconds:,.0f} images/s"
    skipped = f", {summary.skipped_shards} shards were finished before" if summary.skipped_shards else ""
    rejected = f", {len(summary.rejected)} rejected (rejected.jsonl)" if summary.rejected else ""
    console.print(f"{arguments.out}: {summary.images:,} images in {summary.seconds:.1f} s ({rate}){skipped}{rejected}", highlight=False)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import problems

    logging.getLogger("lt_train").setLevel(logging.ERROR)  # what the manifest warns of is among the problems
    found = 0
    for found, problem in enumerate(problems(arguments.dir), 1):
        sys.stdout.write(f"{problem}\n")
    if found:
        raise UserError(f"{arguments.dir} is damaged: {found} problem(s), listed above; prepare it again into another folder")
    sys.stdout.write(f"{arguments.dir}: all shards, checksums, counts and indices are as written\n")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import show

    show(arguments.dir, Console())
    return 0


if __name__ == "__main__":
    run_cli("data_prep", main)
