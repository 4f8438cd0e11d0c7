"""The one owner of the on-disk format of a prepared data set.

    dataset.json              name, classes, and per split: samples, class_counts, shards with
                              bytes and sha256
    train-000000.tar ...      members <key>.<extension> and <key>.cls; a plain webdataset
    train.arrow               the manifest: one row a sample (MANIFEST_SCHEMA), whose number is the
                              sample_id
    train.class_index.arrow   one row a class: the list of its sample_ids

A manifest may have more columns than MANIFEST_SCHEMA, such as ``sourced_label`` and ``score`` of
unlabeled images. Shards are memory-mapped and read by offset, never extracted. NumPy and Arrow
only: no torch here.
"""

import copy
import json
import logging
import mmap
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from lt_train.data.spool import Spool
from lt_train.errors import UserError
from lt_train.files import atomic_file, file_sha256, write_atomically

FORMAT_VERSION = 1
WRITE_AT_ONCE = 1 << 26  # bytes
# the label of a sample whose class is not known; it is in no class's list and has no .cls member
UNLABELED = -1
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
    # file name of the manifest and of the class index -> sha256
    tables: dict[str, str] = field(default_factory=dict)
    # columns that the manifest got after it was prepared: name -> what made it
    added_columns: dict[str, str] = field(default_factory=dict)


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
        what = "there is no such folder"
        if Path(root).is_dir():
            what = "it has no dataset.json (was data_prep interrupted?)"
        raise UserError(
            f"'{root}' is not a prepared data set: {what}; make one with python -m data_prep"
        )
    try:
        content = json.loads(path.read_text())
        if content["format_version"] > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer version of data_prep; update lt-train")
        for name, split in content["splits"].items():
            split["shards"] = [Shard(**shard) for shard in split["shards"]]
            content["splits"][name] = Split(**split)
        return Dataset(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); run data_prep again into another folder"
        ) from error


def write_manifest(
    root: Path, split: str, tables: Iterable[pa.Table], schema: pa.Schema, num_classes: int
) -> list[int]:
    """Write ``split``'s manifest, the rows of all ``tables``, and its class index.

    Returns the class counts. Columns grow in temporary files, so that memory stays flat however
    many rows there are, and the manifest is still one record batch, which readers map without a
    copy.
    """
    counts = np.zeros(num_classes, np.int64)
    with Spool(root, schema) as spool:
        for table in tables:
            labels = table["label"].to_numpy()
            counts += np.bincount(labels[labels >= 0], minlength=num_classes)
            spool.append(table)
        batch = spool.batch()
        _write_ipc(root / f"{split}.arrow", batch, spool.forget)
        labels = batch["label"].to_numpy() if counts.any() else np.zeros(0, np.int32)
        ids, offsets = class_index(labels, num_classes)
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))
        index = pa.record_batch({"sample_ids": lists})
        _write_ipc(root / f"{split}.class_index.arrow", index)
    return counts.tolist()


def add_columns(root: Path, split: str, columns: dict[str, pa.Array], made_by: str) -> None:
    """Give the manifest of ``split`` these columns (N,), in place of any of the same names.

    dataset.json gets its new checksum.
    """
    path, dataset = root / f"{split}.arrow", read_dataset(root)
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
        kept = table.select([name for name in table.column_names if name not in columns])
        arrays = {name: kept[name].combine_chunks() for name in kept.column_names} | columns
        _write_ipc(path, pa.record_batch(arrays))
    part = dataset.splits[split]
    tables = part.tables | {path.name: file_sha256(path)}
    added = part.added_columns | dict.fromkeys(columns, made_by)
    part = replace(part, tables=tables, added_columns=added)
    write_dataset(root, replace(dataset, splits=dataset.splits | {split: part}))


