"""Room for what a run writes next."""

import os
import time
from contextlib import suppress
from pathlib import Path

from launch.attempts import newest_checkpoint
from lt_train.errors import is_fault
from lt_train.files import temporary_of

LEAST = 1 << 20  # bytes
POLL = 5.0  # seconds


def obstacle(folder: Path) -> str:
    """Why a file as large as the newest checkpoint of a run, at least 1 MiB, cannot be written to
    its folder now, in a few words: the disk is full, or read-only. Empty if it can be, or if
    waiting would not help, as where there is no such folder.
    """
    probe = temporary_of(folder / "room")
    try:
        with open(probe, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(LEAST, _size(newest_checkpoint(folder))))
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}" if is_fault(error) else ""
    finally:
        with suppress(OSError):
            probe.unlink()
    return ""


def wait_for_room(folder: Path, seconds: float) -> bool:
    """Wait until nothing is in the way any more, see :func:`obstacle`; false if it still is after
    so many ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while obstacle(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def _size(checkpoint: Path | None) -> int:
    """Of a checkpoint's files together, in bytes; 0 without one."""
    files = checkpoint.rglob("*") if checkpoint else ()
    return sum(file.stat().st_size for file in files)
