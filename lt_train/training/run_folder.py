"""What a run leaves in its folder, and whose folder it is."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from lt_train.collectives import from_main, on_main
from lt_train.config.load import read_yaml, to_dict, to_yaml
from lt_train.config.schema import Config
from lt_train.console import working
from lt_train.distributed import World
from lt_train.errors import DamagedFile, UserError, unreadable, unwritable
from lt_train.files import remove_leftovers, seal, write_atomically
from lt_train.locks import WAIT, Busy, FolderLock
from lt_train.methods.base import Method
from lt_train.models.lora import LORA_FILE, PEFT_CONFIG, updates_of
from lt_train.models.tensor_files import write_tensors
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights
from lt_train.run_files import RESULT_FILE, read_result, write_predictions, write_result
from lt_train.training.checkpoint import saved_checkpoints
from lt_train.training.same_run import check_same_config, check_same_data

log = logging.getLogger(__name__)


class RunFolder:
    """``run.dir``: config.yaml, metrics.jsonl, checkpoints/, weights and result.json."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.path = Path(config.run.dir)
        self.lock = FolderLock(self.path)  # rank 0's
        self._told = False  # that result.json is damaged

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def features(self) -> Path:
        """What a frozen backbone makes of the training set; while the run lasts."""
        return self.path / "features"

    def has_this_config(self) -> bool:
        """Whether config.yaml is as :meth:`claim` would write it."""
        try:
            return (self.path / "config.yaml").read_text("utf-8") == to_yaml(self.config)
        except (OSError, ValueError):
            return False

    def take(self) -> Busy | None:
        """Take the folder's lock, before anything in it is looked at that is to be gone on with.

        Returns who holds it instead, if somebody still does after some seconds. Collective.
        """
        return from_main(self._take)

    def take_or_wait(self) -> None:
        """:meth:`take` it, or refuse; launchers ask to wait for who holds it. Collective."""
        waits = ""
        with working(lambda: waits):
            while busy := self.take():
                if busy.is_certain and not os.environ.get(WAIT):
                    raise UserError(f"{busy.who}; wait for it, stop it, or choose another run.dir")
                if not waits:
                    log.info("%s: waiting for it to end", busy.who)
                waits = f"{busy.who}: still waiting for it to end"

    def _take(self) -> Busy | None:
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            return self.lock.take()

    def claim(
        self, before: dict[str, Any] | None = None, data: dict[str, str] | None = None
    ) -> None:
        """Make the folder and save the config, or refuse to mix two runs. Collective.

        ``before``: what is known of the run to go on with, see :meth:`about`, beside what its
        config.yaml says. ``data``: digests of what is trained on.
        """
        on_main(lambda: self._claim(before or {}, data or {}))

    def _claim(self, before: dict[str, Any], data: dict[str, str]) -> None:
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            moved = self._check_same_data(before, data)
            saved = self.path / "config.yaml"
            if saved.exists() and self._has_work():
                check_same_config(str(self.path), _read_config(saved), self.config, moved)
            if "config" in before:
                check_same_config(str(self.path), before["config"], self.config, moved)
            if self.lock.is_held:
                remove_leftovers(self.path)
            if not self.has_this_config():
                self.lock.check()
                write_atomically(saved, to_yaml(self.config).encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot write to run.dir {self.path}: {error.strerror}"
            raise unreadable(error, f"{message}; choose another run.dir") from error

    def about(self, data: dict[str, str]) -> dict[str, Any]:
        """What result.json and a checkpoint's meta.json hold, to know the run again by."""
        return {"config": to_dict(self.config), "data": data}

    def finished(self, steps: int) -> dict | None:
        """result.json of a training that has ended after so many ``steps``."""
        try:
            result = read_result(self.path, "the run goes on from its last checkpoint")
        except DamagedFile as error:
            if not self._told:
                log.warning("%s", error)
            self._told = True
            return None
        return result if result.get("steps") == steps else None

    def finish(self, method: Method, result: dict, predictions: dict[str, np.ndarray]) -> None:
        """Write the weights, the ``predictions`` by split, and result.json, which says that the run
        is done. Collective.
        """
        on_main(lambda: self._finish(method, result, predictions))

    def _finish(self, method: Method, result: dict, predictions: dict[str, np.ndarray]) -> None:
        about = {
            "method": self.config.method,
            "backbone": self.config.model.backbone,
            "steps": str(result["steps"]),
        }
        try:
            self.lock.check()
            export_weights(method.backbone, self.path / BACKBONE_FILE, about)
            if hasattr(method, "classifier"):
                self.lock.check()
                export_weights(method.classifier, self.path / CLASSIFIER_FILE, about)
            updates, described = updates_of(method.backbone)
            if updates:
                self.lock.check()
                write_tensors(updates, self.path / LORA_FILE, {**about, PEFT_CONFIG: described})
            self.lock.check()
            written = write_predictions(self.path, predictions)
            self.lock.check()
            write_result(self.path, {**result, **written})
        except (OSError, SafetensorError) as error:
            message = f"cannot write the results to {self.path}: {error}"
            raise unwritable(error, f"{message}; the last checkpoint is kept") from error
        shutil.rmtree(self.features, ignore_errors=True)

    def stop_nonfinite(self, step: int, loss: float, sample_ids: list[int]) -> None:
        """Name the step and the samples whose loss was not finite, and raise."""
        if self.world.is_main:
            self.lock.check()
            content = seal({"step": step, "sample_ids": sample_ids})
            write_atomically(self.path / "nonfinite.json", content)
        raise UserError(
            f"the loss is {loss} at step {step} (sample ids {', '.join(map(str, sample_ids[:8]))}, "
            f"...; all in {self.path}/nonfinite.json); {self._way_back()}"
        )

    def stop_broken(self, step: int, norm: float) -> None:
        """Say that the weights after ``step`` are of no use, and raise."""
        raise UserError(
            f"the norm of the weights is {norm} after step {step}, which is not saved; "
            f"{self._way_back()}"
        )

    def _way_back(self) -> str:
        """What to do when training has diverged."""
        gentler = "a lower optim.lr, optim.clip_grad_norm or engine.precision=fp32"
        saved = list(saved_checkpoints(self.checkpoints).values())
        if not saved:
            return f"there is no checkpoint yet; try {gentler}"
        way = f"{saved[-1]} is kept: try {gentler}, with resume.allow_changes=[the key]"
        if len(saved) > 1:
            way += f"; if it comes again, remove {saved[-1].name} to go on from {saved[-2].name}"
        return way

    def _has_work(self) -> bool:
        """Whether another config could spoil anything; a start that failed leaves nothing."""
        return (self.path / RESULT_FILE).exists() or bool(saved_checkpoints(self.checkpoints))

    def _check_same_data(self, before: dict[str, Any], data: dict[str, str]) -> set[str]:
        """Refuse to go on with other data; returns the keys of sets that are the very same.

        Wherever these lie now. An earlier version did not say all of :meth:`about`.
        """
        for key in ("config", "data"):
            if not isinstance(before.get(key, {}), dict):
                raise UserError(
                    f"result.json or a checkpoint's meta.json in {self.path} is damaged: '{key}' "
                    f"cannot be {json.dumps(before[key])[:40]}; remove that file"
                )
        known = before.get("data", {})
        check_same_data(str(self.path), known, data, self.config)
        return {key for key in known if known[key] == data.get(key)}


def _read_config(saved: Path) -> dict[str, Any]:
    try:
        return read_yaml(saved)
    except UserError as error:
        raise UserError(
            f"{error}; remove it, and the run goes on with the config of its checkpoints"
        ) from error
