"""Tars and manifest: how any source becomes a prepared data set.

Every shard is written beside, fsynced and renamed, and its manifest rows are kept in .partial/
until the end, so an interrupted run goes on after its last finished shard and ends with the same
bytes, however many workers and tasks shared the work. dataset.json comes last: a folder that has
one is complete.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.reading.checked import checked
from data_prep.reading.source import SourceSplit
from data_prep.writing.plan import ALONE, Plan, ShardPlan, Task, claim, finishing, is_complete, tidy
from data_prep.writing.tar_writer import TarWriter
from data_prep.writing.workers import in_workers
from lt_train import __version__
from lt_train.data.dataset import Dataset, Shard, Split, write_dataset
from lt_train.data.image_files.check import Checked, Rejected
from lt_train.data.tables import MANIFEST_SCHEMA, UNLABELED, write_manifest
from lt_train.errors import UserError, unreadable
from lt_train.files import atomic_file, file_sha256, write_atomically

ROWS = ".rows.arrow"  # after a shard's name: its manifest rows
ABOUT = b"shard"  # the key of what is known of a shard in its rows' schema

# called with (images, bytes) as shards are finished; bytes 0: finished before
Report = Callable[[int, int], None]


@dataclass
class Summary:
    """What a run did.

    ``missing``: shards that other tasks have not finished yet, so that the data set is not
    complete.
    """

    images: int = 0
    bytes: int = 0
    shards: int = 0
    skipped_shards: int = 0
    missing: int = 0
    rejected: list[dict] = field(default_factory=list)
    reencoded: list[dict] = field(default_factory=list)
    seconds: float = 0.0


def write(
    plan: Plan, workers: int, max_rejected: float, command: str, report: Report, task: Task = ALONE
) -> Summary:
    """Write every shard of ``task`` that is not finished yet; the last task writes the manifests
    and dataset.json.

    Raises :class:`UserError` when more than ``max_rejected`` of the images are unusable; the same
    call with more goes on from there.
    """
    started = time.monotonic()
    summary = Summary()
    try:
        with claim(plan, task):
            waiting = []
            # another run may have been faster
            mine = [] if is_complete(plan) else plan.shards[task.index :: task.count]
            done = _finished(plan)
            for shard in mine:
                if shard.name in done:
                    summary.skipped_shards += 1
                    report(len(shard.indices), 0)
                else:
                    waiting.append(shard)
            for images, rejected, size in in_workers(_write_shard, plan, waiting, workers):
                summary.shards += 1
                summary.images += images - rejected
                summary.bytes += size
                report(images, size)
            with finishing(plan):
                if not is_complete(plan):
                    _finish(plan, max_rejected, command, summary)
        # only now are the locks closed: on NFS, a folder that holds an open file cannot go
        if not summary.missing:
            tidy(plan)
    except OSError as error:
        message = f"cannot write to '{plan.out}': {error.strerror or error}"
        raise unreadable(error, f"{message}; the same command again goes on from there") from error
    summary.seconds = time.monotonic() - started
    return summary


def _write_shard(plan: Plan, shard: ShardPlan) -> tuple[int, int, int]:
    """Write one shard of the plan, then its rows; returns (images, rejected ones among them,
    bytes).
    """
    split = plan.source.splits[shard.split]
    images = checked(split, shard.indices, plan.checker_of(shard.split))
    rows = _Rows()
    temporary = plan.partial / f"{shard.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb", buffering=0) as file:
            writer = TarWriter(file)
            for index, image in images:
                _add_sample(writer, rows, split, index, image)
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, plan.out / shard.name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _write_rows(plan, shard, rows, writer)
    return len(shard.indices), len(rows.rejected), writer.offset


@dataclass
class _Rows:
    """What became of a shard's samples; those re-encoded are among the samples."""

    samples: list[dict] = field(default_factory=list)
    rejected: list[dict] = field(default_factory=list)
    reencoded: list[dict] = field(default_factory=list)


def _write_rows(plan: Plan, shard: ShardPlan, rows: _Rows, writer: TarWriter) -> None:
    """The manifest rows of a shard, whose file says that it is finished."""
    split = plan.source.splits[shard.split]
    schema = _schema(split)
    samples = rows.samples
    columns = {"shard": np.full(len(samples), shard.number, np.int32)}
    for name in MANIFEST_SCHEMA.names:
        if name != "shard":
            columns[name] = [row[name] for row in samples]
    indices = [row["index"] for row in samples]
    columns |= {name: column[indices] for name, column in split.columns.items()}
    about = {
        "samples": len(samples),
        "bytes": writer.offset,
        "sha256": writer.sha256(),
        "rejected": rows.rejected,
        "reencoded": rows.reencoded,
    }
    table = pa.table(
        {name: columns[name] for name in schema.names},
        schema.with_metadata({ABOUT: json.dumps(about)}),
    )
    with atomic_file(_rows_path(plan, shard)) as file, pa.ipc.new_file(file, table.schema) as sink:
        sink.write_table(table)


