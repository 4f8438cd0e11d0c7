"""Pickles: read as they are if they hold arrays and plain values, and refused otherwise."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading.pickles import load_pickle, text_keys
from lt_train.errors import UserError
from tests.helpers.sources import python2_pickle

ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4")[::2],
    np.array([True, False]),
    np.array(["a", "bc"]),
    np.array([b"xyz"]),
    np.array(5),
    np.zeros((0, 3), np.uint8),
    np.float32(0.1),
    np.int64(-1),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_arrays_and_plain_values_are_read_as_they_are(tmp_path, protocol):
    plain = {
        "text": "caf\xe9",
        "bytes": b"\xff",
        "none": [None, b"", "", 3, -(2**70), 0.5, True, (1, [2], {"a": 1})],
    }
    dumped = pickle.dumps({"arrays": ARRAYS, **plain}, protocol=protocol)
    (tmp_path / "file").write_bytes(dumped)
    content = load_pickle(tmp_path / "file")
    references = pickle.loads(dumped)["arrays"]
    for found, array, reference in zip(content.pop("arrays"), ARRAYS, references, strict=True):
        np.testing.assert_array_equal(found, array, strict=False)
        assert (found.dtype, found.shape) == (reference.dtype, reference.shape)
    assert content == plain


def test_keys_become_text_whichever_python_wrote_them(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    (tmp_path / "2").write_bytes(python2_pickle({"data": array, "labels": [1, -2]}))
    (tmp_path / "3").write_bytes(pickle.dumps({"data": array, "labels": [1, -2]}))
    for name in "23":
        content = text_keys(load_pickle(tmp_path / name))
        assert list(content) == ["data", "labels"] and content["labels"] == [1, -2]
        np.testing.assert_array_equal(content["data"], array)


class Forged:
    """Pickles as an array of objects whose pointers are given as bytes; NumPy's own __setstate__
    would believe it.
    """

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self):
        reconstruct, arguments, _ = np.zeros(0).__reduce__()
        return reconstruct, arguments, (1, (4,), self.Dtype(), False, b"\x01" * 32)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


FROM_BUFFER = np._core.numeric._frombuffer
REFUSED = {
    "forged pointers": Forged(),
    "objects": np.array([None, 1], object),
    "fields": np.zeros(2, "u1,i4"),
    "fields of objects": np.zeros(2, "u1,O"),
    "dates": np.array(["2020"], "M8[D]"),
    "a builtin": Call(eval, "1"),
    "a NumPy function": Call(np.load, "x"),
    "an array made otherwise": Call(np.ndarray, (3,), np.dtype("u1")),
    "a class": Path("x"),
    "memory of another array": Call(FROM_BUFFER, np.arange(3), np.dtype("u1"), (24,), "C"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_anything_but_arrays_of_numbers_or_text_is_refused(tmp_path, kind, protocol):
    (tmp_path / "file").write_bytes(pickle.dumps({"data": REFUSED[kind]}, protocol=protocol))
    with pytest.raises(UserError, match="cannot read the pickle .*file"):
        load_pickle(tmp_path / "file")


def test_names_with_dots_in_them_reach_no_further(tmp_path):
    """Protocol 4 looks up each part of a name in the one before."""
    (tmp_path / "file").write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x12dtype.__init__.x.y\x93.")
    with pytest.raises(UserError, match="refused"):
        load_pickle(tmp_path / "file")


@pytest.mark.parametrize("cut", [0, 1, 20, 100, -1])
def test_a_damaged_pickle_is_named(tmp_path, cut):
    (tmp_path / "file").write_bytes(pickle.dumps({"data": ARRAYS[0]})[:cut])
    with pytest.raises(UserError, match="cannot read the pickle .*file"):
        load_pickle(tmp_path / "file")
    with pytest.raises(UserError, match="cannot read the pickle .*nowhere"):
        load_pickle(tmp_path / "nowhere")
