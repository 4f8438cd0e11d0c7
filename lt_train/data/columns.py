"""Columns of a part of a set, or of two sets, as views: rows are looked up when they are asked for.

A set of 80 million samples has columns of gigabytes, mapped from disk and shared by the ranks of a
node; a copy of them would be a rank's own. Indexing a view, by a number, a slice or an array of
numbers, gives what NumPy gives; to NumPy's functions and operators it is an array, all in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.lib.mixins import NDArrayOperatorsMixin

ROWS_AT_ONCE = 1 << 20  # what is held in memory at a time is bounded


class Column(Protocol):
    """A NumPy array of one dimension, or a view like one."""

    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


class _View(NDArrayOperatorsMixin):
    """What makes an array of a class with ``__len__`` and ``__getitem__``."""

    __hash__ = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
        arrays = [np.asarray(value) if isinstance(value, _View) else value for value in inputs]
        return getattr(ufunc, method)(*arrays, **named)

    def tolist(self) -> list:
        return self[:].tolist()


@dataclass(frozen=True, eq=False)
class Picked(_View):
    """Some rows of a column, by their numbers."""

    column: Column
    rows: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        return self.column.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.column[self.rows[index]]


@dataclass(frozen=True, eq=False)
class Chained(_View):
    """The rows of ``first``, and then those of ``second``."""

    first: Column
    second: Column

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(self.first.dtype, self.second.dtype)

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: Any) -> Any:
        size = len(self.first)
        if np.ndim(index) == 0 and not isinstance(index, slice):
            return self.first[index] if index < size else self.second[index - size]
        rows = _numbers(index, len(self)) if isinstance(index, slice) else np.asarray(index)
        found, later = np.empty(len(rows), self.dtype), rows >= size
        found[~later] = self.first[rows[~later]]
        found[later] = self.second[rows[later] - size]
        return found


@dataclass(frozen=True, eq=False)
class Shifted(_View):
    """A column of numbers with a number added to each."""

    column: Column
    by: int

    @property
    def dtype(self) -> np.dtype:
        return self.column.dtype

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        return self.column[index] + self.dtype.type(self.by)


@dataclass(frozen=True)
class Text:
    """A column of text, whose values are looked up one at a time."""

    values: pa.ChunkedArray
    dtype = np.dtype(object)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> str:
        return self.values[int(row)].as_py()


def take(column: Column, rows: slice | np.ndarray) -> Column:
    """Those rows of a column, without a copy of what it holds."""
    if isinstance(rows, np.ndarray):
        return Picked(column, rows)
    if isinstance(column, np.ndarray):
        return column[rows]
    return Picked(column, _numbers(rows, len(column)))


def _numbers(rows: slice, size: int) -> np.ndarray:
    """Those that a slice of ``size`` rows means."""
    return np.arange(*rows.indices(size), dtype=row_type(size))


def row_type(size: int) -> type:
    """The smallest integers that number so many rows, and differences of them."""
    return np.int32 if size < 2**31 else np.int64


def rows_where(is_wanted: Callable[[slice], np.ndarray], size: int) -> np.ndarray:
    """The numbers of the rows of ``size`` that are wanted, in order."""
    counts = [int(np.count_nonzero(is_wanted(rows))) for rows in slices(size)]
    found, end = np.empty(sum(counts), row_type(size)), 0
    for rows, count in zip(slices(size), counts):
        found[end : end + count] = rows.start + np.flatnonzero(is_wanted(rows))
        end += count
    return found


def slices(size: int) -> Iterator[slice]:
    """Parts of ``size`` rows that are together all of them."""
    for start in range(0, size, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, size))