def _schema(split: SourceSplit) -> pa.Schema:
    more = [(name, pa.from_numpy_dtype(column.dtype)) for name, column in split.columns.items()]
    return pa.schema([*MANIFEST_SCHEMA, *(pa.field(*field) for field in more)])


def _add_sample(
    writer: TarWriter, rows: _Rows, split: SourceSplit, index: int, image: Checked | Rejected
) -> None:
    """Add one sample to the shard, if it can be used, and describe it."""
    key = split.keys[index]
    label = UNLABELED if split.labels is None else int(split.labels[index])
    if isinstance(image, Rejected):
        rows.rejected.append({"key": key, "label": label, "reason": image.reason})
        return
    if image.note:
        rows.reencoded.append({"key": key, "label": label, "reason": image.note})
    offset = writer.add(f"{key}.{image.extension}", image.content)
    if label != UNLABELED:
        writer.add(f"{key}.cls", b"%d" % label)
    row = {
        "index": index,
        "key": key,
        "offset": offset,
        "size": len(image.content),
        "label": label,
        "width": image.width,
        "height": image.height,
        "crc32": zlib.crc32(image.content),
    }
    rows.samples.append(row)


def _finish(plan: Plan, max_rejected: float, command: str, summary: Summary) -> None:
    """Join the shards' rows into manifests, unless shards are missing or too many images were
    rejected.
    """
    paths = {shard.name: _rows_path(plan, shard) for shard in plan.shards}
    summary.missing = len({shard.name for shard in plan.shards} - _finished(plan))
    if summary.missing:
        return
    for path in plan.out.glob(".*.tmp"):  # of a run that was killed while it wrote a manifest
        path.unlink()
    splits = {name: Split(0, [], [], 0) for name in plan.source.splits}
    for shard in plan.shards:
        about = json.loads(_read_rows(paths[shard.name]).schema.metadata[ABOUT])
        splits[shard.split].shards.append(
            Shard(shard.name, about["samples"], about["bytes"], about["sha256"])
        )
        summary.rejected += [{"split": shard.split, **row} for row in about["rejected"]]
        reencoded = about.get("reencoded", [])  # a shard of an early version has none
        summary.reencoded += [{"split": shard.split, **row} for row in reencoded]
    _write_lines(plan.out / "reencoded.jsonl", summary.reencoded)
    _write_lines(plan.out / "rejected.jsonl", summary.rejected)
    _check_rejected(plan, max_rejected, summary)
    for name, split in plan.source.splits.items():
        shards = splits[name].shards
        tables = (_read_rows(paths[shard.name]) for shard in shards)
        counts = write_manifest(plan.out, name, tables, _schema(split), len(plan.source.classes))
        samples = sum(shard.samples for shard in shards)
        rejected = sum(row["split"] == name for row in summary.rejected)
        written = (f"{name}.arrow", f"{name}.class_index.arrow")
        sums = {file: file_sha256(plan.out / file) for file in written}
        splits[name] = Split(samples, counts, shards, rejected, sums)
    made_by = {
        "command": command,
        "version": __version__,
        "seed": plan.seed,
        "fingerprint": plan.fingerprint,
    }
    write_dataset(plan.out, Dataset(plan.source.name, plan.source.classes, splits, made_by))


def _write_lines(path: Path, rows: Sequence[dict]) -> None:
    """A file of these rows, if there are any."""
    if rows:
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _check_rejected(plan: Plan, max_rejected: float, summary: Summary) -> None:
    total = sum(len(shard.indices) for shard in plan.shards)
    count = len(summary.rejected)
    first = "; ".join(f"{row['key']}: {row['reason']}" for row in summary.rejected[:3])
    if count == total:
        raise UserError(f"none of the {total} images can be used ({first})")
    if count / total > max_rejected:
        enough = math.ceil(count / total * 10_000) / 10_000
        raise UserError(
            f"{count} of {total} images cannot be used ({first}; all in {plan.out}/rejected.jsonl);"
            " mend or remove them and start again with an empty --out, or allow them: the same"
            f" command with --max-rejected {enough:g} goes on from here"
        )


def _read_rows(path: Path) -> pa.Table:
    return pa.ipc.open_file(path.read_bytes()).read_all()


def _finished(plan: Plan) -> set[str]:
    """The names of the shards that are there with their rows, by a look into two folders."""
    rows = {name.removesuffix(ROWS) for name in os.listdir(plan.partial) if name.endswith(ROWS)}
    return rows.intersection(os.listdir(plan.out))


def _rows_path(plan: Plan, shard: ShardPlan) -> Path:
    return plan.partial / f"{shard.name}{ROWS}"
