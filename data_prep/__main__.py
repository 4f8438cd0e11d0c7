"""Prepare a data set: ``python -m data_prep DATASET --out DIR ...``; look at one: ``python -m
data_prep verify|info DIR``.
"""

import argparse
import logging
import math
import os
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.reading.check import Checker
from data_prep.reading.source import Recipe
from data_prep.sets import cifar, demo, folder, imagenet, svhn, tinyimages, unlabeled
from data_prep.sets import inat_places as listed
from data_prep.writing.plan import Plan, Task
from lt_train.console import console, setup_logging
from lt_train.errors import UserError, parse_task, run_cli

RECIPES: dict[str, Recipe] = {
    name: recipe
    for module in (imagenet, listed, cifar, svhn, unlabeled, tinyimages, folder, demo)
    for name, recipe in module.RECIPES.items()
}
# what is made does not depend on these
OPERATIONAL = {"command", "out", "workers", "task", "max_rejected", "dali_index", "benchmark"}
# smallest and largest value of an option; NumPy's legacy generator takes seeds of 32 bits
LIMITS = {
    "seed": (0, 2**32 - 1),
    "workers": (1, math.inf),
    "samples_per_shard": (1, math.inf),
    "val": (0, math.inf),
    "test": (0, math.inf),
    "per_class": (1, math.inf),
    "resize": (1, math.inf),
    "quality": (1, 100),
    "max_rejected": (0, 1),
}
# characters that a table may take: a narrower terminal breaks its lines, but no number is cut off
WIDTH = 120
PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


def main() -> int:
    arguments, parser = _parse()
    setup_logging(True)
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks
    if arguments.command in RECIPES:
        return _prepare(arguments, parser)
    return {"verify": _verify, "info": _info}[arguments.command](arguments)


def _parse() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Turn raw images into webdataset shards with a manifest.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.help, description=recipe.help)
        recipe.add_arguments(command)
        _add_common_arguments(command, recipe)
    command = commands.add_parser(
        "verify",
        help="read every byte and compare checksums",
        description="Read every byte and compare checksums.",
    )
    command.add_argument("dir", type=Path, metavar="DIR")
    text = "counts, head and tail, shard sizes, shot groups, histogram"
    command = commands.add_parser("info", help=text, description=text)
    command.add_argument("dir", type=Path, metavar="DIR")
    command.add_argument(
        "--plot",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="also draw the class counts as PNG (default: DIR/class_counts.png)",
    )
    arguments = parser.parse_args()
    return arguments, commands.choices[arguments.command]


def _add_common_arguments(command: argparse.ArgumentParser, recipe: Recipe) -> None:
    group = command.add_argument_group("for every data set")
    group.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the prepared data set goes; the same command again goes on",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--samples-per-shard",
        type=int,
        default=recipe.samples_per_shard,
        help=f"(default: {recipe.samples_per_shard})",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: one a core)",
    )
    group.add_argument(
        "--task",
        type=lambda text: Task(*parse_task(text)),
        default=Task(),
        metavar="I/N",
        help=(
            "do only part I (0 ... N-1) of N, as one of N array jobs; the last to end writes the"
            " manifest"
        ),
    )
    group.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help=(
            "re-encode larger training images with this shorter side; val and test keep their bytes"
        ),
    )
    group.add_argument(
        "--quality", type=int, default=90, help="JPEG quality of --resize (default: 90)"
    )
    group.add_argument(
        "--no-decode-check", action="store_true", help="trust the images: read their headers only"
    )
    group.add_argument(
        "--max-rejected",
        type=float,
        default=0.001,
        help="share of images that may be unusable (default: 0.001)",
    )
    group.add_argument(
        "--dali-index",
        action="store_true",
        help="also write the .idx files that DALI's readers.webdataset takes",
    )
    group.add_argument(
        "--benchmark",
        action="store_true",
        help=(
            "write nothing that stays: measure rates on this source, in a scratch folder beside"
            " --out"
        ),
    )


