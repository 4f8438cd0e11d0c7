"""Build, resume, THE loop, evaluate, export. Nothing here comes from a paper."""

import datetime
import json
import logging
import math
import signal
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from lt_train import __version__
from lt_train.checkpoint import CheckpointStore
from lt_train.config import flatten, read_yaml, to_dict, to_yaml
from lt_train.data.loader import LoaderFactory, check_bad_samples
from lt_train.data.manifest import write_atomically
from lt_train.data.order import mix
from lt_train.distributed import World, all_reduce_, gather_objects, is_lost_peer
from lt_train.engine import Engine, make_engine
from lt_train.errors import UserError
from lt_train.optim import Schedule
from lt_train.progress import Monitor
from lt_train.schema import Config, labeled_batch
from lt_train.selection import BestWeights
from lt_train.stages import STAGES, Stage
from lt_train.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights, load_weights

log = logging.getLogger(__name__)

# may change between a run and its resumption without changing what is learnt
FREE_KEYS = ("description", "reference_error", "max_steps", "run.", "resume.", "data.decode_threads", "data.eval_batch_size", "data.stage_to")


class Preempted(Exception):
    """The run was asked to leave (SIGTERM or SIGUSR2) and has saved a checkpoint."""


def training_steps(engine: Engine, batches: Iterable[dict], schedule: Schedule, first_step: int, seed: int) -> Iterator[tuple[int, dict]]:
    """THE loop: one optimizer step per batch. Yields (steps done, the stage's outputs) without waiting for the device."""
    rank, ranks, global_batch = engine.world.rank, engine.world.size, engine.config.global_batch_size
    for step, batch in enumerate(batches, first_step):
        # random numbers, like everything else, follow from the step alone, so a resumed run draws the same
        torch.manual_seed(int(mix(seed, step, rank, 5)[0] >> 1))
        outputs = engine.forward(batch, step)
        # engines average over ranks; ranks whose share is larger by a sample count for more
        engine.backward(outputs["loss"] * (len(batch["label"]) * ranks / global_batch))
        engine.step(schedule.lr(step))
        yield step + 1, {name: value.detach() for name, value in outputs.items()}


