"""What the command predict writes: a row an image, as CSV or Parquet."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from lt_train.errors import unreadable
from lt_train.files import atomic_file

ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Predictions:
    """Of N images, by their place in the source.

    ``best`` (N, K) int32: the likeliest classes, -1 where the image cannot be used, which
    ``errors`` explains; ``values`` (N, K) float32: what ``value_name`` says of each. ``labels``:
    the true classes' names, if any are known.
    """

    names: Sequence[str]
    classes: Sequence[str]
    best: np.ndarray
    values: np.ndarray
    value_name: str = "probability"
    errors: dict[int, str] = field(default_factory=dict)
    labels: Sequence[str | None] | None = None

    def share_right(self) -> float | None:
        """How many of the images that have a label and can be used are given it; None: of none, or
        of a set with other classes.
        """
        if self.labels is None or not {*self.labels} - {None} <= {*self.classes}:
            return None
        number = {name: label for label, name in enumerate(self.classes)}
        true = np.array([number.get(label, -1) for label in self.labels])
        known = (true >= 0) & (self.best[:, 0] >= 0)
        return float((true == self.best[:, 0])[known].mean()) if known.any() else None

    def table(self) -> pa.Table:
        """Path, label if there are any, class and value 1 ... K, and error; empty is null."""
        columns = {"path": pa.array(map(_as_text, self.names), pa.string())}
        if self.labels is not None:
            columns["label"] = pa.array(self.labels, pa.string())
        names, unusable = pa.array(self.classes, pa.string()), self.best[:, 0] < 0
        for place in range(self.best.shape[1]):
            found = pa.array(self.best[:, place], mask=unusable)
            columns[f"class_{place + 1}"] = names.take(found)
            values = np.ascontiguousarray(self.values[:, place])
            columns[f"{self.value_name}_{place + 1}"] = pa.array(values, mask=unusable)
        reasons = map(self.errors.get, range(len(self.names)))
        columns["error"] = pa.array(list(reasons), pa.string())
        return pa.table(columns)


def write_table(path: Path | None, predictions: Predictions) -> None:
    """Write a file whole or not at all, in the format of its suffix; None: CSV to stdout."""
    table = predictions.table()
    if path is None:
        _write_csv(table, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    try:
        with atomic_file(path) as file:
            FORMATS[path.suffix.lower()](table, file)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}; choose another file with --out"
        raise unreadable(error, message) from error


def _write_csv(table: pa.Table, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(ROWS_AT_ONCE):
        columns = [map(_cell, column.to_pylist()) for column in batch.columns]
        writer.writerows(zip(*columns))
    text.flush()
    text.detach()  # or it would close what it does not own


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _as_text(name: str) -> str:
    """A path as text that any reader takes; bytes that are no UTF-8 as ``\\xff``."""
    content = name.encode("utf-8", "surrogateescape")
    return content.decode("utf-8", "backslashreplace")


FORMATS = {".csv": _write_csv, ".parquet": parquet.write_table}
