"""Pickles from elsewhere, read without running what is in them."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lt_train.errors import UserError

# of dtypes: numbers and text. Objects, and fields that may be objects, could forge pointers
KINDS = "biufcSU"


def load_pickle(path: Path) -> object:
    """The arrays and plain values in a pickle file; a :class:`UserError` if it is damaged or asks
    for anything else.
    """
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="bytes").load()
    except MemoryError as error:
        raise UserError(f"'{path}' does not fit into memory, or is damaged") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"cannot read the pickle '{path}': {error}") from error


def text_keys(content: object) -> dict:
    """A dict with its keys as text, whichever Python wrote it; a ValueError if it is no dict."""
    if not isinstance(content, dict):
        raise ValueError("it does not hold named arrays")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value
        for key, value in content.items()
    }


@contextmanager
def expecting(path: Path, complaint: str) -> Iterator[None]:
    """Whatever fails while the content of a pickle is taken apart becomes a :class:`UserError`:
    the ``complaint`` about ``path``, and why.
    """
    try:
        yield
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"'{path}' {complaint}: {error}") from error


class _Dtype:
    """Stands in for numpy.dtype, whose own __setstate__ believes what a pickle says of objects and
    fields.
    """

    def __init__(self, code: str | bytes, *_align_and_copy):
        code = code.decode("ascii") if isinstance(code, bytes) else code
        self.dtype = np.dtype(code) if isinstance(code, str) else None
        if self.dtype is None or self.dtype.kind not in KINDS or self.dtype.subdtype is not None:
            raise pickle.UnpicklingError(
                f"it asks for arrays of {code!r}, which are neither numbers nor text; refused"
            )

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """Stands in for an array that a pickle makes first and fills then."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if min(shape, default=0) < 0:
            raise pickle.UnpicklingError("it holds an array of negative size")
        super().__setstate__((1, shape, dtype.dtype, bool(is_fortran), _checked(content)))


def _reconstruct(*_type_shape_code) -> np.ndarray:
    return _Array(0, np.uint8)


def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(_checked(content), dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: _Dtype, content: bytes) -> np.generic:
    return np.frombuffer(_checked(content), dtype.dtype)[0]


def _checked(content: bytes) -> bytes:
    """Not the memory of another array, which the pickle could replace afterwards."""
    if not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("it holds an array without bytes")
    return content


def _encode(text: str = "", _encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes in Python 3; none at all for empty ones."""
    return text.encode("latin1")


# all that NumPy arrays and scalars need -> what does the same for numbers and text, and nothing
# else
STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        place = (module.replace("numpy._core", "numpy.core"), name)
        if place not in STAND_INS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which arrays do not need; refused"
            )
        return STAND_INS[place]
