"""Files that are there whole or not at all, their digests, and JSON objects."""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# what atomic_file calls its temporaries; earlier versions named no host
LEFTOVER = re.compile(r"\..+?(?:@(?P<host>[\w.-]+))?\.(?P<pid>[0-9]+)\.tmp", re.DOTALL)
ABANDONED_AFTER = 3600.0  # seconds in which a living writer has written something


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
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it does not hold an object")
    return value
