"""The one owner of the on-disk format: webdataset shards, a manifest and a class index per split, and dataset.json.

    dataset.json               name, classes, and per split: samples, class_counts, shards with bytes and sha256
    train-000000.tar ...       members <key>.<extension> and <key>.cls; a plain webdataset
    train.arrow                the manifest: one row a sample (MANIFEST_SCHEMA); the row number is the sample_id
    train.class_index.arrow    one row a class: the list of its sample_ids

Shards are memory-mapped and read by offset, never extracted. NumPy and Arrow only: no torch here.
"""

import hashlib
import json
import logging
import mmap
import os
import zlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from lt_train.errors import UserError

FORMAT_VERSION = 1
MANY_SHOT, FEW_SHOT = 100, 20  # training images a class: more than / fewer than (Liu et al. 2019)
MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # index into the split's list of shards
        ("offset", pa.int64()),  # of the image's first byte in the shard
        ("size", pa.int32()),  # bytes
        ("label", pa.int32()),
        ("width", pa.int32()),  # pixels, as decoded (an EXIF rotation is not applied)
        ("height", pa.int32()),
        ("crc32", pa.uint32()),  # of the image's bytes
    ]
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    samples: int
    class_counts: list[int]
    shards: list[Shard]
    rejected: int = 0


@dataclass(frozen=True)
class Dataset:
    """The content of dataset.json."""

    name: str
    classes: list[str]
    splits: dict[str, Split]
    made_by: dict = field(default_factory=dict)  # command, version, seed
    format_version: int = FORMAT_VERSION


def write_dataset(root: Path, dataset: Dataset) -> None:
    """Write dataset.json; it is written last, so a folder that has one is complete."""
    write_atomically(root / "dataset.json", (json.dumps(asdict(dataset), indent=1) + "\n").encode())


def read_dataset(root: str | Path) -> Dataset:
    """Read dataset.json, or raise a :class:`UserError` that says what the folder lacks."""
    path = Path(root) / "dataset.json"
    if not path.is_file():
        what = "it has no dataset.json (was data_prep interrupted?)" if Path(root).is_dir() else "there is no such folder"
        raise UserError(f"'{root}' is not a prepared data set: {what}; make one with python -m data_prep")
    try:
        content = json.loads(path.read_text())
        if content["format_version"] > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer version of data_prep; update lt-train")
        for name, split in content["splits"].items():
            split["shards"] = [Shard(**shard) for shard in split["shards"]]
            content["splits"][name] = Split(**split)
        return Dataset(**content)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); run data_prep again into another folder") from error


def write_manifest(root: Path, split: str, rows: pa.Table, num_classes: int) -> list[int]:
    """Write ``split``'s manifest and class index; returns the number of samples of each class."""
    labels = rows["label"].to_numpy()
    counts = np.bincount(labels, minlength=num_classes)
    by_class = np.argsort(labels, kind="stable").astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    index = pa.table({"sample_ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(by_class))})
    for name, table in ((f"{split}.arrow", rows), (f"{split}.class_index.arrow", index)):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        write_atomically(root / name, sink.getvalue())
    return counts.tolist()


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean masks (C,) of the many-, medium- and few-shot classes, by their number of training images."""
    many, few = class_counts > MANY_SHOT, class_counts < FEW_SHOT
    return {"many_shot": many, "medium_shot": ~many & ~few, "few_shot": few}


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either there whole or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Manifest:
    """One split of a prepared data set: columns as NumPy arrays, images as bytes by sample_id.

    Attributes: ``labels``, ``widths``, ``heights`` (N,) int32; ``class_counts`` (C,) int64; ``class_ids`` (N,) int64,
    sample ids grouped by class; ``class_offsets`` (C + 1,) int64 into it.
    """

    def __init__(self, root: str | Path, split: str):
        self.root, self.split = Path(root), split
        self.dataset = read_dataset(root)
        if split not in self.dataset.splits:
            raise UserError(f"'{root}' has no split '{split}'; it has {', '.join(self.dataset.splits)}")
        self.shards = self.dataset.splits[split].shards
        self.classes = self.dataset.classes
        table = self._open(f"{split}.arrow")
        self.labels, self.widths, self.heights, self._shard, self._offset, self._size, self._crc32 = (
            table[name].to_numpy() for name in ("label", "width", "height", "shard", "offset", "size", "crc32")
        )
        self._keys = table["key"]
        index = self._open(f"{split}.class_index.arrow")["sample_ids"].combine_chunks()
        self.class_ids, self.class_offsets = index.values.to_numpy(), index.offsets.to_numpy()
        self.class_counts = np.diff(self.class_offsets)
        self._maps: dict[int, mmap.mmap | None] = {}
        self._verified = np.zeros(len(self), bool)
        self.bad: dict[int, str] = {}  # sample_id -> why it cannot be used

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def bytes(self) -> int:
        """Size of all images."""
        return int(self._size.astype(np.int64).sum())

    def key(self, sample_id: int) -> str:
        return self._keys[int(sample_id)].as_py()

    def read(self, sample_id: int) -> np.ndarray | None:
        """The encoded image as (size,) uint8 without a copy, or None if it is damaged: then ``bad`` says why.

        The checksum is compared the first time, so that no decoder ever sees bytes that data_prep did not.
        """
        sample_id = int(sample_id)
        if sample_id in self.bad:
            return None
        shard, start, size = (int(column[sample_id]) for column in (self._shard, self._offset, self._size))
        mapped = self._map(shard)
        if mapped is None or start + size > len(mapped):
            return self._reject(sample_id, "the shard is truncated")
        content = np.frombuffer(mapped, np.uint8, size, start)
        if not self._verified[sample_id]:
            if zlib.crc32(content) != self._crc32[sample_id]:
                return self._reject(sample_id, "its bytes do not match the manifest's crc32")
            self._verified[sample_id] = True
        return content

    def read_or_replace(self, sample_id: int) -> tuple[int, np.ndarray]:
        """Like :meth:`read`, with the next intact sample of the same class in place of a damaged one."""
        label = self.labels[sample_id]
        ids = self.class_ids[self.class_offsets[label] : self.class_offsets[label + 1]]
        first = int(np.searchsorted(ids, sample_id))
        for step in range(len(ids)):
            candidate = int(ids[(first + step) % len(ids)])
            content = self.read(candidate)
            if content is not None:
                return candidate, content
        raise UserError(f"every sample of class '{self.classes[label]}' in {self.root}/{self.split} is damaged")

    def _reject(self, sample_id: int, reason: str) -> None:
        self.bad[sample_id] = reason
        name = self.shards[self._shard[sample_id]].name
        log.warning("bad sample %s in %s (sample_id %d): %s", self.key(sample_id), name, sample_id, reason)

    def _map(self, shard: int) -> mmap.mmap | None:
        if shard not in self._maps:
            path = self.root / self.shards[shard].name
            try:
                with open(path, "rb") as file:
                    empty = os.fstat(file.fileno()).st_size == 0
                    self._maps[shard] = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise UserError(f"cannot read shard {path}: {error.strerror}; python -m data_prep verify {self.root}") from error
        return self._maps[shard]

    def _open(self, name: str) -> pa.Table:
        path = self.root / name
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"cannot read {path}: {error}; python -m data_prep verify {self.root} tells more") from error
