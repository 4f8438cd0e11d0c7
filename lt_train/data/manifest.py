"""The one owner of the on-disk format of a prepared data set, with its parts in :mod:`dataset`,
:mod:`tables` and :mod:`shard_files`.

    dataset.json              name, classes, and per split: samples, class_counts, shards with
                              bytes and sha256
    train-000000.tar ...      members <key>.<extension> and <key>.cls; a plain webdataset
    train.arrow               the manifest: one row a sample (MANIFEST_SCHEMA), whose number is the
                              sample_id
    train.class_index.arrow   one row a class: the list of its sample_ids

A manifest may have more columns than MANIFEST_SCHEMA, such as ``sourced_label`` and ``score`` of
unlabeled images. Shards are read by offset, never extracted. NumPy and Arrow only: no torch here.
"""

import copy
import functools
import logging
import threading
import zlib
from collections.abc import Container, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from lt_train.console import working
from lt_train.data.columns import Chained, Column, Shifted, Text, row_type, slices, take
from lt_train.data.dataset import Split, read_dataset
from lt_train.data.image_size import header_size
from lt_train.data.shard_files import ShardFiles
from lt_train.data.tables import (
    UNLABELED,
    Tables,
    class_index,
    class_offsets,
    class_problems,
    count_classes,
    digest_problems,
    open_tables,
    place_problems,
    table_error,
)
from lt_train.errors import UserError

MANY_SHOT, FEW_SHOT = 100, 20  # training images a class: more than / fewer than (Liu et al. 2019)
COUNTING = threading.Lock()  # of damaged samples, which several threads may meet at once
Check = Literal["all", "bounds", "nothing"]  # of the tables of a split
log = logging.getLogger(__name__)


