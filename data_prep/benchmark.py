"""``--benchmark``: what a data set costs to prepare, against decode-checking alone and against
``tar cf``, on the user's own source.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.reading.checked import checked
from data_prep.reading.images import Picked
from data_prep.writing import shards
from data_prep.writing.plan import Plan, ShardPlan
from data_prep.writing.workers import in_workers
from lt_train.data.image_files.check import DECODED, Checker
from lt_train.data.image_files.places import ImageFiles, Images
from lt_train.errors import UserError, unreadable

# so much of the source is taken, spread over it, that checking it takes about so long
SECONDS = 3.0
TRIED = 200  # images by which that is estimated
REPEATS = 3


def run(plan: Plan, workers: int, console: Console) -> None:
    """Measure each way in turns, and print medians and ratios within a turn.

    Page cache warm from the first, untimed turn.
    """
    plan = _sample(plan, workers)
    total = sum(len(shard.indices) for shard in plan.shards)
    trusting = Checker(decode=False)
    ways = {
        "decode check alone": lambda _: list(in_workers(_check_shard, plan, plan.shards, workers)),
        "shards": lambda out: _write(plan, DECODED, out / "shards", workers),
        "shards, no decode check": lambda out: _write(plan, trusting, out / "trusted", workers),
    }
    files: list[str] = []
    for shard in plan.shards:
        files += _files(plan.source.splits[shard.split].images, shard.indices)
    if len(files) == total and shutil.which("tar"):
        ways["tar cf"] = lambda out: _tar(files, out)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    beside = next(path for path in plan.out.absolute().parents if path.is_dir())
    try:
        for turn in range(REPEATS + 1):
            for name, way in ways.items():
                with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=beside) as scratch:
                    os.sync()  # else one way pays for what another left to be written
                    started = time.monotonic()
                    way(Path(scratch))
                    if turn:
                        seconds[name].append(time.monotonic() - started)
    except OSError as error:
        message = f"cannot write to '{beside}': {error.strerror or error}"
        raise unreadable(error, f"{message}; --out says where to") from error
    _show(console, seconds, total, workers)


def _sample(plan: Plan, workers: int) -> Plan:
    """A smaller plan: every so many shards, a multiple of the workers, so that none of them idles
    at the end.
    """
    size = max(len(shard.indices) for shard in plan.shards)
    tried = replace(plan.shards[0], indices=plan.shards[0].indices[:TRIED])
    started = time.monotonic()
    _check_shard(plan, tried)
    images = SECONDS * workers * len(tried.indices) / (time.monotonic() - started)
    wanted = max(workers, int(images) // size // workers * workers)
    chosen = plan.shards[:: max(1, len(plan.shards) // wanted)][:wanted]
    splits = {shard.split for shard in chosen}
    kept = {name: split for name, split in plan.source.splits.items() if name in splits}
    return replace(plan, source=replace(plan.source, splits=kept), shards=chosen)


def _check_shard(plan: Plan, shard: ShardPlan) -> None:
    for _ in checked(plan.source.splits[shard.split], shard.indices, DECODED):
        pass


def _write(plan: Plan, checker: Checker, out: Path, workers: int) -> None:
    plan = replace(plan, out=out, checker=checker)
    shards.write(plan, workers, 1.0, "benchmark", lambda images, size: None)


def _tar(files: list[str], out: Path) -> None:
    command = ["tar", "cf", out / "files.tar", "--null", "-P", "-T", "-"]
    done = subprocess.run(
        command, input=b"\0".join(map(os.fsencode, files)), stderr=subprocess.PIPE
    )
    if done.returncode:
        raise UserError(f"tar cannot write the images: {os.fsdecode(done.stderr)}")


def _files(images: Images, indices: Sequence[int]) -> list[str]:
    """The paths of images that are files of their own."""
    if isinstance(images, Picked):
        return _files(images.images, images.indices[list(indices)])
    if isinstance(images, ImageFiles):
        return [os.path.join(images.root, images.names[int(index)]) for index in indices]
    return []


def _show(console: Console, seconds: dict[str, list[float]], total: int, workers: int) -> None:
    table = Table(
        "measured",
        "images/s",
        "seconds",
        title=f"{total:,} images, {workers} worker(s), medians of {REPEATS}, page cache warm",
    )
    for name, values in seconds.items():
        middle = statistics.median(values)
        table.add_row(name, f"{total / middle:,.0f}", f"{middle:.2f}")
    console.print(table)
    for name, base in (("shards", "decode check alone"), ("shards, no decode check", "tar cf")):
        if base in seconds:
            ratio = statistics.median(
                there / here for here, there in zip(seconds[name], seconds[base])
            )
            console.print(f"{name} over {base}: {ratio:.3f}", highlight=False)
