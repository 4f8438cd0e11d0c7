"""One run: build, resume, train, evaluate, finish. Nothing here comes from a paper."""

import datetime
import logging
import math
import os
import time
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch

from lt_train import __version__
from lt_train.collectives import from_main, on_main
from lt_train.config.schema import METHODS, Config, code_of
from lt_train.console import working
from lt_train.data.batch import Batch
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.distributed import World, is_lost_peer
from lt_train.errors import UserError
from lt_train.heartbeat import heartbeat
from lt_train.methods.base import Counts
from lt_train.training.best_weights import BestWeights
from lt_train.training.checkpoint import Checkpoint, CheckpointStore
from lt_train.training.classifier_init import start_classifier
from lt_train.training.engine import make_engine
from lt_train.training.evaluation import evaluate_split
from lt_train.training.frozen_features import frozen_features
from lt_train.training.leaving import Leaving
from lt_train.training.loop import Summary, Timed, Window, training_steps
from lt_train.training.monitor import Monitor
from lt_train.training.optim import Schedule
from lt_train.training.outside_data import outside_data
from lt_train.training.pictures import class_pictures, first_seen, view_pictures
from lt_train.training.precision import decided, recorded
from lt_train.training.preface import tell_data, tell_folder, tell_method, tell_schedule
from lt_train.training.run_folder import RunFolder
from lt_train.training.same_run import data_digests
from lt_train.training.saved_state import broadcast_module
from lt_train.training.shapes import check_shapes
from lt_train.training.starting import start

log = logging.getLogger(__name__)