class Trainer:
    """One run, from whatever its folder holds to result.json."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.folder = Path(config.run.dir)
        self.data = LoaderFactory(config, world)
        self.train_set = self.data.train_set
        if not self.train_set.class_counts.any() and config.stage not in ("moco", "rotation"):
            raise UserError(f"{config.data.root} is unlabeled: only moco and rotation can train on it; set data.root to a labeled set")
        # an epoch is one pass over the first set, whatever share of a batch the second one has
        self.schedule = Schedule(config, len(self.data.train_sets[0]) * config.global_batch_size / labeled_batch(config))
        self.batch_share = self.data.local_batch_size() * world.size / config.global_batch_size
        self.last_step = min(self.schedule.total_steps, config.max_steps or self.schedule.total_steps)
        self.store = CheckpointStore(self.folder / "checkpoints", config.run.keep_checkpoints, world)
        self.best, self.selected_step = BestWeights(self.folder, config.run.select), self.last_step
        if config.run.select != "last" and self._selection_split() not in self.train_set.dataset.splits:
            raise UserError(f"run.select={config.run.select}, but {config.data.root} has no split '{self._selection_split()}'; use run.select=last")
        self.leave_requested = False

    def run(self) -> dict:
        """Train to the end, or from the last checkpoint to the end; returns (and writes) the content of result.json."""
        self._claim_folder()
        finished = self._finished()
        if finished is not None:
            log.info("%s is already done; delete the folder or choose another run.dir to train again", self.folder)
            return finished
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGUSR2)}
        try:
            return self._run(time.monotonic())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _run(self, started: float) -> dict:
        self.build()
        first_step, seconds_before = self._resume()
        if self.world.is_main and not first_step:
            self.best.forget()
        self._seconds = lambda: seconds_before + time.monotonic() - started
        with Monitor(self.folder, self.folder.name, first_step, self.last_step, self.world.is_main) as self.monitor:
            self.train(self.data.train(self.engine.stage.num_views, first_step, self.last_step), first_step)
            if self.config.run.select != "last":
                self._select(self.last_step)
                self.selected_step = self.best.restore(self.engine.stage)
            metrics = {split: self._evaluate(split, self.selected_step) for split in self._evaluated_splits()}
        return self._finish(metrics)

    def build(self) -> None:
        """Make the stage, with its starting weights, and the engine."""
        torch.manual_seed(self.config.seed)
        pools = [self.data.unlabeled_set] if self.data.unlabeled_set is not None else []
        stage = STAGES[self.config.stage](self.config, *(torch.from_numpy(part.class_counts.astype(np.int64)) for part in [self.train_set, *pools]))
        if self.config.model.init_from:
            self._load_start(stage)
        stage.prepare()
        self.engine = make_engine(self.config, stage, self.world)

    def _load_start(self, stage: Stage) -> None:
        for file, module in stage.starting_weights().items():
            try:
                load_weights(module, self.config.model.init_from, file)
            except UserError as error:
                if file == BACKBONE_FILE:
                    raise
                what = "the run of a linear classifier, which this goes on from, not a backbone alone"
                raise UserError(f"model.init_from must be {what}: {error}") from error

    def train(self, batches: Iterable[dict], first_step: int) -> float:
        """Run THE loop over ``batches``, logging, saving and evaluating when their steps come.

        Returns the share of the time that the host waited for batches.
        """
        batches = Timed(batches)
        window, started = [], time.monotonic()
        since, waited = started, 0.0
        for step, outputs in training_steps(self.engine, batches, self.schedule, first_step, self.config.seed):
            window.append(outputs)
            save = step % self.config.run.checkpoint_every == 0 or step == self.last_step
            evaluate = self._epoch_mark(step) and step < self.last_step
            if not (save or evaluate or step % self.config.run.log_every == 0):
                continue
            leave = self._log(step, window, time.monotonic() - since, batches.waited - waited)
            if evaluate and self.config.run.select != "last":
                self._select(step)
            elif evaluate and self.config.data.val_split in self.train_set.dataset.splits:
                self._evaluate(self.config.data.val_split, step)
            if save or leave:
                self._save(step)
            if leave and step < self.last_step:
                raise Preempted(f"stopped at step {step} of {self.last_step} as asked; the same command goes on from there")
            window, since, waited = [], time.monotonic(), batches.waited
        return batches.waited / (time.monotonic() - started)

    def _log(self, step: int, window: list[dict], seconds: float, waited: float) -> bool:
        """The one place where host, device and ranks meet: check the losses, record means; True if any rank must leave."""
        names = [name for name in window[0] if name != "loss"]
        share = self.batch_share
        losses = torch.stack([outputs["loss"] for outputs in window]).double()
        means = [torch.stack([outputs[name] for outputs in window]).double().mean() for name in names]
        flags = torch.tensor([self.leave_requested, sum(len(part.bad) for part in self.data.train_sets), waited / max(seconds, 1e-9)], dtype=torch.float64)
        together = torch.cat([losses * share, *(mean[None] * share for mean in means), flags.to(losses.device)])
        values = all_reduce_(together).tolist()
        losses, (leave, bad, wait_share) = values[: len(window)], values[-3:]
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._stop_nonfinite(step - len(window) + index, loss / self.world.size)
        if bad:  # summed over ranks, which may have met the same ones
            for part in self.data.train_sets:
                distinct = set().union(*gather_objects(set(part.bad)))
                check_bad_samples(len(distinct), part, self.config.data.max_bad_share)
        rate = self.config.global_batch_size * len(window) / seconds
        record = {
            "epoch": round(self.schedule.epoch(step), 4),
            "lr": self.schedule.lr(step - 1),
            "loss": sum(losses) / len(losses) / self.world.size,
            **{name: value / self.world.size for name, value in zip(names, values[len(window) : -3])},
            "images_per_s": round(rate, 1),
            "data_wait": round(wait_share / self.world.size, 4),
        }
        remaining = (self.last_step - step) * self.config.global_batch_size / rate
        self.monitor.record(step, {**record, "last_step": self.last_step, "seconds_left": round(remaining, 1)}, remaining)
        return leave > 0

    def _stop_nonfinite(self, step: int, loss: float) -> None:
        ids = self.data.sample_ids(step).tolist()
        if self.world.is_main:
            write_atomically(self.folder / "nonfinite.json", json.dumps({"step": step, "sample_ids": ids}).encode())
        raise UserError(
            f"the loss is {loss} at step {step} (sample ids {', '.join(map(str, ids[:8]))}, ...; all in {self.folder}/nonfinite.json); "
            "the last checkpoint is kept; try a lower optim.lr, optim.clip_grad_norm or engine.precision=fp32"
        )

    def _evaluate(self, split: str, step: int) -> dict:
        stage = self.engine.stage
        stage.eval()
        with torch.no_grad(), self.engine.autocast():
            metrics = stage.evaluate(self.data.evaluate, split)
        stage.train()
        unread = len(self.data.manifest(split)) - metrics["samples"]
        check_bad_samples(unread, self.data.manifest(split), self.config.data.max_bad_share)
        shown = {name: value for name, value in metrics.items() if name != "samples" and isinstance(value, float)}
        log.info("step %d, %s: %s", step, split, ", ".join(f"{name} {value:.2f}" for name, value in shown.items()))
        self.monitor.evaluated(step, split, metrics)
        return metrics

    def _select(self, step: int) -> None:
        """Evaluate on the split that weights are selected on, and keep these if they are the best so far."""
        metrics = self._evaluate(self._selection_split(), step)
        if self.world.is_main:
            self.best.offer(step, metrics[self.engine.stage.headline], self.engine.stage)
        self.world.barrier()

    def _selection_split(self) -> str:
        return {"val": self.config.data.val_split, "test": self.config.data.test_split}[self.config.run.select]

    def _evaluated_splits(self) -> list[str]:
        """The validation and test splits that the data set has, each once."""
        wanted = dict.fromkeys((self.config.data.val_split, self.config.data.test_split))
        return [split for split in wanted if split in self.train_set.dataset.splits]

    def _epoch_mark(self, step: int) -> bool:
        every = self.config.run.evaluate_every
        return int(self.schedule.epoch(step) / every) > int(self.schedule.epoch(step - 1) / every)

    def _on_signal(self, number: int, _frame) -> None:
        """Only remember: all ranks agree on it at the next log step, at a step boundary."""
        self.leave_requested = True

    # what the run's folder holds

    def _claim_folder(self) -> None:
        """Make the folder and save the config, or refuse to mix two configs in one folder."""
        if self.world.is_main:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                saved = self.folder / "config.yaml"
                if saved.exists() and self._has_work():
                    self._check_same_config(saved)
                write_atomically(saved, to_yaml(self.config).encode())
            except OSError as error:
                raise UserError(f"cannot write to run.dir {self.folder}: {error.strerror}; choose another run.dir") from error
        self.world.barrier()

    def _has_work(self) -> bool:
        """Whether there is anything in the folder that another config could spoil; a start that failed leaves nothing."""
        return (self.folder / "result.json").exists() or any((self.folder / "checkpoints").glob("step-*"))

    def _check_same_config(self, saved: Path) -> None:
        defaults = flatten(to_dict(Config()))  # for keys that are newer than the saved config
        before, now = {**defaults, **flatten(read_yaml(saved))}, flatten(to_dict(self.config))
        free = (*FREE_KEYS, *self.config.resume.allow_changes)
        changed = [
            key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key) and not key.startswith(free)
        ]
        if changed:
            difference = ", ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
            raise UserError(
                f"{self.folder} holds a run with another config ({difference}); choose another run.dir, remove the folder, or go on with "
                f"resume.allow_changes=[{','.join(changed)}]"
            )

    def _finished(self) -> dict | None:
        path = self.folder / "result.json"
        try:
            result = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return result if result.get("steps") == self.last_step else None

    def _resume(self) -> tuple[int, float]:
        """Step and seconds of the newest valid checkpoint, its state loaded; zeros for a new run."""
        checkpoint = self.store.newest() if self.config.resume.enabled else None
        if checkpoint is None:
            return 0, 0.0
        if checkpoint.step > self.last_step:
            raise UserError(
                f"{checkpoint.path} is past the {self.last_step} steps asked for; raise max_steps or epochs, or choose another run.dir"
            )
        try:
            self.engine.load(checkpoint.path)
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
            if is_lost_peer(error):
                raise
            raise UserError(f"{checkpoint.path} does not fit this config ({error}); undo the change or choose another run.dir") from error
        log.info("resumed from step %d of %d (%s)", checkpoint.step, self.last_step, checkpoint.path)
        return checkpoint.step, checkpoint.meta["seconds"]

    def _save(self, step: int) -> None:
        about = {"seconds": round(self._seconds(), 1), "ranks": self.world.size, "config": to_dict(self.config)}
        self.store.save(step, about, self.engine.save)

    def _finish(self, metrics: dict[str, dict]) -> dict:
        result = {
            "stage": self.config.stage,
            "description": self.config.description,
            "headline": self.engine.stage.headline,
            "seed": self.config.seed,
            "selected_on": self.config.run.select,
            "selected_step": self.selected_step,
            "reference_error": self.config.reference_error,
            "metrics": metrics,
            "steps": self.last_step,
            "epochs": round(self.schedule.epoch(self.last_step), 4),
            "train_samples": len(self.train_set),
            "class_counts": self.train_set.class_counts.tolist(),
            "classes": self.train_set.classes,
            "seconds": round(self._seconds(), 1),
            "ranks": self.world.size,
            "global_batch_size": self.config.global_batch_size,
            "precision": str(self.engine.dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.world.device) if self.world.device.type == "cuda" else "cpu",
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"lt-train": __version__, **{name: version(name) for name in ("torch", "torchvision", "numpy")}},
        }
        if self.world.is_main:
            about = {"stage": self.config.stage, "backbone": self.config.model.backbone, "steps": str(self.last_step)}
            try:
                export_weights(self.engine.stage.backbone, self.folder / BACKBONE_FILE, about)
                if hasattr(self.engine.stage, "classifier"):
                    export_weights(self.engine.stage.classifier, self.folder / CLASSIFIER_FILE, about)
                write_atomically(self.folder / "result.json", (json.dumps(result, indent=1) + "\n").encode())
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot write the results to {self.folder}: {error}; the last checkpoint is kept") from error
        self.world.barrier()
        return result


class Timed:
    """Iterates batches and adds up the seconds that the host waited for them."""

    def __init__(self, batches: Iterable[dict]):
        self.batches, self.waited = batches, 0.0

    def __iter__(self) -> Iterator[dict]:
        iterator = iter(self.batches)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch
