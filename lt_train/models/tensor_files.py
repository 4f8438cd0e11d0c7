"""Files of tensors: our own, whose checksum is compared when they are read, and strangers'."""

import argparse
import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lt_train.errors import UserError, unreadable
from lt_train.files import atomic_file

Tensors = dict[str, torch.Tensor]

# Two entries of the metadata say that a file is ours, so that damage to one cannot hide the other.
WRITTEN_BY = {"written_by": "lt_train"}
CHECKSUM = "lt_train_sha256"
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FETCH_AGAIN = "copy, download or export it again"
# what old checkpoints hold beside tensors: NumPy scalars (under the names of NumPy 1 and 2) and the
# command line
_numpy_types = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
_numpy_scalar = np.float64().__reduce__()[0]
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *_numpy_types,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


class AbsentFile(UserError):
    """There is no such file."""


def tensors_digest(tensors: Mapping[str, torch.Tensor], about: Mapping | None = None) -> str:
    """sha256 of names, types, shapes and bytes, and of plain values ``about`` them.

    It depends neither on the order of either nor on the device.
    """
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    head = json.dumps([shapes, about or {}], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def write_tensors(tensors: Tensors, path: Path, about: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; ``about`` goes into its metadata.

    Its checksum does too. Equal tensors with equal metadata give equal bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": "pt", **about, **WRITTEN_BY}
    content = save(tensors, {**about, CHECKSUM: tensors_digest(tensors, about)})
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # which come at random
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data start at a multiple of 8
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(content)[start:])


def read_tensors(path: Path, remedy: str = FETCH_AGAIN) -> Tensors:
    """All tensors of a .safetensors file, or of a checkpoint that torch.save wrote, on the CPU.

    Those in nested dicts have dotted names. Checkpoints come from strangers: one that holds more
    than tensors and plain values is refused with a :class:`UserError`, unrun; so is what cannot be
    read, ending with the ``remedy`` where it is damaged, and what holds no tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path, remedy)[0]
    with reading(path, remedy):
        tensors = dict(_named(load_saved(path)))
    return _not_empty(tensors, path)


def read_safetensors(path: Path, remedy: str = FETCH_AGAIN) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata but for the checksum.

    Errors as in :func:`read_tensors`. A stranger's file has no checksum to compare.
    """
    with reading(path, remedy):
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = about.pop(CHECKSUM, None)
        is_ours = checksum is not None or WRITTEN_BY.items() <= about.items()
        if is_ours and checksum != tensors_digest(tensors, about):
            raise SafetensorError("its checksum is that of other content")
    return _not_empty(tensors, path), about


def read_about(path: Path, remedy: str = FETCH_AGAIN) -> dict[str, str]:
    """The metadata of a safetensors file alone, uncompared; errors as in :func:`read_tensors`."""
    with reading(path, remedy), safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def map_tensors(path: Path) -> Tensors:
    """Those of a safetensors file that :func:`read_safetensors` has found whole.

    They lie on disk, and are read where they are looked at.
    """
    with reading(path, FETCH_AGAIN), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def load_saved(path: Path) -> object:
    """What torch.save wrote, on the CPU, if it is nothing but tensors and plain values.

    To be called while :func:`reading`.
    """
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
        # only zip files, which torch writes since 1.6, can be mapped
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Whatever goes wrong while a file of tensors is read becomes a :class:`UserError` of one line,
    with the ``remedy`` where the file is damaged.
    """
    kind = "safetensors file" if path.suffix == ".safetensors" else "checkpoint of torch.save"
    refusal = f"{path} is not a readable {kind}"
    try:
        with open(path, "rb") as file:
            start = file.read(len(GIT_LFS_POINTER))
        if not start:
            raise UserError(f"{refusal}: it is empty; {remedy}")
        if start == GIT_LFS_POINTER:
            raise UserError(
                f"{refusal}: it is a Git LFS pointer, which only stands for the file; fetch the"
                " file itself: git lfs pull"
            )
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AbsentFile(f"there is no {path}") from error
    except OSError as error:
        raise unreadable(error, f"{refusal}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{refusal}: it is damaged or cut off ({error}); {remedy}") from error
    except MemoryError:
        raise
    except Exception as error:  # what is damaged can fail anywhere in the unpickler
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} is refused: it holds more than tensors ({refused[1]}), which could run any"
                " code when loaded; save its state_dict alone, or ask its authors for safetensors"
            ) from error
        raise UserError(
            f"{refusal}: it is damaged, cut off or of another kind; {remedy}"
        ) from error


def _not_empty(tensors: Tensors, path: Path) -> Tensors:
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors


def _named(value: object, *path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, *path, str(key))
