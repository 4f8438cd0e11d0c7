"""The weights that were best on a split, kept where ``run.select`` asks for them."""

from collections.abc import Callable
from pathlib import Path

import torch

from lt_train.errors import unwritable
from lt_train.files import atomic_file
from lt_train.methods.base import Method
from lt_train.models.tensor_files import load_saved, reading, tensors_digest
from lt_train.models.trainable import frozen_digest, kept_state, load_kept_state

ABOUT = ("step", "metric", "select")  # what best.pt holds beside the method's state at least


class BestWeights:
    """``best.pt`` in a run's folder: the method's state, its step and its metric.

    With ``select`` "last", there is none.

    Selecting on the test split is what the code of Yang and Xu 2020 does; its numbers are no fair
    estimate, and reports say so.
    """

    def __init__(self, folder: Path, select: str, check: Callable[[], None] = lambda: None):
        """``check``: called before anything is written; see :meth:`FolderLock.check`."""
        self.path, self.select, self.check = folder / "best.pt", select, check
        self._metric: float | None = None  # of what lies there, as far as it is known

    def exists(self) -> bool:
        return self.select != "last" and self.path.is_file()

    def forget(self) -> None:
        """Called by one rank of a run that starts anew."""
        self.check()
        self.path.unlink(missing_ok=True)
        self._metric = None

    def offer(self, step: int, metric: float, method: Method) -> None:
        """Keep ``method`` if ``metric`` is higher than before. Called by one rank."""
        if self._metric is None and self.exists():  # of an attempt before this one
            before = self._read()
            self._metric = before["metric"] if before["select"] == self.select else None
        if self._metric is not None and self._metric >= metric and self.exists():
            return
        about = {"step": step, "metric": metric, "select": self.select}
        if (digest := frozen_digest(method)) is not None:
            about["frozen"] = digest
        state = kept_state(method)
        content = {"method": state, **about, "sha256": tensors_digest(state, about)}
        try:
            with atomic_file(self.path) as file:
                torch.save(content, file)
                self.check()
            self._metric = metric
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to torch.save
            reason = getattr(error, "strerror", None) or error
            message = f"cannot write {self.path}: {reason}; is the disk full?"
            raise unwritable(error, f"{message} The best before is kept") from error

    def restore(self, method: Method) -> int:
        """Give ``method`` the kept state; returns its step. Called by one rank."""
        best = self._read()
        load_kept_state(method, best["method"], best.get("frozen"))
        return best["step"]

    def _read(self) -> dict:
        with reading(self.path, "copy it again, or train anew in another run.dir"):
            best = load_saved(self.path)
            about = {key: best[key] for key in best.keys() - {"method", "sha256"}}
            of_earlier_version = best.keys() == {"method", *ABOUT}  # which wrote no checksum
            if not of_earlier_version and best["sha256"] != tensors_digest(best["method"], about):
                raise ValueError("its checksum is that of other content")
        return best
