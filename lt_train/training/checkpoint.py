"""Checkpoints that are complete or absent: written beside, checksummed, fsynced, renamed.

``checkpoints/step-00001234/`` holds the files that the engine wrote and meta.json with the step,
the config and every file's sha256. The newest folder whose checksums hold is the one to resume
from; a torn one is passed over, loudly.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lt_train.distributed import World, broadcast_object, is_lost_peer
from lt_train.errors import UserError
from lt_train.files import file_sha256, fsync, write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    meta: dict

    @property
    def step(self) -> int:
        return self.meta["step"]


class CheckpointStore:
    """The checkpoints of one run. Every method is collective."""

    def __init__(self, folder: Path, keep: int, world: World):
        self.folder, self.keep, self.world = folder, keep, world

    def save(self, step: int, meta: dict, write: Callable[[Path], None]) -> None:
        """Save one checkpoint: every rank calls ``write(folder)``, which may write any files."""
        final = self.folder / f"step-{step:08d}"
        partial = self.folder / f".{final.name}.partial"
        try:
            if self.world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.world.barrier()
            write(partial)
            self.world.barrier()
            if self.world.is_main:
                self._seal(partial, {**meta, "step": step})
                if final.exists():  # of a run that a damaged newer checkpoint sent back here
                    shutil.rmtree(final)
                os.replace(partial, final)
                fsync(self.folder)
                self._prune(final)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            if is_lost_peer(error):
                raise
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot write the checkpoint {final}: {reason}; is the disk full? "
                "The last good one is kept"
            ) from error
        self.world.barrier()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose checksums hold, or None."""
        paths = sorted(self.folder.glob("step-*"), reverse=True)
        return broadcast_object(self._newest(paths) if self.world.is_main else None)

    def find(self, step: int | None) -> Checkpoint | None:
        """The checkpoint of ``step``, or without it the newest one.

        A :class:`UserError` if there is none of that step whose checksums hold.
        """
        if step is None:
            return self.newest()
        wanted = [path for path in [self.folder / f"step-{step:08d}"] if path.exists()]
        checkpoint = broadcast_object(self._newest(wanted) if self.world.is_main else None)
        if checkpoint is None:
            others = [path for path in sorted(self.folder.glob("step-*")) if path not in wanted]
            have = ", ".join(path.name.removeprefix("step-").lstrip("0") for path in others)
            raise UserError(
                f"{self.folder} has no intact checkpoint of step {step}; it has {have or 'none'}"
            )
        return checkpoint

    def _newest(self, paths: list[Path]) -> Checkpoint | None:
        for path in paths:
            try:
                meta = json.loads((path / "meta.json").read_text())
                if meta.pop("sha256") != _digest(meta):
                    raise ValueError("meta.json does not match its own checksum")
                for name, sha256 in meta["files"].items():
                    if file_sha256(path / name) != sha256:
                        raise ValueError(f"{name} does not match its checksum")
                return Checkpoint(path, meta)
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning(
                    "checkpoint %s is damaged (%s): falling back to the one before", path, error
                )
        return None

    def _seal(self, folder: Path, meta: dict) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            fsync(path)
        meta["files"] = {str(path.relative_to(folder)): file_sha256(path) for path in files}
        content = json.dumps({**meta, "sha256": _digest(meta)}, indent=1)
        write_atomically(folder / "meta.json", content.encode())
        fsync(folder)

    def _prune(self, newest: Path) -> None:
        """Keep ``newest`` and those before it.

        Later ones are damaged or of an abandoned run, partial ones of killed saves.
        """
        found = sorted(self.folder.glob("step-*"))
        older = [path for path in found if path <= newest]
        later = [path for path in found if path > newest]
        for path in (*older[: -self.keep], *later, *self.folder.glob(".step-*.partial")):
            shutil.rmtree(path, ignore_errors=True)


def _digest(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
