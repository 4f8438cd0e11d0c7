"""Plan, tars, manifest: how any source becomes a prepared data set.

The plan is a pure function of the source, the seed and the shard size. Every shard is written beside, fsynced and renamed, and
its manifest rows are kept in .partial/ until the end, so an interrupted run goes on after its last finished shard and ends
with the same bytes. dataset.json comes last: a folder that has one is complete.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from data_prep.source import Source, SourceSplit
from lt_train import __version__
from lt_train.data.manifest import MANIFEST_SCHEMA, Dataset, Shard, Split, write_atomically, write_dataset, write_manifest
from lt_train.errors import UserError

PARTIAL = ".partial"
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif", "PPM": "ppm", "MPO": "jpg"}  # MPO: a JPEG with more pictures behind it
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
BLOCK = 512  # bytes; tar members start at multiples of it

Report = Callable[[int, int], None]  # called with (images, bytes) as shards are finished


@dataclass(frozen=True)
class Plan:
    """What to write: for every shard its name, split and the source indices in it, in order."""

    source: Source
    out: Path
    seed: int
    samples_per_shard: int
    shards: list[tuple[str, str, np.ndarray]]  # name, split, (n,) source indices
    fingerprint: str


@dataclass
class Summary:
    images: int = 0
    bytes: int = 0
    shards: int = 0
    skipped_shards: int = 0
    rejected: list[dict] = field(default_factory=list)
    seconds: float = 0.0


def make_plan(source: Source, out: Path, seed: int, samples_per_shard: int) -> Plan:
    """Deal every class's samples over the shards, so that each shard sees as many classes as it can."""
    shards = []
    digest = hashlib.sha256(json.dumps([source.name, source.classes, source.origin, seed, samples_per_shard]).encode())
    for name, split in source.splits.items():
        digest.update(json.dumps([name, split.keys]).encode() + np.asarray(split.labels, np.int64).tobytes())
        # Where the same samples come out does not depend on other splits: one generator a split
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        shuffled = generator.permutation(len(split.labels))
        by_class = shuffled[np.argsort(split.labels[shuffled], kind="stable")]
        number = -(-len(by_class) // samples_per_shard)
        for shard in range(number):
            shards.append((f"{name}-{shard:06d}.tar", name, generator.permutation(by_class[shard::number])))
    return Plan(source, out, seed, samples_per_shard, shards, digest.hexdigest())


def write(plan: Plan, workers: int, max_rejected: float, command: str, report: Report) -> Summary:
    """Write every shard that is not finished yet, then the manifests and dataset.json.

    Raises :class:`UserError`, leaving nothing of this run behind, when more than ``max_rejected`` of the images are unusable.
    """
    started = time.monotonic()
    summary = Summary()
    try:
        _claim(plan)
        waiting = []
        for number, (name, _, indices) in enumerate(plan.shards):
            if _rows_path(plan, name).exists():
                summary.skipped_shards += 1
                report(len(indices), 0)
            else:
                waiting.append(number)
        for images, size in _write_shards(plan, waiting, workers):
            summary.shards += 1
            report(images, size)
        _finish(plan, max_rejected, command, summary)
    except OSError as error:
        raise UserError(f"cannot write to '{plan.out}': {error.strerror or error}; the same command again goes on from there") from error
    summary.seconds = time.monotonic() - started
    return summary


def is_complete(plan: Plan) -> bool:
    """Whether the folder already holds this very data set; a :class:`UserError` if it holds another."""
    path = plan.out / "dataset.json"
    if not path.is_file():
        return False
    try:
        made_by = json.loads(path.read_text())["made_by"]
    except (json.JSONDecodeError, KeyError):
        made_by = {}
    if made_by.get("fingerprint") != plan.fingerprint:
        raise UserError(f"'{plan.out}' holds another data set (other source, seed or shard size); choose another --out")
    return True


def _claim(plan: Plan) -> None:
    partial = plan.out / PARTIAL
    plan.out.mkdir(parents=True, exist_ok=True)
    marker = partial / "plan"
    if marker.is_file():
        if marker.read_text() != plan.fingerprint:
            raise UserError(
                f"'{plan.out}' holds the start of another data set (the source, seed or shard size changed since); "
                "remove the folder or choose another --out"
            )
        return
    if any(path.name != PARTIAL for path in plan.out.iterdir()):
        raise UserError(f"'{plan.out}' is not empty; choose another --out")
    partial.mkdir(exist_ok=True)
    write_atomically(marker, plan.fingerprint.encode())


_worker_plan: Plan | None = None


def _start_worker(plan: Plan) -> None:
    global _worker_plan
    _worker_plan = plan


def _write_shards(plan: Plan, numbers: list[int], workers: int) -> Iterator[tuple[int, int]]:
    _start_worker(plan)
    if workers <= 1 or len(numbers) <= 1:
        yield from map(_write_shard, numbers)
        return
    with ProcessPoolExecutor(min(workers, len(numbers)), initializer=_start_worker, initargs=(plan,)) as pool:
        yield from pool.map(_write_shard, numbers)


def _write_shard(number: int) -> tuple[int, int]:
    """Write shard ``number`` of the plan, then its rows; returns (images, bytes)."""
    plan = _worker_plan
    name, split_name, indices = plan.shards[number]
    split = plan.source.splits[split_name]
    final, temporary = plan.out / name, plan.out / PARTIAL / f"{name}.tmp"
    rows, rejected = [], []
    with open(temporary, "wb") as file:
        writer = _TarWriter(file)
        for index in indices.tolist():
            row = _add_sample(writer, split, index)
            (rejected if "reason" in row else rows).append(row)
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, final)
    about = {"bytes": writer.offset, "sha256": writer.digest.hexdigest(), "rejected": rejected}
    write_atomically(_rows_path(plan, name), json.dumps({**about, "rows": rows}).encode())
    return len(indices), writer.offset


