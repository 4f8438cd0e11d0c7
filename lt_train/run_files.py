"""What a run's files hold: result.json, which says that it is done and what it has measured, and
the lines of metrics.jsonl. Whoever reads or writes them does it by these functions.
"""

import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lt_train.errors import DamagedFile
from lt_train.files import (
    canonical,
    has_checksum,
    parse_object,
    read_sealed,
    seal,
    write_atomically,
)

LINE_CHECKSUM = "crc32"  # of a line of metrics.jsonl, its last key
RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.npz"  # beside result.json, which holds its sha256 under this key
PREDICTION = np.dtype(  # what an image of a split was taken for, and with which confidence, 0 to 1
    [("sample_id", "<i8"), ("label", "<i4"), ("predicted", "<i4"), ("confidence", "<f4")]
)
TRAIN_AGAIN = "delete it and give the training command again"


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write a run's result.json, whole or not at all; an OSError if that fails."""
    write_atomically(folder / RESULT_FILE, seal(result))


def read_result(folder: Path, remedy: str = TRAIN_AGAIN) -> dict[str, Any]:
    """The content of a run's result.json; nothing where there is none.

    A :class:`DamagedFile`, which ends with the ``remedy``, if it is not as it was written or not of
    its types; another :class:`UserError` if it cannot be read.
    """
    path = folder / RESULT_FILE
    try:
        result = read_sealed(path, remedy)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for name, is_right in TYPES.items():
        if name in result and not is_right(result[name]):
            shown = json.dumps(result[name])[:40]
            raise DamagedFile(f"{path} is damaged: '{name}' cannot be {shown}; {remedy}")
    return result


def write_predictions(folder: Path, predictions: dict[str, np.ndarray]) -> dict[str, str]:
    """Write what the images of each split were taken for, (N,) PREDICTION, whole or not at all.

    Returns what result.json must hold of it. An OSError if that fails.
    """
    if not predictions:
        return {}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **predictions)
    write_atomically(folder / PREDICTIONS_FILE, buffer.getvalue())
    return {PREDICTIONS_FILE: hashlib.sha256(buffer.getvalue()).hexdigest()}


def read_predictions(folder: Path, result: dict[str, Any]) -> dict[str, np.ndarray]:
    """What :func:`write_predictions` wrote for ``result``; nothing where it wrote nothing.

    A ValueError if it is not that any more, an OSError if it cannot be read.
    """
    if PREDICTIONS_FILE not in result:
        return {}
    content = (folder / PREDICTIONS_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != result[PREDICTIONS_FILE]:
        raise ValueError("it is not what was written with result.json")
    with np.load(io.BytesIO(content)) as parts:
        return dict(parts)


def write_record(record: dict[str, Any]) -> bytes:
    """A line of metrics.jsonl, which ends with a checksum of all the rest of it."""
    return json.dumps({**record, LINE_CHECKSUM: zlib.crc32(canonical(record))}).encode() + b"\n"


def parse_log(content: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The records in metrics.jsonl, and the lines that hold none.

    A record is a step, numbers by name and, of an evaluation, its split. Only files of earlier
    versions have no checksums: where one line has one, a line without has lost it.
    """
    found, odd = [], []
    for line in content.splitlines(keepends=True):
        try:
            found.append((line, *_parse_record(line)))
        except ValueError:
            odd.append(line)
    checked = any(has_one for *_, has_one in found)
    odd += [line for line, _, has_one in found if checked and not has_one]
    return [record for _, record, has_one in found if has_one or not checked], odd


def _parse_record(line: bytes) -> tuple[dict[str, Any], bool]:
    """The record of a line, and whether it had a checksum; a ValueError if it is none."""
    record = parse_object(line)
    has_one = has_checksum(record, LINE_CHECKSUM)
    if has_one and record.pop(LINE_CHECKSUM, None) != zlib.crc32(canonical(record)):
        raise ValueError("it does not match its checksum")
    if not line.endswith(b"\n") or type(record.get("step")) is not int:
        raise ValueError("it is cut short, or has no step")
    if not isinstance(record.get("split", ""), str):
        raise ValueError("its split has no name")
    for name, value in record.items():
        if name != "split" and not is_number(value):
            raise ValueError(f"its {name} is no number")
    return record, has_one


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number that arrays can hold."""
    return isinstance(value, float) or isinstance(value, int) and abs(value) < 2**63


def _are_counts(value: Any) -> bool:
    """Whether it is a list of whole numbers that fit into int64."""
    return isinstance(value, list) and all(
        type(count) is int and 0 <= count < 2**63 for count in value
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


TYPES = {  # of what commands read of it; the report has checks of its own
    "class_counts": _are_counts,
    "classes": _are_names,
    "selected_on": lambda value: value in ("last", "val", "test"),
}
