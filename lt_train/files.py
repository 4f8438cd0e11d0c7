"""Files that are there whole or not at all, their digests, and JSON objects, which may hold a
digest of their own.
"""

import hashlib
import json
import operator
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lt_train.errors import DamagedFile, unreadable

SEAL = "sha256"  # the key under which a JSON file holds its own digest
TOO_DEEP = "it is nested too deeply"
# what atomic_file calls its temporaries; earlier versions named no host
LEFTOVER = re.compile(r"\..+?(?:@(?P<host>[\w.-]+))?\.(?P<pid>[0-9]+)\.tmp", re.DOTALL)
ABANDONED_AFTER = 3600.0  # seconds in which a living writer has written something
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(place: str) -> bool:
    """Whether this means a folder or a file of some server, such as ``s3://bucket/set``.

    Such a text must become no ``Path``, which takes one of two slashes away.
    """
    return URL.match(place) is not None


def file_sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Have what is in a file, or which files are in a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that is there whole at the end of the block or not at all.

    Also after a power cut.
    """
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either there whole or not at all."""
    with atomic_file(path) as file:
        file.write(content)


def temporary_of(path: Path) -> Path:
    """Where this process writes what is to become ``path``."""
    return path.with_name(f".{path.name}@{socket.gethostname()}.{os.getpid()}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left of :func:`atomic_file` in a folder.

    What a living process of this machine writes, or any process has written to lately, stays.
    """
    for path in folder.iterdir():
        name = LEFTOVER.fullmatch(path.name)
        if name and path.is_file() and _is_abandoned(path, name["host"], int(name["pid"])):
            path.unlink(missing_ok=True)


def _is_abandoned(path: Path, host: str | None, pid: int) -> bool:
    if host == socket.gethostname():
        return not process_exists(pid)
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > ABANDONED_AFTER
    return True


def process_exists(pid: int) -> bool:
    """Whether a process of this machine has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; an id that no process can have
        return pid < 2**31
    return True


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in ``content``; a :class:`ValueError` says why there is none."""
    try:
        value = json.loads(content.decode())
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not isinstance(value, dict):
        raise ValueError("it does not hold an object")
    return value


def seal(content: dict[str, Any]) -> bytes:
    """``content`` as JSON that ends with a "sha256" of all the rest; see :func:`unseal`."""
    as_read = json.loads(json.dumps(content))  # a key that is a number comes back as text
    return json.dumps({**content, SEAL: _digest(as_read)}, indent=1).encode() + b"\n"


def unseal(content: bytes, may_lack: bool = True) -> dict[str, Any]:
    """The object that was given to :func:`seal`, in whatever order its keys and spaces are now.

    A :class:`ValueError` says why it is not. ``may_lack``: what has no checksum is taken as it is,
    as earlier versions wrote it.
    """
    value = parse_object(content)
    if may_lack and not has_checksum(value, SEAL):
        return value
    if value.pop(SEAL, None) != _digest(value):
        raise ValueError("it does not match its own checksum")
    return value


def has_checksum(value: dict[str, Any], name: str) -> bool:
    """Whether an object has one under this ``name``, or under what damage has made of it.

    Else a bit of the name could hide any other damage: the file would look like an earlier
    version's.
    """
    alike = [key for key in value if len(key) == len(name)]
    return any(sum(map(operator.ne, key, name)) < len(name) / 2 for key in alike)


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """What :func:`unseal` makes of a file; a :class:`DamagedFile` ends with the ``remedy``.

    A file that is not there is a FileNotFoundError or a NotADirectoryError, one that cannot be read
    a :class:`UserError`.
    """
    try:
        return unseal(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}; make it readable"
        raise unreadable(error, message) from error
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: {error}; {remedy}") from error


def canonical(content: dict[str, Any]) -> bytes:
    """JSON that is the same for equal objects, for checksums; a ValueError if there is none."""
    try:
        return json.dumps(content, sort_keys=True).encode()
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()