class Trainer:
    """One run, from whatever its folder holds to result.json."""

    def __init__(self, config: Config, world: World, made_by: dict[str, str] | None = None):
        """``made_by``: what rank 0's result.json is to say of where the run comes from."""
        self.made_by, self.predictions = made_by or {}, {}
        self.folder = RunFolder(config, world)  # whose config.yaml says what was asked for
        config = decided(config, world)
        self.config, self.world = config, world
        self.data = RunData(config, world)
        self.train_set = self.data.train_set
        if not self.train_set.class_counts.any() and METHODS[config.method].needs_labels:
            others = [name for name, traits in METHODS.items() if not traits.needs_labels]
            raise UserError(
                f"{config.data.root} is unlabeled: only {' and '.join(others)} can train on it; "
                "set data.root to a labeled set"
            )
        if METHODS[config.method].has_classifier and self.train_set.num_classes < 2:
            raise UserError(
                f"{config.data.root} has one class ({self.train_set.classes[0]}), and a classifier "
                "nothing to tell apart; set data.root to a set of two classes or more"
            )
        own = self.data.local_batch_size()  # refuses more ranks than a batch has shares for
        self.batch_share = own * world.size / config.global_batch_size
        self.schedule = Schedule(config, self.data.positions_per_epoch)
        total = self.schedule.total_steps
        self.last_step = min(total, config.max_steps or total)
        check = self.folder.lock.check
        keep = config.run.keep_checkpoints
        self.store = CheckpointStore(self.folder.checkpoints, keep, world, check)
        self.best = BestWeights(self.folder.path, config.run.select, check)
        self.selected_step = self.last_step
        if config.run.select != "last" and self._selection_split() not in self._splits():
            raise UserError(
                f"run.select={config.run.select}, but {config.data.root} has no split "
                f"'{self._selection_split()}'; use run.select=last"
            )
        self.leaving = Leaving(world)

    def run(self) -> dict:
        """Train to the end, from the start or the last checkpoint.

        Returns (and writes) the content of result.json.
        """
        try:
            with self.leaving:
                return self._claim_and_run()
        finally:
            self.folder.lock.release()

    def _last_checkpoint(self) -> Checkpoint | None:
        """The one to go on from. Collective.

        With ``resume.enabled`` false there is none, but for a job that Slurm starts again: that
        goes on with what it has begun anew itself.
        """
        enabled, restarts = self.config.resume.enabled, os.environ.get("SLURM_RESTART_COUNT")
        if not (enabled or int(restarts or 0)):
            return None
        with working("comparing the checksums of the newest checkpoint"):
            checkpoint = self.store.newest()
        if enabled or checkpoint is None:
            return checkpoint
        resumes = checkpoint.meta.get("config", {}).get("resume", {}).get("enabled", True)
        return None if resumes else checkpoint

    def _claim_and_run(self) -> dict:
        started = time.monotonic()
        tell_data(self.data, self._evaluated_splits())
        tell_schedule(self.config, self.world, self.schedule, self.last_step)
        finished, checkpoint = self._finished(), None
        is_over = finished is not None and from_main(self.folder.has_this_config)
        if not is_over:
            self.folder.take_or_wait()
            finished = self._finished()  # who has held the folder may have ended it
        if finished is None:
            checkpoint = self._last_checkpoint()
        self.folder.claim(checkpoint.meta if checkpoint else finished, self.digests)
        if finished is not None:
            log.info(
                "%s is already done; delete the folder or choose another run.dir to train again",
                self.folder.path,
            )
            return finished
        return self._run(checkpoint, started)

    def _run(self, checkpoint: Checkpoint | None, started: float) -> dict:
        tell_folder(self.folder.path, checkpoint and checkpoint.step, self.last_step)
        self.build(is_new=checkpoint is None)
        first_step, seconds_before = self._resume(checkpoint)
        if self.world.is_main and not first_step:
            self.best.forget()
        digests = self.digests
        self.outside_data = from_main(lambda: outside_data(self.config, digests))
        self._seconds = lambda: seconds_before + time.monotonic() - started
        features = None
        if first_step < self.last_step:
            features = frozen_features(self.engine, self.data, self.folder, self.digests)
        path = self.folder.path
        is_main, check = self.world.is_main, self.folder.lock.check
        with Monitor(path, first_step, self.last_step, is_main, check) as self.monitor:
            self.leaving.begin_training()
            self.monitor.begin(self.folder.config)
            self._evaluate_once_more(first_step)
            with working(self.monitor.present):
                self.train(self.data.train(first_step, self.last_step, features), first_step)
            if self.config.run.select != "last":
                self._select(self.last_step)
                self.selected_step = self._restore_best()
            metrics = {
                split: self._evaluate(split, self.selected_step, self.predictions)
                for split in self._evaluated_splits()
            }
            self.monitor.end()
        result = self._result(metrics)
        self.folder.finish(self.engine.method, result, self.predictions)
        return result

    def _finished(self) -> dict | None:
        """What rank 0 reads in result.json, so that all agree."""
        return from_main(lambda: self.folder.finished(self.last_step))

    def build(self, is_new: bool = False) -> None:
        """Make the method, with its starting weights, and the engine.

        ``is_new``: nothing is resumed, so a classifier gets its start too.
        """
        with working(f"making {self.config.model.backbone} and the engine"):
            self._build(is_new)

    def _build(self, is_new: bool) -> None:
        if self.config.engine.cpu_threads:
            torch.set_num_threads(self.config.engine.cpu_threads)
        torch.manual_seed(self.config.seed)
        pool = self.data.unlabeled_set
        pseudo = None if pool is None else _class_counts(pool)
        counts = Counts.of(_class_counts(self.train_set), pseudo, len(self.train_set))
        method = code_of(METHODS, self.config.method)(self.config, counts)
        start(method, self.config)
        tell_method(self.config, method)
        check_shapes(method, self.config, self.world.size)
        if is_new:
            start_classifier(method.to(self.world.device), self.data)
        self.engine = make_engine(self.config, method, self.world)

    def train(self, batches: Iterable[Batch], first_step: int) -> float:
        """Run THE loop over ``batches``, logging, saving and evaluating when their steps come.

        Returns the share of the time that the host waited for batches.
        """
        config, started = self.config, time.monotonic()
        batches = Timed(batches)
        window = Window(self.world, config.global_batch_size, self.batch_share)
        self._saved, self._bad_samples = started, 0
        heartbeat.step = first_step
        told = first_seen(batches, lambda batch: self._show_views(batch, first_step))
        of_steps = self.schedule, first_step, self._is_logged
        for step, outputs in training_steps(self.engine, told, *of_steps):
            window.add(outputs)
            self.monitor.passed(step)
            heartbeat.step = step
            leave = self.leaving.agreed(step) and step < self.last_step
            evaluate = self._epoch_mark(step) and step < self.last_step
            save = leave or self._saves(step)
            if not (save or self._is_logged(step)):
                continue
            bad = sum(len(part.bad) for part in self.data.train_sets)
            summary = window.close(batches.waited, bad, self._save_is_due())
            self.leaving.pace(summary.seconds_per_step)
            self._look(step, summary)
            if save or summary.save:
                self._save(step)
            if leave:
                raise self.leaving.preempted(f"at step {step} of {self.last_step}")
            if evaluate:
                self._evaluate_between(step)
            window.open(batches.waited)  # evaluating and saving are no part of the next one
        return batches.waited / (time.monotonic() - started)

    def _saves(self, step: int) -> bool:
        """Whether ``step`` is saved whatever happens."""
        # before an evaluation, which may take long, everything is
        is_mark = step == self.last_step or self._epoch_mark(step)
        return is_mark or step % self.config.run.checkpoint_every == 0

    def _is_logged(self, step: int) -> bool:
        return step % self.config.run.log_every == 0 or self._saves(step)

    def _show_views(self, batch: Batch, step: int) -> None:
        """Those of the first batch, after ``step`` steps, with the record of the step it makes."""
        progress = self.schedule.progress(step)
        self.monitor.show(step + 1, lambda: view_pictures(self.engine.method, batch, progress))

    def _look(self, step: int, summary: Summary) -> None:
        """Record the steps up to ``step``, or stop where they cannot go on."""
        for offset, loss in enumerate(summary.losses, -len(summary.losses)):
            if not math.isfinite(loss):
                ids = self.data.sample_ids(step + offset).tolist()
                self.folder.stop_nonfinite(step + offset, loss, ids)
        if summary.bad_samples > self._bad_samples:
            self._bad_samples = summary.bad_samples
            self.data.check_bad()
        remaining = self.last_step - step
        left = remaining * self.config.global_batch_size / summary.images_per_s
        record = {
            "epoch": round(self.schedule.epoch(step), 4),
            "lr": self.schedule.lr(step - 1),
            "loss": summary.loss,
            **summary.means,
            **self.engine.method.gauges(self.schedule.progress(step)),
            "images_per_s": round(summary.images_per_s, 1),
            "data_wait": round(summary.data_wait, 4),
            "last_step": self.last_step,
            "seconds_left": round(left, 1),
        }
        self.monitor.record(step, record)

    def _evaluate_between(self, step: int) -> None:
        if self.config.run.select != "last":
            self._select(step)
        elif self.config.data.val_split in self._splits():
            self._evaluate(self.config.data.val_split, step)

    def _evaluate_once_more(self, step: int) -> None:
        """The evaluation of the step that the run goes on from, if it was cut off in it."""
        if not (0 < step < self.last_step and self._epoch_mark(step)):
            return
        split = self.config.data.val_split
        is_last = self.config.run.select == "last"
        if not (is_last and from_main(lambda: self.monitor.has_evaluated(step, split))):
            self._evaluate_between(step)

    def _evaluate(self, split: str, step: int, predictions: dict | None = None) -> dict:
        method = self.engine.method
        how = {"check": self.leaving.check, "predictions": predictions}
        try:
            metrics = evaluate_split(method, self.data, split, self.engine.autocast(), **how)
        except RuntimeError as error:
            if self.leaving.asked and is_lost_peer(error):  # it has left before this rank
                raise self.leaving.preempted("while evaluating") from error
            raise
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
        log.info("step %d, %s: %s", step, split, shown)
        if self.monitor.evaluated(step, split, metrics):
            about = metrics, self.train_set.classes, self.schedule.progress(max(0, step - 1))
            self.monitor.show(step, lambda: class_pictures(method, split, *about))
        return metrics

    def _select(self, step: int) -> None:
        """Keep the weights if they are the best so far on the split that selects."""
        metrics = self._evaluate(self._selection_split(), step)
        method = self.engine.method
        on_main(lambda: self.best.offer(step, metrics[method.headline], method))

    def _restore_best(self) -> int:
        """The step of the best weights, which every rank has then."""
        method = self.engine.method
        step = from_main(lambda: self.best.restore(method))
        broadcast_module(method)
        return step

    def _selection_split(self) -> str:
        data = self.config.data
        return {"val": data.val_split, "test": data.test_split}[self.config.run.select]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the data; see :func:`data_digests`."""
        with working("digesting what is trained on"):
            return data_digests(self.data)

    def _splits(self) -> Iterable[str]:
        return self.train_set.dataset.splits

    def _evaluated_splits(self) -> list[str]:
        """The validation and test splits that the data set has, each once."""
        wanted = dict.fromkeys((self.config.data.val_split, self.config.data.test_split))
        return [split for split in wanted if split in self._splits()]

    def _epoch_mark(self, step: int) -> bool:
        every = self.config.run.evaluate_every
        return int(self.schedule.epoch(step) / every) > int(self.schedule.epoch(step - 1) / every)

    def _resume(self, checkpoint: Checkpoint | None) -> tuple[int, float]:
        """Step and seconds of a checkpoint, its state loaded; zeros for a new run."""
        if checkpoint is None:
            return 0, 0.0
        if checkpoint.step > self.last_step:
            raise UserError(
                f"{checkpoint.path} is past the {self.last_step} steps asked for; "
                "raise max_steps or epochs, or choose another run.dir"
            )
        with working(f"reading {checkpoint.path}"):
            self.engine.load(checkpoint.path)
        log.info(
            "resumed from step %d of %d (%s)", checkpoint.step, self.last_step, checkpoint.path
        )
        return checkpoint.step, checkpoint.meta["seconds"]

    def _save_is_due(self) -> bool:
        """Whether ``run.checkpoint_minutes`` are over, by this rank's clock."""
        return time.monotonic() - self._saved > 60 * self.config.run.checkpoint_minutes

    def _save(self, step: int) -> None:
        norm = float(self.engine.weight_norm())
        if not math.isfinite(norm):  # every rank sees the same
            self.folder.stop_broken(step, norm)
        about = {
            "seconds": round(self._seconds(), 1),
            "ranks": self.world.size,
            **recorded(self.config),
            **self.folder.about(self.digests),
        }
        with working(f"writing the checkpoint of step {step}"):
            self.store.save(step, about, self.engine.save)
        self.monitor.saved(step)
        self._saved = time.monotonic()

    def _result(self, metrics: dict[str, dict]) -> dict:
        config, device = self.config, self.world.device
        now = datetime.datetime.now(datetime.UTC)
        packages = {name: version(name) for name in ("torch", "torchvision", "numpy")}
        return {
            "method": config.method,
            "description": config.description,
            "headline": self.engine.method.headline,
            "seed": config.seed,
            "selected_on": config.run.select,
            "selected_step": self.selected_step,
            "reference_error": config.reference_error,
            "metrics": metrics,
            "steps": self.last_step,
            "epochs": round(self.schedule.epoch(self.last_step), 4),
            "outside_data": self.outside_data,
            "train_samples": len(self.train_set),
            "class_counts": self.train_set.class_counts.tolist(),
            "classes": self.train_set.classes,
            "seconds": round(self._seconds(), 1),
            "ranks": self.world.size,
            "global_batch_size": config.global_batch_size,
            **recorded(config),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "finished": now.isoformat(timespec="seconds"),
            "versions": {"lt-train": __version__, **packages},
            **self.made_by,
            **self.folder.about(self.digests),
        }


def _class_counts(part: Manifest) -> torch.Tensor:
    return torch.from_numpy(part.class_counts.astype(np.int64))