def class_index(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Labeled sample ids grouped by class (M,), and where each class starts (C + 1,); int64."""
    ids = np.argsort(labels, kind="stable").astype(np.int64)
    labeled = labels >= 0
    counts = np.bincount(labels[labeled], minlength=num_classes)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ids[len(labels) - int(labeled.sum()) :], offsets


class _Sink:
    """A file for Arrow that is written piece by piece; ``after`` is called after each."""

    closed = False

    def __init__(self, file: BinaryIO, after: Callable[[], None]):
        self.file, self.after = file, after

    def write(self, content: memoryview) -> int:
        content = memoryview(content).cast("B")
        for start in range(0, len(content), WRITE_AT_ONCE):
            self.file.write(content[start : start + WRITE_AT_ONCE])
            self.after()
        return len(content)

    def flush(self) -> None:
        self.file.flush()


def _write_ipc(path: Path, batch: pa.RecordBatch, after: Callable[[], None] = lambda: None) -> None:
    with atomic_file(path) as file, pa.ipc.new_file(_Sink(file, after), batch.schema) as writer:
        writer.write_batch(batch)


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean masks (C,) of many-, medium- and few-shot classes, by numbers of training images."""
    many, few = class_counts > MANY_SHOT, class_counts < FEW_SHOT
    return {"many_shot": many, "medium_shot": ~many & ~few, "few_shot": few}


class Manifest:
    """One split of a prepared data set: columns as NumPy arrays, images as bytes by sample_id.

    Attributes: ``labels``, ``widths``, ``heights`` (N,) int32; ``pseudo_labeled`` (N,) bool;
    ``class_counts`` (C,) int64; ``class_ids`` (N,) int64, sample ids grouped by class;
    ``class_offsets`` (C + 1,) int64 into it.
    """

    _COLUMNS = {  # attribute -> column of the manifest
        "labels": "label",
        "widths": "width",
        "heights": "height",
        "_shard": "shard",
        "_offset": "offset",
        "_size": "size",
        "_crc32": "crc32",
    }
    _ROWS = (*_COLUMNS, "pseudo_labeled")  # what there is of every sample

    def __init__(self, root: str | Path, split: str):
        self.root, self.split = Path(root), split
        self.dataset = read_dataset(root)
        if split not in self.dataset.splits:
            raise UserError(
                f"'{root}' has no split '{split}'; it has {', '.join(self.dataset.splits)}"
            )
        self.shards = self.dataset.splits[split].shards
        self.paths = [self.root / shard.name for shard in self.shards]
        self.classes = self.dataset.classes
        self._table = self._open(f"{split}.arrow")
        for attribute, name in self._COLUMNS.items():
            setattr(self, attribute, self.column(name))
        self.pseudo_labeled = np.broadcast_to(False, len(self.labels))  # takes no memory
        index = self._open(f"{split}.class_index.arrow")["sample_ids"].combine_chunks()
        self.class_ids, self.class_offsets = index.values.to_numpy(), index.offsets.to_numpy()
        self._start_reading()

    def _start_reading(self) -> None:
        self.class_counts = np.diff(self.class_offsets)
        self._maps: dict[int, mmap.mmap | None] = {}
        self._verified = np.zeros(len(self), bool)
        self.bad: dict[int, str] = {}  # sample_id -> why it cannot be used

    def subset(self, rows: slice | np.ndarray) -> "Manifest":
        """Some of the samples, by sample_id, as a manifest of their own: ids count from 0."""
        part, table = copy.copy(self), self._table
        part._table = table[rows] if isinstance(rows, slice) else table.take(pa.array(rows))
        for name in self._ROWS:
            setattr(part, name, getattr(self, name)[rows])
        return part._indexed()

    def relabeled(self, labels: np.ndarray, classes: list[str]) -> "Manifest":
        """The same samples with pseudo-labels ``labels`` (N,) of ``classes``, or UNLABELED."""
        other = copy.copy(self)
        other.labels, other.classes = labels.astype(np.int32), classes
        other.pseudo_labeled = np.broadcast_to(True, len(labels))
        return other._indexed()

    def joined(self, other: "Manifest") -> "Manifest":
        """The samples of both, ``other``'s sample ids going on after this one's.

        Classes are this one's.
        """
        both = copy.copy(self)
        for name in self._ROWS:
            setattr(both, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        both._shard[len(self) :] += len(self.shards)
        both.shards, both.paths = [*self.shards, *other.shards], [*self.paths, *other.paths]
        both._table = pa.concat_tables([self._table.select(["key"]), other._table.select(["key"])])
        return both._indexed()

    def _indexed(self) -> "Manifest":
        self.__dict__.pop("bytes", None)  # of the manifest that this is a copy of
        self.class_ids, self.class_offsets = class_index(self.labels, self.num_classes)
        self._start_reading()
        return self

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def columns(self) -> list[str]:
        return self._table.column_names

    @cached_property
    def bytes(self) -> int:
        """Size of all images."""
        return int(self._size.astype(np.int64).sum())

    def key(self, sample_id: int) -> str:
        return self._table["key"][int(sample_id)].as_py()

    def is_labeled(self, sample_ids: np.ndarray) -> np.ndarray:
        """Whether samples (B,) have a label that is the set's own, no pseudo-label: (B,) bool."""
        return (self.labels[sample_ids] != UNLABELED) & ~self.pseudo_labeled[sample_ids]

    def places(self, sample_ids: np.ndarray) -> np.ndarray:
        """Where the encoded images lie: (M, 3) int64 of shard, offset and size."""
        columns = self._shard, self._offset, self._size
        return np.stack([column[sample_ids].astype(np.int64) for column in columns], 1)

    def column(self, name: str) -> np.ndarray:
        """A column of the manifest (N,); a :class:`UserError` if it has none of that name."""
        if name not in self.columns:
            raise UserError(
                f"{self.root}/{self.split}.arrow has no column '{name}'; "
                f"it has {', '.join(self.columns)}"
            )
        return self._table[name].to_numpy()

    def read(self, sample_id: int) -> np.ndarray | None:
        """The encoded image as (size,) uint8 without a copy, or None if it is damaged.

        Then ``bad`` says why. The checksum is compared the first time, so that no decoder ever sees
        bytes that data_prep did not.
        """
        sample_id = int(sample_id)
        if sample_id in self.bad:
            return None
        columns = self._shard, self._offset, self._size
        shard, start, size = (int(column[sample_id]) for column in columns)
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
        """Like :meth:`read`; in place of a damaged sample the next intact one of its class."""
        label = self.labels[sample_id]
        if label == UNLABELED:
            ids, first = range(len(self)), int(sample_id)
        else:
            ids = self.class_ids[self.class_offsets[label] : self.class_offsets[label + 1]]
            first = int(np.searchsorted(ids, sample_id))
        for step in range(len(ids)):
            candidate = int(ids[(first + step) % len(ids)])
            content = self.read(candidate)
            if content is not None:
                return candidate, content
        what = "" if label == UNLABELED else f" of class '{self.classes[label]}'"
        raise UserError(f"every sample{what} in {self.root}/{self.split} is damaged")

    def _reject(self, sample_id: int, reason: str) -> None:
        self.bad[sample_id] = reason
        path = self.paths[self._shard[sample_id]]
        log.warning(
            "bad sample %s in %s (sample_id %d): %s", self.key(sample_id), path, sample_id, reason
        )

    def _map(self, shard: int) -> mmap.mmap | None:
        if shard not in self._maps:
            path = self.paths[shard]
            try:
                with open(path, "rb") as file:
                    empty = os.fstat(file.fileno()).st_size == 0
                    mapped = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise UserError(
                    f"cannot read shard {path}: {error.strerror}; "
                    f"python -m data_prep verify {path.parent}"
                ) from error
            self._maps[shard] = mapped
        return self._maps[shard]

    def _open(self, name: str) -> pa.Table:
        path = self.root / name
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"cannot read {path}: {error}; python -m data_prep verify {self.root} tells more"
            ) from error
