"""The tables of a split, its manifest and its class index: written, opened, and checked before
anything in them is used.

NumPy and Arrow only; every check is of whole columns, some millions of rows at once.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from lt_train.data.dataset import Dataset, Split, read_dataset, write_dataset
from lt_train.data.spool import Spool
from lt_train.errors import UserError, unreadable
from lt_train.files import atomic_file, file_sha256
from lt_train.locks import one_at_a_time

WRITE_AT_ONCE = 1 << 26  # bytes
ROWS_AT_ONCE = 1 << 22  # what a check holds in memory is bounded
# the label of a sample whose class is not known; it is in no class's list and has no .cls member
UNLABELED = -1
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
        with atomic_file(root / f"{split}.arrow") as file:
            _write_ipc(file, batch, spool.forget)
        labels = batch["label"].to_numpy() if counts.any() else np.zeros(0, np.int32)
        ids, offsets = class_index(labels, num_classes)
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids))
        with atomic_file(root / f"{split}.class_index.arrow") as file:
            _write_ipc(file, pa.record_batch({"sample_ids": lists}))
    return counts.tolist()


def add_columns(root: Path, split: str, columns: dict[str, pa.Array], made_by: str) -> None:
    """Give the manifest of ``split`` these columns (N,), in place of any of the same names.

    Waits while another process does so, whose columns are kept. dataset.json says first which table
    is to come, then the table is put in place, then dataset.json names its columns: killed anywhere
    between, the set can be read, and the same call mends it.
    """
    with one_at_a_time(root / ".lock"):
        _add_columns(root, split, columns, made_by)


def _add_columns(root: Path, split: str, columns: dict[str, pa.Array], made_by: str) -> None:
    dataset = read_dataset(root)
    name, part = f"{split}.arrow", dataset.splits[split]

    def describe(part: Split) -> None:
        write_dataset(root, replace(dataset, splits=dataset.splits | {split: part}))

    for problem in digest_problems(root, part):
        raise table_error(root, problem)
    with pa.memory_map(str(root / name)) as source, atomic_file(root / name) as file:
        table = pa.ipc.open_file(source).read_all()
        kept = table.select([column for column in table.column_names if column not in columns])
        arrays = {column: kept[column].combine_chunks() for column in kept.column_names} | columns
        _write_ipc(file, pa.record_batch(arrays))
        file.flush()
        sha256 = file_sha256(Path(file.name))
        describe(replace(part, replacing={name: sha256}))
    tables = part.tables | {name: sha256}
    added = part.added_columns | dict.fromkeys(columns, made_by)
    describe(replace(part, tables=tables, added_columns=added, replacing={}))


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


def _write_ipc(
    file: BinaryIO, batch: pa.RecordBatch, after: Callable[[], None] = lambda: None
) -> None:
    with pa.ipc.new_file(_Sink(file, after), batch.schema) as writer:
        writer.write_batch(batch)


@dataclass(frozen=True)
class Tables:
    """The manifest of a split; ``class_ids`` (M,) int64, sample ids grouped by class, and
    ``class_offsets`` (C + 1,) int64 into them.
    """

    manifest: pa.Table
    class_ids: np.ndarray
    class_offsets: np.ndarray


def open_tables(root: Path, split: str) -> Tables:
    """Map the tables of a split. Their columns are there, of their types and of one length; what is
    in them, the ``..._problems`` below tell.
    """
    table = _open(root, f"{split}.arrow", MANIFEST_SCHEMA)
    index_schema = pa.schema([("sample_ids", pa.large_list(pa.int64()))])
    lists = _open(root, f"{split}.class_index.arrow", index_schema)["sample_ids"].combine_chunks()
    if lists.values.null_count:
        raise table_error(root, f"{split}.class_index.arrow has a sample_id that is none")
    offsets = lists.offsets.to_numpy() if len(lists) else np.zeros(1, np.int64)
    return Tables(table, lists.values.to_numpy(), offsets)


def _open(root: Path, name: str, schema: pa.Schema) -> pa.Table:
    path = root / name
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # text and lists end where their column does
        names = table.column_names
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        message = f"cannot read {path}: {error}; python -m data_prep verify {root} tells more"
        if isinstance(error, OSError):
            raise unreadable(error, message) from error
        raise UserError(message) from error
    if len(set(names)) < len(names):
        raise table_error(root, f"{name} has two columns of one name")
    for column, kind in zip(schema.names, schema.types):
        if column not in names:
            raise table_error(root, f"{name} has no column '{column}'")
        found = table[column]
        if found.type != kind or found.null_count:
            raise table_error(root, f"{name} has a column '{column}' that is not all {kind}")
    return table


def table_error(root: Path, problem: str) -> UserError:
    """What is wrong with a table of the data set in ``root``, and what to do."""
    return UserError(
        f"{root}/{problem}; python -m data_prep verify {root} tells more, prepare it again"
    )


def digest_problems(root: Path, split: Split) -> Iterator[str]:
    """A line for every table that is not as it was written; sets of early versions have no
    checksums.
    """
    for name, sha256 in split.tables.items():
        try:
            if file_sha256(root / name) not in (sha256, split.replacing.get(name)):
                yield f"{name} is not as it was written (sha256 differs)"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as error:
            reason = error.strerror or error
            raise unreadable(error, f"cannot read {root / name}: {reason}") from error


def is_half_replaced(root: Path, split: Split) -> bool:
    """Whether :func:`add_columns` was killed after it had replaced the manifest, whose new columns
    dataset.json does not name.
    """
    replacing, known = split.replacing.items(), split.tables
    return any(file_sha256(root / name) == new != known.get(name) for name, new in replacing)


def place_problems(table: pa.Table, name: str, split: Split) -> Iterator[str]:
    """Where the manifest of the split ``name`` cannot be true of its samples' places and sizes."""
    columns = {column: table[column].to_numpy() for column in MANIFEST_SCHEMA.names[1:]}
    shard, offset, size = (columns[column] for column in ("shard", "offset", "size"))
    if len(table) != split.samples:
        yield f"{name}.arrow has {len(table)} rows, dataset.json says {split.samples}"
    numbers = len(split.shards)
    ends = np.array([entry.bytes for entry in split.shards], np.int64)
    in_range = len(shard) == 0 or (shard.min() >= 0 and shard.max() < numbers)
    expected = [entry.samples for entry in split.shards]
    in_order = in_range and bool((shard[1:] >= shard[:-1]).all())
    starts = np.searchsorted(shard, np.arange(numbers + 1, dtype=shard.dtype))
    if not (in_order and np.diff(starts).tolist() == expected):
        yield f"{name}.arrow has its samples in other shards than dataset.json"
    wrong: dict[str, Callable[[slice], np.ndarray]] = {
        "a negative offset or size": lambda rows: (offset[rows] < 0) | (size[rows] < 0),
        "no width or no height": lambda rows: (
            (columns["width"][rows] <= 0) | (columns["height"][rows] <= 0)
        ),
    }
    if in_range:
        wrong["bytes beyond the end of its shard"] = lambda rows: (
            offset[rows] > ends[shard[rows]] - size[rows]
        )
    for what, is_wrong in wrong.items():
        found = _first(is_wrong, len(table))
        if found is not None:
            yield f"{name}.arrow has a sample (sample_id {found}) with {what}"


