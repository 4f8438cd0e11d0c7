"""What lies in the folder of the node cache, and room for more in it.

A set has a folder there, with two files beside its own: a record of all that was put into it, and
one that those who use it lock together. What has no record is nobody's to remove.
"""

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lt_train.data.dataset import SetFile, is_file_name
from lt_train.errors import MachineFault, UserError
from lt_train.files import LEFTOVER, remove_leftovers, seal, unseal, write_atomically
from lt_train.locks import one_at_a_time, unused

RECORD, USED = ".node_cache.json", ".in_use"
MARGIN = 1 << 30  # bytes that are left free, or a hundredth of a small disk
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedSet:
    """A set in the cache: its folder, the names of what was put into it, and the bytes of these
    once they are whole.
    """

    folder: Path
    names: tuple[str, ...]
    bytes: int

    @property
    def last_used(self) -> float:
        with suppress(FileNotFoundError):
            return (self.folder / USED).stat().st_mtime
        return 0.0

    def is_unused(self) -> bool:
        with unused(self.folder / USED) as is_unused:
            return is_unused

    def present(self) -> int:
        """Bytes that are there."""
        return sum(size_of(self.folder / name) for name in self.names)

    def to_come(self) -> int:
        """Bytes that somebody still copies, if anybody does."""
        is_whole = (self.folder / "dataset.json").is_file()
        return 0 if is_whole else max(0, self.bytes - self.present())


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def lock_of(path: Path) -> Path:
    """What whoever copies this file of a set locks."""
    return path.with_name(f".{path.name}.lock")


def make_room(target: Path, wanted: dict[Path, list[SetFile]], limit: int | None) -> None:
    """See that the folders ``wanted`` of the cache ``target`` can be filled with their files.

    With a ``limit`` of bytes for the whole cache, the sets that were not used for longest, and are
    not used now, are removed as far as need be; nothing where that would not do. A
    :class:`UserError` if there is too little room. The ``wanted`` are in use already.
    """
    # what others are about to copy counts
    with one_at_a_time(target / ".lock"):
        others = [found for found in cached_sets(target) if found.folder not in wanted]
        unneeded = [other for other in others if other.is_unused()]
        busy = [other for other in others if other not in unneeded]
        need = _Need(target, wanted, limit)
        removable = sorted(unneeded, key=lambda found: found.last_used) if limit else []
        freed = sum(found.present() for found in removable)
        kept = busy if limit else others
        lack = need.lack(busy, kept, freed)
        while lack is None and removable and need.lack(busy, [*busy, *removable]):
            remove(removable.pop(0))
        if lack := lack or need.lack(busy, [*kept, *removable]):
            raise lack
        for folder, files in wanted.items():
            remove_leftovers(folder)
            _record(folder, files)


class _Need:
    """What is to lie in the cache, and what of it is not there yet."""

    def __init__(self, target: Path, wanted: dict[Path, list[SetFile]], limit: int | None):
        self.target, self.limit = target, limit
        self.whole = self.missing = 0
        for folder, files in wanted.items():
            self.whole += sum(file.bytes for file in files)
            absent = [file for file in files if not file.may_be(folder / file.name)]
            self.missing += sum(file.bytes for file in absent)

    def lack(
        self, busy: Sequence[CachedSet], kept: Sequence[CachedSet], freed: int = 0
    ) -> UserError | None:
        """What to raise if there is no room beside the sets that are ``kept``.

        ``busy``: those in use, which may still grow; ``freed``: bytes that will be free.
        """
        usage = shutil.disk_usage(self.target)
        margin = min(MARGIN, usage.total // 100)
        coming = sum(found.to_come() for found in busy)
        free, held = usage.free + freed - margin - coming, sum(found.bytes for found in kept)
        if self.limit is not None and self.whole + held > self.limit:
            kind = UserError if self.whole > self.limit else MachineFault
            return kind(
                f"the data takes {_gb(self.whole)} of {self.target}, where data.cache_gb allows "
                f"{_gb(self.limit)}, of which jobs that run use {_gb(held)}; raise it, or unset "
                "data.cache_dir"
            )
        if self.missing > max(free, 0):
            kind = UserError if self.missing > usage.total else MachineFault
            others = f", {_gb(coming)} of them for what others copy" if coming else ""
            return kind(
                f"{self.target} has {_gb(usage.free + freed)} free{others}, and {_gb(self.missing)}"
                f" of the data are still to be copied there ({_gb(margin)} are left free); make "
                "room, set data.cache_gb to have sets removed that are not in use, or unset "
                "data.cache_dir"
            )
        return None


def _gb(size: int) -> str:
    return f"{size / 1e9:.4g} GB"


def cached_sets(target: Path) -> list[CachedSet]:
    """The sets that were put into this folder."""
    found = [_recorded(path.parent) for path in target.glob(f"*/{RECORD}")]
    return [cached for cached in found if cached is not None]


def _recorded(folder: Path) -> CachedSet | None:
    """What the record of a folder says; None if there is none, or none of ours."""
    try:
        content = unseal((folder / RECORD).read_bytes(), may_lack=False)
        names, size = tuple(content["files"]), int(content["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_ours = all(isinstance(name, str) and is_file_name(name) for name in names)
    return CachedSet(folder, names, size) if is_ours else None


def _record(folder: Path, files: Sequence[SetFile]) -> None:
    """Note what is put into a folder, beside what was."""
    before = _recorded(folder)
    names = dict.fromkeys([*(before.names if before else ()), *(file.name for file in files)])
    size = sum(file.bytes for file in files)
    write_atomically(folder / RECORD, seal({"files": list(names), "bytes": size}))


def remove(cached: CachedSet) -> None:
    """Remove a set, unless somebody uses it now, and of its folder what was put there."""
    folder = cached.folder
    with unused(folder / USED) as is_unused:
        if not is_unused:
            return
        log.info("node cache: %s is removed, for room", folder)
        (folder / "dataset.json").unlink(missing_ok=True)
        for name in cached.names:
            (folder / name).unlink(missing_ok=True)
            lock_of(folder / name).unlink(missing_ok=True)
        for path in folder.glob(".*.tmp"):
            if LEFTOVER.fullmatch(path.name):  # of a copy that was cut off
                path.unlink(missing_ok=True)
        for name in (RECORD, USED):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody has put something else there
        folder.rmdir()
