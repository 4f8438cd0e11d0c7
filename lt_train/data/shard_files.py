"""Pieces of shards, read by offset: never mapped, so that an I/O error is an error and no signal.

However many shards there are, only so many are open at once as the process may have.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from lt_train.errors import unreadable

try:
    import resource
except ImportError:  # a system without such limits
    resource = None

SETS_AT_ONCE = 4  # training, validation and test images, and a second set
FOR_OTHERS = 64  # descriptors of the rest of the process
MOST_OPEN, FEWEST_OPEN = 4096, 4  # of one set
# bytes of an image from which on its neighbours are not worth reading with it. On a local disk, of
# shards of which 60 % were read in random order, 97 KB were read for an image of 94 KB, not 130, in
# the same time; with images of 3 KB, though, read-ahead made the first pass 2.4 times as fast
LARGE = 1 << 15


class ShardFiles:
    """The shards at ``paths``. Many threads may read at once; a copy that is sent to another
    process opens its own.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._start()

    def _start(self) -> None:
        # by shard, and whether what is beside an image is of no use; the latest used last
        self._open: OrderedDict[tuple[int, bool], _File] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"paths": self.paths}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def read(self, shard: int, start: int, size: int, at_random: bool = False) -> np.ndarray | None:
        """``size`` bytes from ``start`` of a shard, as (size,) uint8; None if it ends before.

        A :class:`UserError` if it cannot be read at all. ``at_random``: whoever reads goes to and
        fro, so that the system should read large images alone, and not ahead.
        """
        path = self.paths[shard]
        try:
            file = self._file(shard, at_random and size >= LARGE)
            content = np.empty(size, np.uint8)
            rest = memoryview(content)
            while rest:
                got = os.preadv(file.descriptor, [rest], start + size - len(rest))
                if got == 0:
                    return None
                rest = rest[got:]
        except OSError as error:
            raise unreadable(
                error,
                f"cannot read shard {path}: {error.strerror or error}; "
                f"python -m data_prep verify {path.parent}",
            ) from error
        return content

    def _file(self, shard: int, alone: bool) -> "_File":
        with self._lock:
            file = self._open.pop((shard, alone), None)
            if file is None:
                file = self._opened(self.paths[shard], alone)
            self._open[shard, alone] = file
            while len(self._open) > most_open():
                self._open.popitem(last=False)
        return file

    def _opened(self, path: Path, alone: bool) -> "_File":
        try:
            return _File(path, alone)
        except OSError as error:
            if error.errno != errno.EMFILE or not self._open:
                raise
        self._open.clear()  # others have taken more than was left for them
        return _File(path, alone)


class _File:
    """A file that is open for as long as anybody holds this: a thread may still be reading what
    another one has closed to make room.
    """

    def __init__(self, path: Path, alone: bool):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)
        if alone and hasattr(os, "posix_fadvise"):  # not on macOS
            with suppress(OSError):  # of a file system that takes no advice
                os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)


@cache
def most_open() -> int:
    """How many shards of one set may be open; the process's limit is raised first where it can."""
    if resource is None:
        return FEWEST_OPEN
    allowed, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        enough = SETS_AT_ONCE * MOST_OPEN + FOR_OTHERS
        wanted = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        if allowed != resource.RLIM_INFINITY and allowed < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            allowed = wanted
    except (OSError, ValueError):  # a system that has no limit, but does not let one say so
        pass
    if allowed == resource.RLIM_INFINITY:
        return MOST_OPEN
    return min(max((allowed - FOR_OTHERS) // SETS_AT_ONCE, FEWEST_OPEN), MOST_OPEN)
