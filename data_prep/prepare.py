"""``python -m data_prep DATASET``: from the options to the finished data set."""

import argparse
from importlib.util import find_spec

from rich.console import Console

from data_prep.options import check_limits
from data_prep.progress import Bar
from data_prep.reading.source import Recipe, Source
from data_prep.writing import shards
from data_prep.writing.plan import Plan, Task, is_complete, make_plan, tidy
from lt_train.console import say, working
from lt_train.data.image_files.check import Checker
from lt_train.errors import unreadable


def prepare(recipe: Recipe, arguments: argparse.Namespace, made_by: str) -> int:
    """Write the data set, or go on with it; ``made_by``: the command that it keeps."""
    check_limits(arguments)
    checker = _checker(arguments)
    try:
        with working("looking through the source"):
            source = recipe.make_source(arguments)
    except OSError as error:
        message = f"cannot read the source: {error.filename}: {error.strerror or error}"
        raise unreadable(error, message) from error
    with working("dealing the images over shards"):
        per_shard = arguments.samples_per_shard
        plan = make_plan(source, arguments.out, arguments.seed, per_shard, checker)
    for note in source.notes:
        say(f"note: {note}")
    say(source.passed.after(_understood(source)))
    if arguments.benchmark:
        from data_prep.benchmark import run

        run(plan, arguments.workers, Console())
        return 0
    if is_complete(plan):
        tidy(plan)  # if the run that completed it was killed before it could
        say(f"{plan.out} is already complete")
    else:
        task, max_rejected = arguments.task, arguments.max_rejected
        with Bar(plan, task) as bar:
            summary = shards.write(plan, arguments.workers, max_rejected, made_by, bar.report, task)
        say(_told(plan, summary, task))
    if arguments.dali_index and is_complete(plan):
        from data_prep.writing.dali_index import write_dali_index

        say(f"{write_dali_index(plan.out)} index files for DALI written")
    return 0


def _checker(arguments: argparse.Namespace) -> Checker:
    decode = not arguments.no_decode_check
    pillow_only = decode and not _has_dali()
    if pillow_only:
        say(
            "note: DALI is not installed here: images are checked by Pillow alone, and training by"
            " DALI (data.loader=dali) may read odd ones otherwise"
        )
    return Checker(decode, arguments.resize, arguments.quality, pillow_only)


def _has_dali() -> bool:
    try:
        return find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # nor is anything else of nvidia's
        return False


def _understood(source: Source) -> str:
    """What the data set will hold, in one line."""
    sizes = {name: len(split.keys) for name, split in source.splits.items()}
    line = f"{source.name}: {sum(sizes.values()):,} images"
    if source.classes:
        line += f" of {len(source.classes):,} class{'es' if len(source.classes) > 1 else ''}"
    parts = []
    for name, split in source.splits.items():
        unlabeled = " unlabeled" if split.labels is None else ""
        parts.append(f"{name} {sizes[name]:,}{unlabeled}")
    return f"{line}: {', '.join(parts)}"


def _told(plan: Plan, summary: shards.Summary, task: Task) -> str:
    """One line on what a run did."""
    part = f" (task {task.index}/{task.count})" if task.count > 1 else ""
    images_rate = summary.images / summary.seconds
    bytes_rate = summary.bytes / 1e6 / summary.seconds
    line = (
        f"{plan.out}{part}: {summary.images:,} images in {summary.seconds:.1f} s"
        f" ({images_rate:,.0f} images/s, {bytes_rate:,.0f} MB/s)"
    )
    if summary.skipped_shards:
        line += f", {summary.skipped_shards} shards were finished before"
    if summary.rejected:
        line += f", {len(summary.rejected)} rejected (rejected.jsonl)"
    if summary.reencoded:
        line += f", {len(summary.reencoded)} re-encoded (reencoded.jsonl)"
    if summary.missing:
        return (
            f"{line}; {summary.missing} shards of other tasks are missing, the last task to end"
            " completes the set"
        )
    return f"{line}, complete"
