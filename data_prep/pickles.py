"""Pickles from elsewhere, read without running what is in them."""

import pickle
from pathlib import Path

from lt_train.errors import UserError

ALLOWED = {  # all that NumPy arrays and scalars need
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def load_pickle(path: Path) -> object:
    """The arrays and plain values in a pickle file; a :class:`UserError` if it is damaged or asks for anything else."""
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
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in content.items()}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which arrays do not need; refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