def _prepare(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from data_prep.writing import shards
    from data_prep.writing.plan import is_complete, make_plan, tidy

    for name, (least, most) in LIMITS.items():
        value = getattr(arguments, name, None)
        if value is not None and not least <= value <= most:
            limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"--{name.replace('_', '-')} must be {limits}, not {value}")
    checker = Checker(not arguments.no_decode_check, arguments.resize, arguments.quality)
    try:
        source = RECIPES[arguments.command].make_source(arguments)
    except OSError as error:
        raise UserError(
            f"cannot read the source: {error.filename}: {error.strerror or error}"
        ) from error
    plan = make_plan(source, arguments.out, arguments.seed, arguments.samples_per_shard, checker)
    for note in source.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    if arguments.benchmark:
        from data_prep.benchmark import run

        run(plan, arguments.workers, Console())
        return 0
    if is_complete(plan):
        tidy(plan)  # if the run that completed it was killed before it could
        _say(f"{plan.out} is already complete")
    else:
        with _Bar(plan, arguments.task) as bar:
            summary = shards.write(
                plan,
                arguments.workers,
                arguments.max_rejected,
                _command(arguments, parser),
                bar.report,
                arguments.task,
            )
        _say(_summary(plan, summary, arguments.task))
    if arguments.dali_index and is_complete(plan):
        from data_prep.writing.dali_index import write_dali_index

        _say(f"{write_dali_index(plan.out)} index files for DALI written")
    return 0


def _command(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command that makes this data set, with nothing in it that the data set does not depend
    on.
    """
    words = ["python", "-m", "data_prep", arguments.command]
    for action in parser._actions:
        value = getattr(arguments, action.dest, None)
        if action.dest not in OPERATIONAL and value is not None and value != action.default:
            words += (
                [action.option_strings[0]]
                if value is True
                else [action.option_strings[0], str(value)]
            )
    return shlex.join(words)


class _Bar:
    """Progress with images/s, MB/s and the time left; where there is no terminal, a line every ten
    seconds.
    """

    def __init__(self, plan: Plan, task: Task):
        self.name, self.last_line, self.started = (
            plan.source.name,
            time.monotonic(),
            time.monotonic(),
        )
        self.images = self.bytes = self.found = 0  # written now, and finished before
        self.total = sum(len(shard.indices) for shard in plan.shards[task.index :: task.count])
        columns = (
            "[bold]{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[rate]}",
            "left",
            TimeRemainingColumn(),
        )
        columns = [TextColumn(column) if isinstance(column, str) else column for column in columns]
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bar = self.progress.add_task(escape(self.name), total=self.total, rate="")

    def __enter__(self) -> "_Bar":
        self.progress.start()
        return self

    def __exit__(self, *_exception) -> None:
        self.progress.stop()

    def report(self, images: int, size: int) -> None:
        if not size:
            self.found += images
        else:
            self.images, self.bytes = self.images + images, self.bytes + size
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = f"{self.images / seconds:,.0f} images/s, {self.bytes / 1e6 / seconds:,.0f} MB/s"
        done = self.images + self.found
        self.progress.update(self.bar, completed=done, rate=rate)
        if (
            not console.is_terminal
            and self.images
            and time.monotonic() - self.last_line > PLAIN_EVERY
        ):
            self.last_line = time.monotonic()
            _say(
                f"{self.name}: {done:,}/{self.total:,}, {rate},"
                f" {(self.total - done) * seconds / self.images:.0f} s left"
            )


def _summary(plan: Plan, summary, task: Task) -> str:
    part = f" (task {task.index}/{task.count})" if task.count > 1 else ""
    rate = (
        f"{summary.images:,} images in {summary.seconds:.1f} s"
        f" ({summary.images / summary.seconds:,.0f} images/s,"
        f" {summary.bytes / 1e6 / summary.seconds:,.0f} MB/s)"
    )
    skipped = (
        f", {summary.skipped_shards} shards were finished before" if summary.skipped_shards else ""
    )
    rejected = f", {len(summary.rejected)} rejected (rejected.jsonl)" if summary.rejected else ""
    missing = (
        f"; {summary.missing} shards of other tasks are missing, the last task to end completes"
        " the set"
        if summary.missing
        else ", complete"
    )
    return f"{plan.out}{part}: {rate}{skipped}{rejected}{missing}"


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def _verify(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import problems

    logging.getLogger("lt_train").setLevel(
        logging.ERROR
    )  # what the manifest warns of is among the problems
    found = 0
    for found, problem in enumerate(problems(arguments.dir), 1):
        sys.stdout.write(f"{problem}\n")
    if found:
        raise UserError(
            f"{arguments.dir} is damaged: {found} problem(s), listed above; prepare it again into"
            " another folder"
        )
    sys.stdout.write(f"{arguments.dir}: all shards, checksums, counts and indices are as written\n")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from data_prep.inspect import plot, show

    show(arguments.dir, Console(width=max(Console().width, WIDTH)))
    if arguments.plot is not None:
        file = arguments.dir / "class_counts.png" if arguments.plot == Path() else arguments.plot
        plot(arguments.dir, file)
        sys.stdout.write(f"drawn: {file}\n")
    return 0


if __name__ == "__main__":
    run_cli("data_prep", main)
