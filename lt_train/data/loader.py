"""What every loader shares: which samples and views a batch holds (a pure function of the step), and the last mile on the device.

A *loader* is an iterable of batches that lie on the device: ``{"views": [(B, 3, size, size) float32 channels_last, ...],
"label": (B,) int64, "sample_id": (B,) int64}``. Both kinds, :mod:`dali_loader` and :mod:`resident_loader`, take a
:class:`TrainPlan` or an :class:`EvalPlan`.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lt_train.data.augment import View, draw_view
from lt_train.data.manifest import UNLABELED, Manifest, file_sha256, read_dataset, write_atomically
from lt_train.data.order import batch_slice, check_batch, make_sampler, mix, permute
from lt_train.data.rand_augment import Operations, apply_operations
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.schema import Config, SamplerConfig, ViewConfig, labeled_batch, training_views, views_in_order

# ImageNet's statistics, in grey levels; used for every data set, as published backbones expect them
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
PIXELS_AT_ONCE = 4  # on 2 cores, 0.19 ms for a 224 x 224 image against 0.51 ms with one

Loader = Iterable[dict]


class Plan(Protocol):
    """Which samples this rank's batches hold, and how each is seen; for several batches in a row, one after the other."""

    manifest: Manifest
    num_views: int
    sizes: list[int]  # pixels, the side of each view
    max_batch: int  # the largest batch of this rank
    batches: range  # the batch numbers, in order
    replace_bad: bool  # training replaces a damaged sample; evaluation leaves it out and counts it
    blurs: list[bool]  # whether each view may be blurred

    def sample_ids(self, batches: range) -> np.ndarray: ...

    def batch_sizes(self, batches: range) -> list[int]: ...

    def views(self, batches: range, sample_ids: np.ndarray) -> list[View]: ...