def _add_sample(writer: "_TarWriter", split: SourceSplit, index: int) -> dict:
    """Check, add and describe one sample; a dict with a ``reason`` if it was left out."""
    key, label = split.keys[index], int(split.labels[index])
    try:
        content = split.images.read(index)
        extension, width, height = check_image(content)
    except (OSError, ValueError) as error:
        return {"key": key, "label": label, "reason": str(error)}
    offset = writer.add(f"{key}.{extension}", content)
    writer.add(f"{key}.cls", str(label).encode())
    return {
        "key": key,
        "offset": offset,
        "size": len(content),
        "label": label,
        "width": width,
        "height": height,
        "crc32": zlib.crc32(content),
    }


def check_image(content: bytes) -> tuple[str, int, int]:
    """Decode an image whole; (file extension, width, height), or ValueError with the reason why it cannot be used."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format not in EXTENSIONS:
                raise ValueError(f"the format {image.format} is not supported; convert it to JPEG or PNG")
            raw = str(image.tile)  # Pillow narrows 16-bit colour to RGB without a word; only the raw mode tells
            if image.mode not in EIGHT_BIT_MODES or ";16" in raw:
                raise ValueError(f"not 8 bits a channel (mode {image.mode})")
            image.load()
            return EXTENSIONS[image.format], image.width, image.height
    except UnidentifiedImageError as error:
        raise ValueError("not an image" if content else "empty file") from error
    except (OSError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
        raise ValueError(f"does not decode: {error}") from error


class _TarWriter:
    """A tar with nothing in it but names and bytes, so that the same samples always give the same file."""

    def __init__(self, file):
        self.file, self.offset, self.digest = file, 0, hashlib.sha256()

    def add(self, name: str, content: bytes) -> int:
        """Append a member; returns the offset of its first byte."""
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(content), 0o644, 0
        self._put(info.tobuf(tarfile.PAX_FORMAT))
        start = self.offset
        self._put(content)
        self._put(bytes(-len(content) % BLOCK))
        return start

    def close(self) -> None:
        self._put(bytes(2 * BLOCK))

    def _put(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.offset += len(content)


def _finish(plan: Plan, max_rejected: float, command: str, summary: Summary) -> None:
    """Join the shards' rows into manifests, or give up and clean up when too many images were rejected."""
    splits, tables = {}, {}
    for split_name in plan.source.splits:
        names = [name for name, split, _ in plan.shards if split == split_name]
        parts = [json.loads(_rows_path(plan, name).read_bytes()) for name in names]
        rows = [{**row, "shard": shard} for shard, part in enumerate(parts) for row in part["rows"]]
        rejected = [{"split": split_name, **row} for part in parts for row in part["rejected"]]
        summary.rejected += rejected
        summary.images += len(rows)
        summary.bytes += sum(part["bytes"] for part in parts)
        tables[split_name] = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
        shards = [Shard(name, len(part["rows"]), part["bytes"], part["sha256"]) for name, part in zip(names, parts)]
        splits[split_name] = Split(len(rows), [], shards, len(rejected))
    total = summary.images + len(summary.rejected)
    if len(summary.rejected) > max_rejected * total:
        _clean_up(plan)
        first = "; ".join(f"{row['key']}: {row['reason']}" for row in summary.rejected[:3])
        raise UserError(
            f"{len(summary.rejected)} of {total} images cannot be used ({first}); mend or remove them, or allow more with --max-rejected"
        )
    if summary.rejected:
        lines = "".join(json.dumps(row) + "\n" for row in summary.rejected)
        write_atomically(plan.out / "rejected.jsonl", lines.encode())
    for split_name, table in tables.items():
        splits[split_name].class_counts.extend(write_manifest(plan.out, split_name, table, len(plan.source.classes)))
    made_by = {"command": command, "version": __version__, "seed": plan.seed, "fingerprint": plan.fingerprint}
    write_dataset(plan.out, Dataset(plan.source.name, plan.source.classes, splits, made_by))
    shutil.rmtree(plan.out / PARTIAL)


def _clean_up(plan: Plan) -> None:
    for name, _, _ in plan.shards:
        (plan.out / name).unlink(missing_ok=True)
    shutil.rmtree(plan.out / PARTIAL)
    plan.out.rmdir()


def _rows_path(plan: Plan, shard_name: str) -> Path:
    return plan.out / PARTIAL / f"{shard_name}.rows.json"
