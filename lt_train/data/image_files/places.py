"""Where encoded images can lie: files, and members of tars."""

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lt_train.errors import UserError, unreadable


class Images(Protocol):
    """Random access to encoded images; picklable, so that processes can share the reading."""

    def read(self, index: int) -> bytes:
        """Image file number ``index`` in any format the decoder check accepts.

        OSError: it cannot be read.
        """


@dataclass(frozen=True)
class ImageFiles:
    """Images that lie as files below ``root``."""

    root: str
    names: Sequence[str]

    def read(self, index: int) -> bytes:
        with open(os.path.join(self.root, self.names[index]), "rb") as file:
            return file.read()

    @property
    def paths(self) -> list[str]:
        return [os.path.join(self.root, name) for name in self.names]


@dataclass(frozen=True)
class TarImages:
    """Images in uncompressed tars, or tars inside those, read by offset: nothing is extracted."""

    tars: list[str]
    places: np.ndarray  # (N, 3) int64: which tar, offset, size

    def read(self, index: int) -> bytes:
        tar, offset, size = self.places[index].tolist()
        with open(self.tars[tar], "rb") as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) != size:
            raise OSError(f"{self.tars[tar]} ends within the image")
        return content


@dataclass(frozen=True)
class Chained:
    """Images of several places, one after the other. ``starts`` (P,): the first index of each."""

    parts: Sequence[Images]
    starts: np.ndarray

    def read(self, index: int) -> bytes:
        part = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.parts[part].read(index - int(self.starts[part]))


def tar_members(
    path: str | Path, start: int = 0, size: int | None = None
) -> Iterator[tuple[str, int, int]]:
    """(name, offset in the file, size) of every file in a tar, or in the tar that lies at ``start``
    within another one.

    A :class:`UserError` says if the tar is cut off or is none.
    """
    try:
        with open(path, "rb") as file:
            window = _Window(file, start, size)
            with tarfile.open(fileobj=window, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # which tarfile would else keep for ever
                    if not member.isfile():
                        continue
                    if member.offset_data + member.size > window.size:
                        raise UserError(f"'{path}' is truncated: it ends within {member.name}")
                    yield member.name, start + member.offset_data, member.size
                # tarfile also stops, without a word, at a header that is cut off or damaged
                window.seek(tar.offset)
                if window.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise UserError(
                        f"'{path}' is truncated or damaged: at byte {start + tar.offset} there is"
                        " neither a file nor the end of the tar"
                    )
    except tarfile.TarError as error:
        raise UserError(f"'{path}' is not a whole uncompressed tar: {error}") from error
    except OSError as error:
        raise unreadable(error, f"cannot read '{path}': {error.strerror or error}") from error


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file, start: int, size: int | None):
        self.file, self.start, self.place = file, start, 0
        self.size = os.fstat(file.fileno()).st_size - start if size is None else size

    def read(self, size: int = -1) -> bytes:
        size = self.size - self.place if size < 0 else min(size, self.size - self.place)
        content = os.pread(self.file.fileno(), max(size, 0), self.start + self.place)
        self.place += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def tell(self) -> int:
        return self.place