@dataclass(frozen=True)
class TrainPlan:
    """Training batches from ``first_step`` to ``last_step`` (exclusive); the batch number is the global step."""

    config: Config
    manifest: Manifest
    num_views: int
    world: World
    first_step: int
    last_step: int
    replace_bad = True

    def __post_init__(self):
        check_batch(self.config.sampler, self.config.global_batch_size, self.world.size)
        object.__setattr__(self, "_sampler", make_sampler(self.config.sampler, self.manifest, self.config.seed, self.config.epochs))

    @property
    def view_configs(self) -> list[ViewConfig]:
        return views_in_order(self.config, self.num_views)

    @property
    def sizes(self) -> list[int]:
        return [view.size for view in self.view_configs]

    @property
    def max_batch(self) -> int:
        return -(-self.config.global_batch_size // self.world.size)

    @property
    def batches(self) -> range:
        return range(self.first_step, self.last_step)

    @property
    def blurs(self) -> list[bool]:
        return [view.blur_probability > 0 for view in self.view_configs]

    def positions(self, batches: range) -> np.ndarray:
        return np.concatenate([self._slice(index) for index in batches])

    def batch_sizes(self, batches: range) -> list[int]:
        return [len(self._slice(index)) for index in batches]

    def sample_ids(self, batches: range) -> np.ndarray:
        return self._sampler(self.positions(batches))

    def views(self, batches: range, sample_ids: np.ndarray) -> list[View]:
        sizes = self.manifest.widths[sample_ids], self.manifest.heights[sample_ids]
        positions = self.positions(batches)
        return [draw_view(view, self.config.seed, positions, index, *sizes) for index, view in enumerate(self.view_configs)]

    def _slice(self, index: int) -> np.ndarray:
        return batch_slice(index, self.config.global_batch_size, self.world.rank, self.world.size)


@dataclass(frozen=True)
class EvalPlan:
    """Every sample of a split exactly once over all ranks, in sample_id order, seen through ``view``."""

    manifest: Manifest
    view: ViewConfig
    batch_size: int  # samples a rank
    world: World
    num_views = 1
    replace_bad = False
    blurs = [False]

    @property
    def sizes(self) -> list[int]:
        return [self.view.size]

    @property
    def max_batch(self) -> int:
        return self.batch_size

    @property
    def _bounds(self) -> tuple[int, int]:
        rank, ranks = self.world.rank, self.world.size
        return len(self.manifest) * rank // ranks, len(self.manifest) * (rank + 1) // ranks

    @property
    def batches(self) -> range:
        start, stop = self._bounds
        return range(-(-(stop - start) // self.batch_size))

    def sample_ids(self, batches: range) -> np.ndarray:
        start, stop = self._bounds
        return np.arange(start + batches.start * self.batch_size, min(start + batches.stop * self.batch_size, stop))

    def batch_sizes(self, batches: range) -> list[int]:
        return [len(self.sample_ids(range(index, index + 1))) for index in batches]

    def views(self, batches: range, sample_ids: np.ndarray) -> list[View]:
        sizes = self.manifest.widths[sample_ids], self.manifest.heights[sample_ids]
        return [draw_view(self.view, 0, sample_ids, 0, *sizes)]


class LoaderFactory:
    """Makes the loaders of one run; the resident tensors of a split are read once and shared."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        if not config.data.root:
            raise UserError("data.root is not set: name a folder that python -m data_prep has written")
        self._manifests: dict[str, Manifest] = {}
        self._resident: dict[int, torch.Tensor] = {}
        self._roots = {root: self._staged(root) for root in (config.data.root, config.unlabeled.root) if root}

    def _staged(self, root: str) -> Path:
        target = self.config.data.stage_to
        return stage_shards(Path(root), Path(target), self.world) if target else Path(root)

    def _drawn(self, pool: Manifest) -> Manifest:
        """All of the unlabeled set, or ``max_samples`` of it."""
        number = self.config.unlabeled.max_samples
        if number is None or number >= len(pool):
            return pool
        return pool.subset(np.sort(permute(np.arange(number), len(pool), mix(self.config.seed, 7))))

    def _pseudo_labeled(self, pool: Manifest) -> Manifest:
        """The pool with labels from ``unlabeled.label_column``, as far as they are sure enough, or without labels."""
        config, classes = self.config.unlabeled, self.train_set.classes
        if config.label_column is None:
            return pool.relabeled(np.full(len(pool), UNLABELED), classes)
        if pool.classes and pool.classes != classes:  # a pool of any images has none
            raise UserError(f"unlabeled.root {pool.root} was made for other classes than data.root {self.train_set.root}")
        labels = pool.column(config.label_column)
        if labels.dtype.kind not in "iu" or not set(np.unique(labels)) <= {UNLABELED, *range(len(classes))}:
            raise UserError(f"unlabeled.label_column={config.label_column} of {pool.root} does not hold labels of {len(classes)} classes; choose another")
        kept, wanted = labels != UNLABELED, f"a {config.label_column}; python -m lt_train pseudo_label writes one"
        if config.min_confidence > 0:
            confidences = pool.column(config.confidence_column)
            if confidences.dtype.kind != "f":
                raise UserError(f"unlabeled.confidence_column={config.confidence_column} of {pool.root} does not hold fractions; choose another")
            kept &= confidences >= config.min_confidence
            wanted = f"a {config.label_column} of {config.confidence_column} {config.min_confidence} or more; lower unlabeled.min_confidence"
        if not kept.any():
            raise UserError(f"{pool.root}/{pool.split} has no sample with {wanted}")
        return pool.relabeled(labels, classes).subset(np.flatnonzero(kept))

    def manifest(self, split: str) -> Manifest:
        if split not in self._manifests:
            self._manifests[split] = Manifest(self._roots[self.config.data.root], split)
        return self._manifests[split]

    @property
    def train_set(self) -> Manifest:
        return self.manifest(self.config.data.train_split)

    @cached_property
    def unlabeled_set(self) -> Manifest | None:
        """The second set, with its pseudo-labels if it is trained on them."""
        unlabeled = self.config.unlabeled
        return self._drawn(self._pseudo_labeled(Manifest(self._roots[unlabeled.root], unlabeled.split))) if unlabeled.root else None

    @cached_property
    def train_sets(self) -> list[Manifest]:
        """What batches are drawn from, in the order in which sample ids count on from one to the next."""
        if self.unlabeled_set is None:
            return [self.train_set]
        if self.config.unlabeled.share is None:
            return [self.train_set.joined(self.unlabeled_set)]
        return [self.train_set, self.unlabeled_set]

    def train(self, num_views: int, first_step: int, last_step: int) -> Loader:
        """Training batches of this rank for steps [first_step, last_step)."""
        plans = self._train_plans(num_views, first_step, last_step, self.world)
        loaders = [self._make(plan) for plan in plans]
        return loaders[0] if len(loaders) == 1 else Mixed(loaders, len(self.train_set))

    def sample_ids(self, step: int) -> np.ndarray:
        """Those of the global batch of ``step``."""
        plans = self._train_plans(1, step, step + 1, World())
        offsets = (0, len(self.train_set))
        return np.concatenate([plan.sample_ids(plan.batches) + offset for plan, offset in zip(plans, offsets)])

    def local_batch_size(self) -> int:
        """This rank's samples in the first global batch."""
        return sum(plan.batch_sizes(plan.batches)[0] for plan in self._train_plans(1, 0, 1, self.world))

    def _train_plans(self, num_views: int, first_step: int, last_step: int, world: World) -> list[TrainPlan]:
        config = self.config
        labeled = replace(config, global_batch_size=labeled_batch(config))
        plans = [TrainPlan(labeled, self.train_sets[0], num_views, world, first_step, last_step)]
        if len(self.train_sets) > 1:
            # its own augmentations and order; ranks from the other end, which evens out shares that do not divide
            rest = config.global_batch_size - labeled.global_batch_size
            other = replace(config, global_batch_size=rest, sampler=SamplerConfig(), seed=int(mix(config.seed, 6)[0] >> 2))
            plans.append(TrainPlan(other, self.train_sets[1], num_views, replace(world, rank=world.size - 1 - world.rank), first_step, last_step))
        return plans

    def evaluate(self, split: str) -> Loader:
        """This rank's share of ``split``, once, in sample_id order."""
        config = self.config
        return self._make(EvalPlan(self.manifest(split), config.eval_view, config.data.eval_batch_size, self.world))

    def _make(self, plan: Plan) -> Loader:
        if self.config.data.loader == "dali":
            return make_loader(plan, self.config, self.world)
        key = id(plan.manifest)
        if key not in self._resident:
            self._resident[key] = read_resident(plan.manifest, self.config, self.world)
        return make_loader(plan, self.config, self.world, self._resident[key])


class Mixed:
    """Batches made of one batch of each loader; the second one's sample ids go on after the ``first_size`` of the first."""

    def __init__(self, loaders: list[Loader], first_size: int):
        self.loaders, self.first_size = loaders, first_size

    def __iter__(self) -> Iterator[dict]:
        for labeled, unlabeled in zip(*self.loaders):
            yield {
                "views": [torch.cat(pair) for pair in zip(labeled["views"], unlabeled["views"])],
                "label": torch.cat([labeled["label"], unlabeled["label"]]),
                "sample_id": torch.cat([labeled["sample_id"], unlabeled["sample_id"] + self.first_size]),
            }


def read_resident(manifest: Manifest, config: Config, world: World) -> torch.Tensor:
    """All images of a split on the device, padded as the config's crops need."""
    from lt_train.data.resident_loader import load_resident

    images = load_resident(manifest, world.device, world.cpu_threads, _padding(config))
    for key, view in training_views(config).items():
        side = images.shape[1] + 2 * (view.padding - _padding(config))
        if view.crop == "pad" and view.size > side:
            raise UserError(f"{key}.size={view.size} is larger than the images with {key}.padding={view.padding} round them ({side} pixels)")
    return images


def _padding(config: Config) -> int:
    """Zero pixels round resident images: as many as any view's crops may reach into."""
    return max((view.padding for view in training_views(config).values() if view.crop == "pad"), default=0)


def make_loader(plan: Plan, config: Config, world: World, resident: torch.Tensor | None = None) -> Loader:
    """The loader that ``config.data.loader`` names, over ``plan``; ``resident``: what :func:`read_resident` has read already."""
    # imported here, so that a machine without DALI can run the resident loader, and a test the plans alone
    if config.data.loader == "dali":
        from lt_train.data.dali_loader import DaliLoader

        return DaliLoader(plan, world.device, config.data.decode_threads or world.cpu_threads)
    from lt_train.data.resident_loader import ResidentLoader

    images = read_resident(plan.manifest, config, world) if resident is None else resident
    return ResidentLoader(plan, images, _padding(config))


def finish(pixels: torch.Tensor, colour: torch.Tensor | None, operations: Operations | None = None) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> normalised float32 (B, 3, H, W) in channels_last memory, augmented on the way: ``operations``, ``colour``."""
    if operations is not None:
        pixels = apply_operations(pixels, operations)
    batch, height, width, _ = pixels.shape
    mean, std = _statistics(pixels.device, width)
    rows = pixels.reshape(batch, height, width * 3).float()
    if colour is not None:
        # a matrix of 3 x 3 is too small for the BLAS: several pixels at once, by the same matrix along a diagonal
        group = PIXELS_AT_ONCE if height * width % PIXELS_AT_ONCE == 0 else 1
        bias = rows.view(batch, -1, 3).mean(1, keepdim=True) @ colour[:, :, 3:].transpose(1, 2)
        matrix = torch.einsum("ij,bkl->bikjl", torch.eye(group, device=pixels.device), colour[:, :, :3].transpose(1, 2))
        matrix = matrix.reshape(batch, 3 * group, 3 * group)
        rows = torch.baddbmm(bias.repeat(1, 1, group), rows.view(batch, -1, 3 * group), matrix).clamp_(0, 255)
        rows = rows.view(batch, height, width * 3)
    rows = rows.sub_(mean).mul_(std)
    return rows.view(batch, height, width, 3).permute(0, 3, 1, 2)


_STATISTICS: dict = {}


def _statistics(device: torch.device, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / std tiled to a row of pixels, so that the innermost loop is long enough to vectorise."""
    if (device, width) not in _STATISTICS:
        mean = torch.tensor(PIXEL_MEAN, device=device).repeat(width)
        _STATISTICS[device, width] = mean, 1 / torch.tensor(PIXEL_STD, device=device).repeat(width)
    return _STATISTICS[device, width]


def read_batch(plan: Plan, index: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sample ids and encoded images of batch ``index``, damaged samples replaced or left out as the plan says."""
    wanted = plan.sample_ids(range(index, index + 1))
    if plan.replace_bad:
        pairs = [plan.manifest.read_or_replace(sample_id) for sample_id in wanted]
    else:
        pairs = [(sample_id, content) for sample_id in wanted if (content := plan.manifest.read(sample_id)) is not None]
    return np.array([sample_id for sample_id, _ in pairs], np.int64), [content for _, content in pairs]


def check_bad_samples(bad: int, manifest: Manifest, max_share: float) -> None:
    """Stop when more than ``max_share`` of a split is damaged; ``bad`` counts distinct samples over all ranks."""
    if bad > max_share * len(manifest) and bad > 0:
        roots = dict.fromkeys(str(path.parent) for path in manifest.paths)  # two, where two sets are sampled as one
        raise UserError(
            f"{bad} of {len(manifest)} samples of {' and '.join(roots)} ({manifest.split}) are damaged, more than "
            f"data.max_bad_share={max_share}; python -m data_prep verify {' or '.join(roots)} lists them"
        )


def stage_shards(root: Path, target: Path, world: World) -> Path:
    """Copy a prepared data set to node-local ``target``, verifying every shard; one rank a node copies, all wait."""
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]  # two sets may have folders of one name
    local = target / f"{root.resolve().name}-{place}"
    if world.local_rank == 0:
        splits = read_dataset(root).splits
        manifest_files = [path for path in root.iterdir() if path.suffix in (".arrow", ".json") and path.is_file()]
        try:
            local.mkdir(parents=True, exist_ok=True)
            for shard in (shard for split in splits.values() for shard in split.shards):
                _copy_verified(root / shard.name, local / shard.name, shard.sha256)
            for path in manifest_files:
                write_atomically(local / path.name, path.read_bytes())  # another job may have it mapped
        except OSError as error:
            raise UserError(f"cannot stage {root} to {local}: {error.strerror}; free space there or unset data.stage_to") from error
    world.barrier()
    return local


def _copy_verified(source: Path, target: Path, sha256: str) -> None:
    if target.is_file() and file_sha256(target) == sha256:
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.copyfile(source, temporary)
    if file_sha256(temporary) != sha256:
        raise UserError(f"{source} does not match its sha256 in dataset.json; python -m data_prep verify {source.parent}")
    temporary.replace(target)
