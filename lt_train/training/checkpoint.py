"""Checkpoints that are complete or absent: written beside, checksummed, fsynced, renamed.

``checkpoints/step-00001234/`` holds the files that the engine wrote and meta.json with the step,
the config and every file's sha256. The newest folder whose checksums hold is the one to resume
from; a torn one is passed over, loudly. One that cannot be read is not torn, and stops the run, as
do torn ones alone: to begin anew is not ours to decide. Whatever else lies there is left alone.
"""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lt_train.collectives import from_main, on_main
from lt_train.distributed import World, is_lost_peer
from lt_train.errors import UserError, unreadable, unwritable
from lt_train.files import file_sha256, fsync, seal, unseal, write_atomically

META_FILE = "meta.json"
NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")  # as CheckpointStore.save writes it
# what it is before and, where another takes its place, after
PARTIAL = re.compile(rf"\.{NAME.pattern}(\.[0-9a-f]+)?\.partial")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    meta: dict

    @property
    def step(self) -> int:
        return self.meta["step"]


class CheckpointStore:
    """The checkpoints of one run. Every method is collective.

    ``check``: called by the main rank before it writes; see :meth:`FolderLock.check`.
    """

    def __init__(
        self, folder: Path, keep: int, world: World, check: Callable[[], None] = lambda: None
    ):
        self.folder, self.keep, self.world, self.check = folder, keep, world, check

    def save(self, step: int, meta: dict, write: Callable[[Path], None]) -> None:
        """Save one checkpoint: every rank calls ``write(folder)``, which may write any files."""
        final, partial = self.folder / f"step-{step:08d}", None
        try:
            partial = from_main(lambda: self._begin(final))
            write(partial)
            self.world.barrier()
            on_main(lambda: self._put_in_place(partial, final, {**meta, "step": step}))
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            if is_lost_peer(error):
                raise
            if partial and self.world.is_main:  # or it would keep the disk full
                shutil.rmtree(partial, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise unwritable(
                error,
                f"cannot write the checkpoint {final}: {reason}; is the disk full? "
                "Earlier ones are kept",
            ) from error

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose checksums hold, or None where there is no checkpoint.

        A :class:`UserError` if none of them is intact, or one on the way to it cannot be read.
        """
        return from_main(self._newest)

    def find(self, step: int | None) -> Checkpoint | None:
        """The checkpoint of ``step``, or without it the newest one.

        A :class:`UserError` if there is none of that step whose checksums hold.
        """
        if step is None:
            return self.newest()
        return from_main(lambda: self._of_step(step))

    def _newest(self) -> Checkpoint | None:
        paths = saved_checkpoints(self.folder)
        for path in reversed(paths.values()):
            if checkpoint := _intact(path):
                return checkpoint
        if paths:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged ({', '.join(map(str, paths))}); "
                "remove them, or train anew with resume.enabled=false"
            )
        return None

    def _of_step(self, step: int) -> Checkpoint:
        paths = saved_checkpoints(self.folder)
        wanted = paths.pop(step, None)
        checkpoint = _intact(wanted) if wanted else None
        if checkpoint is None:
            have = ", ".join(map(str, paths))
            raise UserError(
                f"{self.folder} has no intact checkpoint of step {step}; it has {have or 'none'}"
            )
        return checkpoint

    def _begin(self, final: Path) -> Path:
        self.check()
        partial = self._partial(final)
        partial.mkdir(parents=True)
        return partial

    def _partial(self, final: Path) -> Path:
        """A name of its own: a run that was overtaken may still write files of the same step."""
        return self.folder / f".{final.name}.{secrets.token_hex(4)}.partial"

    def _put_in_place(self, partial: Path, final: Path, meta: dict) -> None:
        self._seal(partial, meta)
        self.check()
        if final.exists():  # of a run that a damaged newer checkpoint sent back here
            os.replace(final, self._partial(final))  # not removed, which could be cut short
        os.replace(partial, final)
        fsync(self.folder)
        self._prune(meta["step"])

    def _seal(self, folder: Path, meta: dict) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            fsync(path)
        meta["files"] = {str(path.relative_to(folder)): file_sha256(path) for path in files}
        write_atomically(folder / META_FILE, seal(meta))
        fsync(folder)

    def _prune(self, newest: int) -> None:
        """Keep the checkpoint of step ``newest`` and those before it.

        Later ones are damaged or of an abandoned run, partial ones of killed saves.
        """
        paths = saved_checkpoints(self.folder)
        older = [path for step, path in paths.items() if step <= newest]
        later = [path for step, path in paths.items() if step > newest]
        partial = [path for path in self.folder.iterdir() if PARTIAL.fullmatch(path.name)]
        for path in (*older[: -self.keep], *later, *partial):
            shutil.rmtree(path, ignore_errors=True)


def saved_checkpoints(folder: Path) -> dict[int, Path]:
    """The folders in ``folder`` that a :class:`CheckpointStore` has named, intact or not.

    By step, in ascending order; a :class:`UserError` if ``folder`` is there and cannot be read.
    """
    found = {}
    try:
        for path in folder.iterdir():
            name = NAME.fullmatch(path.name)
            if name and path.is_dir():
                found[int(name[1])] = path
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
        if absent and not os.path.lexists(folder):  # a link to a disk that is gone is there
            return {}
        message = f"cannot read {folder}: {error.strerror}"
        raise unreadable(
            error, f"{message}; make it readable, or choose another run.dir"
        ) from error
    return dict(sorted(found.items()))


def _intact(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None, with a warning, if it is damaged."""
    file = path / META_FILE
    try:
        meta = _read_meta(file)
        if f"step-{meta['step']:08d}" != path.name:
            raise ValueError(f"meta.json is of step {meta['step']}")
        for name, sha256 in meta["files"].items():
            file = path / name
            if file_sha256(file) != sha256:
                raise ValueError(f"{name} does not match its checksum")
        return Checkpoint(path, meta)
    except (FileNotFoundError, NotADirectoryError) as error:
        reason = f"{file.relative_to(path)}: {error.strerror}"
    except OSError as error:
        raise unreadable(
            error,
            f"cannot read {file}: {error.strerror or error}; that is no damage: mend it, or remove "
            f"{path} to go on from the checkpoint before",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)
    log.warning("checkpoint %s is damaged (%s): falling back to the one before", path, reason)
    return None


def _read_meta(file: Path) -> dict:
    try:
        return unseal(file.read_bytes(), may_lack=False)
    except ValueError as error:
        raise ValueError(f"meta.json: {error}") from error