def class_problems(tables: Tables, name: str, dataset: Dataset) -> Iterator[str]:
    """Where labels, class index and dataset.json do not agree on the classes of a split."""
    labels, num_classes = tables.manifest["label"].to_numpy(), len(dataset.classes)
    found = _first(
        lambda rows: (labels[rows] < UNLABELED) | (labels[rows] >= num_classes), len(labels)
    )
    if found is not None:
        yield (
            f"{name}.arrow has a sample (sample_id {found}) with the label {labels[found]}, of"
            f" {num_classes} classes"
        )
        return
    counts = np.zeros(num_classes, np.int64)
    for rows in _slices(len(labels)):
        part = labels[rows]
        counts += np.bincount(part[part >= 0], minlength=num_classes)
    if counts.tolist() != dataset.splits[name].class_counts:
        yield f"{name}.arrow has other class counts than dataset.json"
    if not _is_index_of(tables, labels, counts):
        yield f"{name}.class_index.arrow does not agree with {name}.arrow"


def _is_index_of(tables: Tables, labels: np.ndarray, counts: np.ndarray) -> bool:
    """Whether it is :func:`class_index` of ``labels``, of which each class has ``counts``."""
    ids, offsets = tables.class_ids, tables.class_offsets
    if not np.array_equal(offsets, np.concatenate([[0], np.cumsum(counts)])):
        return False
    if len(ids) != offsets[-1]:
        return False

    def is_wrong(rows: slice) -> np.ndarray:
        """Each must come after the one before: by class, and within it by sample_id."""
        part = ids[max(rows.start - 1, 0) : rows.stop]
        own = labels[part]
        later = (own[1:] > own[:-1]) | ((own[1:] == own[:-1]) & (part[1:] > part[:-1]))
        return ~np.append(later, own[:1] != UNLABELED)

    if _first(lambda rows: (ids[rows] < 0) | (ids[rows] >= len(labels)), len(ids)) is not None:
        return False
    return _first(is_wrong, len(ids)) is None


def _first(is_wrong: Callable[[slice], np.ndarray], size: int) -> int | None:
    """The first of ``size`` rows that is wrong; None if none is."""
    for rows in _slices(size):
        found = np.flatnonzero(is_wrong(rows))
        if len(found):
            return rows.start + int(found[0])
    return None


def _slices(size: int) -> Iterator[slice]:
    for start in range(0, size, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, size))
