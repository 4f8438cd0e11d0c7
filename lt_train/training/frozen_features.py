"""Features of a frozen backbone, computed once for all epochs, in the run's folder.

    features/000000.safetensors ...   of ROWS training samples each, in the order of their ids:
                                      "features" (n, D) float32, "sample_id" (n,) int64

``sample_id`` is the sample itself, or the one that stands in for it where it is damaged. Every file
is complete or absent, and holds a checksum, its rows and the sha256 of what they were made of.
Ranks share the files out to make them, and then map all of them. What is in a file does not depend
on ranks, so that a run which was cut off goes on on any number of them.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lt_train.collectives import from_main, on_every_rank
from lt_train.config.schema import Config
from lt_train.console import working
from lt_train.data.augment import random_parts
from lt_train.data.feature_loader import ReadFeatures
from lt_train.data.run_data import RunData, check_bad_samples
from lt_train.distributed import rank_share
from lt_train.errors import MachineFault, UserError, unreadable
from lt_train.files import canonical, remove_leftovers
from lt_train.methods.base import Method
from lt_train.models.tensor_files import (
    AbsentFile,
    map_tensors,
    read_safetensors,
    tensors_digest,
    write_tensors,
)
from lt_train.training.engine import Engine
from lt_train.training.run_folder import RunFolder

log = logging.getLogger(__name__)

ROWS = 1024  # samples a file
Rows = tuple[torch.Tensor, torch.Tensor]  # features (n, D), and the samples (n,) that they are of


def frozen_features(
    engine: Engine, data: RunData, folder: RunFolder, digests: dict[str, str]
) -> ReadFeatures | None:
    """The features of the training set, made first where they are not there; None where every step
    needs images, which a line says if the backbone is frozen. Collective.

    ``digests``: of the data. A :class:`UserError` on every rank if they cannot be written, or too
    much of the set is damaged.
    """
    method, config = engine.method, data.config
    if config.data.features == "off" or not is_frozen(method.backbone):
        return None
    if reason := _needs_images(method, config):
        log.info("features: computed at every step, since %s", reason)
        return None
    made_of = from_main(lambda: _digest(engine, config, digests["data.root"]))
    store = FeatureStore(folder, len(data.train_set), made_of)
    data.hold_train_set()
    on_every_rank(lambda: _complete(store, engine, data))
    store.open()
    # as the files tell, which may be those of an earlier start
    check_bad_samples(store.stand_ins(), data.train_set, config.data.max_bad_share)
    return store.read


def is_frozen(backbone: nn.Module) -> bool:
    """Whether an image always has the same features: nothing of the backbone is trained, and
    nothing in it computes as in training.
    """
    trains = any(parameter.requires_grad for parameter in backbone.parameters())
    return not trains and not any(module.training for module in backbone.modules())


def _needs_images(method: Method, config: Config) -> str | None:
    """Why a method with a frozen backbone is to be given images all the same."""
    if not getattr(type(method).forward, "of_features", False):
        return f"the method {config.method} needs images"
    if config.classifier.mixup_alpha or config.classifier.cutmix_alpha:
        return "images are mixed"
    if config.unlabeled.root:
        return "there are two sets"
    if drawn := random_parts(config.view):
        return f"the view is random ({', '.join(drawn)})"
    return None


def _digest(engine: Engine, config: Config, data: str) -> str:
    """sha256 of all that features depend on."""
    keys = asdict(config.model)
    for where in ("init_from", "init_prefix"):  # the weights themselves count
        del keys[where]
    content = {
        "weights": tensors_digest(engine.method.backbone.state_dict()),
        "model": keys,
        "data": [data, config.data.train_split, config.data.loader],
        "view": asdict(config.view),
        "precision": str(engine.dtype),
    }
    return hashlib.sha256(canonical(content)).hexdigest()


class FeatureStore:
    """The files of a run's features, for ``samples`` samples; ``made_of``: a digest."""

    def __init__(self, folder: RunFolder, samples: int, made_of: str):
        self.folder, self.samples, self.made_of = folder, samples, made_of
        self.parts = range(-(-samples // ROWS))

    def rows(self, part: int) -> range:
        """The sample ids of a file."""
        return range(part * ROWS, min((part + 1) * ROWS, self.samples))

    def is_whole(self, part: int) -> bool:
        """Whether a file is there, as it was written, and of the same weights, data and view."""
        try:
            _, about = read_safetensors(self._path(part), "it is made again")
        except MachineFault:
            raise
        except AbsentFile:
            return False
        except UserError as error:
            log.warning("%s", error)
            return False
        return self._about(part).items() <= about.items()

    def write(self, part: int, features: torch.Tensor, sample_ids: torch.Tensor) -> None:
        """``features`` (n, D) and the samples (n,) that they are of, for all rows of a file."""
        self.folder.lock.check()
        tensors = {"features": features, "sample_id": sample_ids}
        with self.writing():
            write_tensors(tensors, self._path(part), self._about(part))

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"cannot write to {self.folder.features}: {error.strerror or error}"
            remedy = "free space there, or set data.features=off"
            raise unreadable(error, f"{message}; {remedy}") from error

    def open(self) -> None:
        """Map all files, which must be whole, for :meth:`read`."""
        self._mapped = []
        for part in self.parts:
            tensors = map_tensors(self._path(part))
            self._mapped.append((tensors["features"].numpy(), tensors["sample_id"].numpy()))

    def stand_ins(self) -> int:
        """For how many samples another one stands in."""
        counts = 0
        for part, (_, used) in zip(self.parts, self._mapped):
            counts += int(np.count_nonzero(used != np.asarray(self.rows(part))))
        return counts

    def read(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (B, D) of samples (B,), and the samples (B,) that they are of."""
        parts, rows = np.divmod(sample_ids, ROWS)
        width = self._mapped[0][0].shape[1]
        features = np.empty((len(sample_ids), width), np.float32)
        used = np.empty(len(sample_ids), np.int64)
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            for whole, taken in zip(self._mapped[part], (features, used)):
                taken[places] = whole[rows[places]]
        return features, used

    def _about(self, part: int) -> dict[str, str]:
        rows = self.rows(part)
        return {"made_of": self.made_of, "rows": f"{rows.start} to {rows.stop}"}

    def _path(self, part: int) -> Path:
        return self.folder.features / f"{part:06d}.safetensors"


def _complete(store: FeatureStore, engine: Engine, data: RunData) -> None:
    """Make those of this rank's files that are not whole."""
    folder, world = store.folder.features, engine.world
    with store.writing():
        folder.mkdir(exist_ok=True)
        if world.is_main:
            remove_leftovers(folder)
    own = rank_share(len(store.parts), world.rank, world.size)
    missing = [part for part in own if not store.is_whole(part)]
    if missing:
        _make(store, missing, engine, data)
    state = "computed once" if missing else "found"
    log.info("features: %s, of %d samples, in %s", state, store.samples, folder)


@torch.no_grad()
def _make(store: FeatureStore, parts: list[int], engine: Engine, data: RunData) -> None:
    """Write the files ``parts``."""
    samples = np.concatenate([np.asarray(store.rows(part)) for part in parts])
    backbone, done = engine.method.backbone, 0
    what = f"of {len(samples):,} images of this rank"

    def embedded() -> Iterator[Rows]:
        nonlocal done
        for batch in data.train_once(samples):
            features = backbone(batch.views[0]).float()
            yield features.cpu(), batch.sample_id.cpu()
            done += len(batch)

    sizes = [len(store.rows(part)) for part in parts]
    with (
        engine.autocast(),
        working(lambda: f"features of the frozen backbone: {done:,} {what}"),
    ):
        for part, rows in zip(parts, _cut(embedded(), sizes)):
            store.write(part, *rows)


def _cut(batches: Iterator[Rows], sizes: list[int]) -> Iterator[Rows]:
    """The rows of ``batches`` in pieces of ``sizes``."""
    rows = next(batches)
    for size in sizes:
        while len(rows[0]) < size:
            rows = tuple(map(torch.cat, zip(rows, next(batches))))
        yield tuple(column[:size] for column in rows)
        rows = tuple(column[size:] for column in rows)
