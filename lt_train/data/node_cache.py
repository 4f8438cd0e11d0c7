"""The node cache: verified copies of prepared data sets on node-local disk.

All ranks of a node copy, each its part of the files and several at once; a file that another job of
the node is copying is waited for. Which files there are, dataset.json says.
"""

import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lt_train.collectives import from_main, on_every_rank
from lt_train.console import working
from lt_train.data.cache_room import USED, lock_of, make_room
from lt_train.data.dataset import Dataset, SetFile, files_of, read_dataset, write_dataset
from lt_train.data.origin import Damaged, Origin, origin_of
from lt_train.distributed import World
from lt_train.errors import unreadable
from lt_train.files import atomic_file, file_sha256, is_url, temporary_of
from lt_train.locks import SharedLock, claimed

Item = TypeVar("Item")
FILES_AT_ONCE = 16  # of a node, whose ranks share them
LOOK_AGAIN = 0.5  # seconds until a file that another job copies is looked at again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copy:
    """A set that is copied: from where, what of, and to which folder."""

    origin: Origin
    dataset: Dataset
    folder: Path


@dataclass(frozen=True)
class Part:
    """A file of a copy."""

    copy: Copy
    file: SetFile

    @property
    def path(self) -> Path:
        return self.copy.folder / self.file.name


class NodeCache:
    """The sets ``roots`` (folders or URLs), copied to folders in ``target``: ``folders``, by root.

    They stay for as long as this object lives, or any other process that has asked for them;
    ``limit``: see :func:`make_room`. Attributes: ``copied``, the names of the files that this rank
    has copied, in any order. Collective; however long it takes.
    """

    def __init__(self, roots: Sequence[str], target: Path, limit: int | None, world: World):
        self.target, self.limit, self.world = target, limit, world
        self.copied: list[str] = []
        self._through: list[int] = []  # bytes of files that are there
        self._busy: set[Path] = set()  # what threads are copying
        self._locks: list[SharedLock] = []
        datasets = from_main(lambda: {root: read_dataset(root) for root in roots})
        # a node may lack what others have, such as a driver
        self._copies = on_every_rank(
            lambda: {
                root: Copy(origin_of(root), dataset, folder_of(root, target))
                for root, dataset in datasets.items()
            }
        )
        self.folders = {root: copy.folder for root, copy in self._copies.items()}
        for step in (self._begin, self._copy, self._end):
            on_every_rank(lambda step=step: self._told(step))

    def _told(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            place = f" ({error.filename})" if error.filename else ""
            message = f"cannot copy {' and '.join(self._copies)} to {self.target}: "
            raise unreadable(
                error,
                f"{message}{error.strerror or error}{place}; free space there or unset "
                "data.cache_dir",
            ) from error

    def _begin(self) -> None:
        """Hold the folders, and make room in them."""
        self._locks = [SharedLock(folder / USED) for folder in self.folders.values()]
        if self.world.local_rank == 0:
            wanted = {copy.folder: files_of(copy.dataset) for copy in self._copies.values()}
            make_room(self.target, wanted, self.limit)

    def _copy(self) -> None:
        parts: list[Part] = []
        for root, copy in self._copies.items():
            files = files_of(copy.dataset)
            size = sum(file.bytes for file in files) / 1e9
            log.info(
                "node cache: %s, %.4g GB in %d files, to %s", root, size, len(files), copy.folder
            )
            parts += [Part(copy, file) for file in files]
        rank, ranks = self.world.local_rank, self.world.local_size
        own = parts[rank::ranks]
        with working(lambda: self._state(own)):
            in_threads(self._bring, own, max(1, FILES_AT_ONCE // ranks))

    def _state(self, own: Sequence[Part]) -> str:
        total = sum(part.file.bytes for part in own)
        done = sum(self._through) + sum(map(_written, tuple(self._busy)))
        share = 100 * min(1, done / max(total, 1))
        whose = " of this rank's files" if self.world.local_size > 1 else ""
        waits = "" if self._busy else "; another job copies the rest"
        return (
            f"node cache: {done / 1e9:.4g} of {total / 1e9:.4g} GB{whose} are there, "
            f"{share:.0f} %{waits}"
        )

    def _bring(self, part: Part) -> bool:
        """See that a file is there, as it must be; false if another job copies it just now."""
        with claimed(lock_of(part.path)) as is_mine:
            if not is_mine:
                return False
            self._busy.add(part.path)
            try:
                if not part.file.is_copied_to(part.path):
                    _fetch(part)
                    self.copied.append(part.file.name)
            finally:
                self._busy.remove(part.path)
        self._through.append(part.file.bytes)
        return True

    def _end(self) -> None:
        """What vouches for the other files comes last."""
        if self.world.local_rank == 0:
            for copy in self._copies.values():
                write_dataset(copy.folder, copy.dataset)


def folder_of(root: str, target: Path) -> Path:
    """Where the copy of a set lies in the cache."""
    place = root.rstrip("/") if is_url(root) else str(Path(root).resolve())
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:8]  # of two sets of one name
    return target / f"{place.rpartition('/')[2]}-{digest}"


def _written(path: Path) -> int:
    """Bytes on disk of what is to become this file; a driver may begin with its end."""
    try:
        return temporary_of(path).stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _fetch(part: Part) -> None:
    with atomic_file(part.path) as file:
        temporary = Path(file.name)

        def check() -> None:
            known = part.file.sha256
            if known and file_sha256(temporary) not in known:
                raise Damaged("does not match its sha256 in dataset.json")

        part.copy.origin.fetch(part.file.name, temporary, check)


def in_threads(work: Callable[[Item], bool], items: Sequence[Item], threads: int) -> None:
    """Call ``work`` with every item, in so many threads; where it returns false, again later.

    The first error is raised at once. The threads never keep a process from ending, and signals are
    heard meanwhile.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    is_over = threading.Event()
    for item in items:
        waiting.put(item)

    def run() -> None:
        try:
            while not is_over.is_set():
                item = waiting.get_nowait()
                if not work(item):
                    waiting.put(item)
                    is_over.wait(LOOK_AGAIN)
        except queue.Empty:
            ends.put(None)
        except BaseException as error:
            ends.put(error)

    for _ in range(threads):
        threading.Thread(target=run, name="node cache", daemon=True).start()
    try:
        for _ in range(threads):
            error = ends.get()
            if error is not None:
                raise error
    finally:
        is_over.set()