def shot_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Boolean masks (C,) of many-, medium- and few-shot classes, by numbers of training images."""
    many, few = class_counts > MANY_SHOT, class_counts < FEW_SHOT
    return {"many_shot": many, "medium_shot": ~many & ~few, "few_shot": few}


class Manifest:
    """One split of a prepared data set: columns as NumPy arrays, images as bytes by sample_id.

    It is opened if its tables are as they were written and agree with each other and with
    dataset.json; else a :class:`UserError`. ``check`` says how much of that is looked at: "bounds"
    leaves out the checksums, which another rank of the node compares, and "nothing" is for who
    looks for what is wrong.

    Attributes: ``labels``, ``widths``, ``heights`` (N,) int32; ``pseudo_labeled`` (N,) bool;
    ``class_counts`` (C,) int64; ``class_ids`` (N,) of integers, sample ids grouped by class;
    ``class_offsets`` (C + 1,) int64 into it. What has a value a sample is mapped from disk, and of
    a manifest made of others a view (:mod:`columns`): all that such a one takes of memory is 4
    bytes a sample where it leaves some out, and 4 more once somebody goes by classes.
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
    _ROWS = (*_COLUMNS, "pseudo_labeled", "_keys")  # what there is of every sample

    def __init__(self, root: str | Path, split: str, check: Check = "all"):
        self.root, self.split = Path(root), split
        self.dataset = read_dataset(root)
        if split not in self.dataset.splits:
            raise UserError(
                f"'{root}' has no split '{split}'; it has {', '.join(self.dataset.splits)}"
            )
        about = self.dataset.splits[split]
        self.shards = about.shards
        self.paths = [self.root / shard.name for shard in self.shards]
        self.classes = self.dataset.classes
        with working(f"checking the tables of {self.root}/{split}, {about.samples:,} samples"):
            tables = self._open(about, check)
        self._table, self._picks = tables.manifest, ()
        for attribute, name in self._COLUMNS.items():
            setattr(self, attribute, self.column(name))
        self._keys = Text(self._table["key"])
        self.pseudo_labeled = np.broadcast_to(False, len(self.labels))  # takes no memory
        self.class_ids, self.class_offsets = tables.class_ids, tables.class_offsets
        self._start_reading()

    def _open(self, about: Split, check: Check) -> Tables:
        for problem in digest_problems(self.root, about) if check == "all" else ():
            raise table_error(self.root, problem)
        tables = open_tables(self.root, self.split)
        if check != "nothing":
            places = place_problems(tables.manifest, self.split, about)
            for problem in chain(places, class_problems(tables, self.split, self.dataset)):
                raise table_error(self.root, problem)
        return tables

    @cached_property
    def class_ids(self) -> np.ndarray:  # of a set as it lies on disk, mapped from there
        return class_index(self.labels, self.class_counts)

    def _start_reading(self) -> None:
        self.class_counts = np.diff(self.class_offsets)
        self._files = ShardFiles(self.paths)
        self._verified = np.zeros(len(self), bool)
        self.bad: dict[int, str] = {}  # sample_id -> why it cannot be used
        self._rejected: set[int] = set()  # of those, the ones that are not read again

    def subset(self, rows: slice | np.ndarray) -> "Manifest":
        """Some of the samples, by sample_id, as a manifest of their own: ids count from 0."""
        part = copy.copy(self)
        if isinstance(rows, np.ndarray):
            rows = rows.astype(row_type(len(self)), copy=False)
        part._picks = (*self._picks, rows)
        for name in self._ROWS:
            setattr(part, name, take(getattr(self, name), rows))
        return part._indexed()

    def relabeled(self, labels: Column, classes: list[str]) -> "Manifest":
        """The same samples with pseudo-labels ``labels`` (N,) of ``classes``, or UNLABELED."""
        other = copy.copy(self)
        is_right = labels.dtype == np.int32  # and stays the view that it may be
        other.labels = labels if is_right else np.asarray(labels, np.int32)
        other.classes = classes
        other.pseudo_labeled = np.broadcast_to(True, len(labels))
        return other._indexed()

    def joined(self, other: "Manifest") -> "Manifest":
        """The samples of both, ``other``'s sample ids going on after this one's.

        Classes are this one's.
        """
        both = copy.copy(self)
        for name in self._ROWS:
            setattr(both, name, Chained(getattr(self, name), getattr(other, name)))
        both._shard = Chained(self._shard, Shifted(other._shard, len(self.shards)))
        both.shards, both.paths = [*self.shards, *other.shards], [*self.paths, *other.paths]
        both._table, both._picks = pa.table({}), ()
        return both._indexed()

    def _indexed(self) -> "Manifest":
        for name in ("bytes", "class_ids"):  # of the manifest that this is a copy of
            self.__dict__.pop(name, None)
        self.class_offsets = class_offsets(count_classes(self.labels, self.num_classes))
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
        return sum(int(self._size[rows].sum(dtype=np.int64)) for rows in slices(len(self)))

    def key(self, sample_id: int) -> str:
        return self._keys[int(sample_id)]

    def is_labeled(self, sample_ids: np.ndarray) -> np.ndarray:
        """Whether samples (B,) have a label that is the set's own, no pseudo-label: (B,) bool."""
        return (self.labels[sample_ids] != UNLABELED) & ~self.pseudo_labeled[sample_ids]

    def places(self, sample_ids: np.ndarray) -> np.ndarray:
        """Where the encoded images lie: (M, 3) int64 of shard, offset and size."""
        columns = self._shard, self._offset, self._size
        return np.stack([column[sample_ids].astype(np.int64) for column in columns], 1)

    def column(self, name: str) -> Column:
        """A column of the manifest (N,); a :class:`UserError` if it has none of that name.

        Of two sets joined, none can be asked for.
        """
        if name not in self.columns:
            raise UserError(
                f"{self.root}/{self.split}.arrow has no column '{name}'; "
                f"it has {', '.join(self.columns)}"
            )
        return functools.reduce(take, self._picks, self._table[name].to_numpy())

    def read(self, sample_id: int, at_random: bool = False) -> np.ndarray | None:
        """The encoded image as (size,) uint8, or None if it is damaged.

        Then ``bad`` says why. Checksum, and size in pixels, are compared the first time, so that no
        decoder ever sees bytes that data_prep did not. Threads may read at once. ``at_random``: see
        :meth:`ShardFiles.read`.
        """
        sample_id = int(sample_id)
        if sample_id in self._rejected:
            return None
        columns = self._shard, self._offset, self._size
        place = (int(column[sample_id]) for column in columns)
        content = self._files.read(*place, at_random)
        if content is None:
            return self.reject(sample_id, "the shard is truncated")
        if not self._verified[sample_id]:
            if zlib.crc32(content) != self._crc32[sample_id]:
                return self.reject(sample_id, "its bytes do not match the manifest's crc32")
            expected = int(self.widths[sample_id]), int(self.heights[sample_id])
            found = header_size(content)
            if found not in (None, expected):
                return self.reject(sample_id, wrong_size(found, expected))
            self._verified[sample_id] = True
        return content

    def read_or_replace(
        self, sample_id: int, without: Container[int] = ()
    ) -> tuple[int, np.ndarray]:
        """Like :meth:`read`; in place of a damaged sample, or one of ``without``, the next intact
        one of its class.
        """
        for candidate in self._candidates(int(sample_id)):
            content = None if candidate in without else self.read(candidate, at_random=True)
            if content is not None:
                return candidate, content
        label = self.labels[sample_id]
        what = "" if label == UNLABELED else f" of class '{self.classes[label]}'"
        raise UserError(f"every sample{what} in {self.root}/{self.split} is damaged")

    def _candidates(self, sample_id: int) -> Iterator[int]:
        """It and all that may stand in for it; others are looked up once one is wanted."""
        yield sample_id
        label = self.labels[sample_id]
        if label == UNLABELED:
            ids, first = range(len(self)), sample_id
        else:
            ids = self.class_ids[self.class_offsets[label] : self.class_offsets[label + 1]]
            first = int(np.searchsorted(ids, ids.dtype.type(sample_id)))
        for step in range(1, len(ids)):
            yield int(ids[(first + step) % len(ids)])

    def reject(self, sample_id: int, reason: str) -> None:
        """Not to be read again, whoever asks: a matter of its bytes alone."""
        self._rejected.add(sample_id)
        self.count_bad(sample_id, reason)

    def count_bad(self, sample_id: int, reason: str) -> None:
        """Name and count a sample that could not be used, once; it may still be read."""
        with COUNTING:
            if sample_id in self.bad:
                return
            self.bad[sample_id] = reason
        path = self.paths[self._shard[sample_id]]
        log.warning(
            "bad sample %s in %s (sample_id %d): %s", self.key(sample_id), path, sample_id, reason
        )


def wrong_size(found: tuple[int, int], expected: tuple[int, int]) -> str:
    """Why an image of other sides than the manifest's, both (width, height), cannot be used."""
    return "it is {} x {} pixels, the manifest says {} x {}".format(*found, *expected)
