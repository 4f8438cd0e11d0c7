"""The weights that were best on a split, kept beside the checkpoints where ``run.select`` asks for them."""

import os
from pathlib import Path

import torch

from lt_train.errors import UserError
from lt_train.stages.base import Stage


class BestWeights:
    """``best.pt`` in a run's folder: the stage's state, its step and its metric. With ``select`` "last", there is none.

    Selecting on the test split is what the code of Yang and Xu 2020 does; its numbers are no fair estimate, and reports say so.
    """

    def __init__(self, folder: Path, select: str):
        self.path, self.select = folder / "best.pt", select

    def exists(self) -> bool:
        return self.select != "last" and self.path.is_file()

    def forget(self) -> None:
        """Called by one rank of a run that starts anew."""
        self.path.unlink(missing_ok=True)

    def offer(self, step: int, metric: float, stage: Stage) -> None:
        """Keep ``stage`` if ``metric`` is higher than before. Called by one rank."""
        before = self._read() if self.exists() else None
        if before is not None and before["select"] == self.select and before["metric"] >= metric:
            return
        temporary = self.path.with_suffix(".partial")
        with open(temporary, "wb") as file:
            torch.save({"stage": stage.state_dict(), "step": step, "metric": metric, "select": self.select}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def restore(self, stage: Stage) -> int:
        """Give ``stage`` the kept state; returns its step. Called by every rank."""
        best = self._read()
        stage.load_state_dict(best["stage"])
        return best["step"]

    def _read(self) -> dict:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot read {self.path}: {error}; remove it and train again from a checkpoint") from error
