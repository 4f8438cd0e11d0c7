"""All data of one run: its sets, and the loaders over them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lt_train.collectives import gather_objects, on_every_rank
from lt_train.config.schema import (
    Config,
    SamplerConfig,
    UnlabeledConfig,
    labeled_batch,
    training_views,
)
from lt_train.console import working
from lt_train.data.batch import Batch, Loader
from lt_train.data.batch_plan import BatchPlan, EvalPlan, OncePlan, TrainPlan
from lt_train.data.columns import row_type, rows_where, slices
from lt_train.data.feature_loader import FeatureLoader, ReadFeatures
from lt_train.data.manifest import Check, Manifest
from lt_train.data.node_cache import NodeCache
from lt_train.data.pixels import scale_of
from lt_train.data.tables import UNLABELED
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.random_streams import Stream, mix, permute


class RunData:
    """Makes the loaders of one run; the resident tensors of a split are read once and shared."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        if not config.data.root:
            raise UserError(
                "data.root is not set: name a folder that python -m data_prep has written"
            )
        decodes_on_gpu(config, world.device)  # or refuses before anything takes time
        self._manifests: dict[str, Manifest] = {}
        self._resident: dict[int, torch.Tensor] = {}
        roots = [root for root in (config.data.root, config.unlabeled.root) if root]
        if not config.data.cache_dir:
            self._roots = {root: Path(root) for root in roots}
        else:
            target, limit = Path(config.data.cache_dir), config.data.cache_gb
            limit = None if limit is None else int(limit * 1e9)
            self._cache = NodeCache(roots, target, limit, world)  # which keeps its copies in use
            self._roots = self._cache.folders

    def manifest(self, split: str) -> Manifest:
        """A split of the first set, opened once; of the training split, what ``data.max_samples``
        leaves. Collective the first time.
        """
        data = self.config.data
        if split not in self._manifests:
            part = open_together(self._roots[data.root], split, self.world)
            if split == data.train_split:
                part = drawn(part, data.max_samples, self.config.seed)
            self._manifests[split] = part
        return self._manifests[split]

    @property
    def train_set(self) -> Manifest:
        return self.manifest(self.config.data.train_split)

    @cached_property
    def unlabeled_set(self) -> Manifest | None:
        """The second set, with its pseudo-labels if it is trained on them."""
        config = self.config.unlabeled
        if not config.root:
            return None
        pool = open_together(self._roots[config.root], config.split, self.world)
        pool = _pseudo_labeled(pool, config, self.train_set)
        return drawn(pool, config.max_samples, self.config.seed)

    @cached_property
    def train_sets(self) -> list[Manifest]:
        """What batches are drawn from, in the order in which sample ids count on."""
        if self.unlabeled_set is None:
            return [self.train_set]
        if self.config.unlabeled.share is None:
            return [self.train_set.joined(self.unlabeled_set)]
        return [self.train_set, self.unlabeled_set]

    @property
    def positions_per_epoch(self) -> int:
        """An epoch is one pass over the first set, whatever share of a batch the second one has."""
        return len(self.train_sets[0])

    def train(
        self, first_step: int, last_step: int, features: ReadFeatures | None = None
    ) -> Loader:
        """Training batches of this rank for steps [first_step, last_step). Collective.

        With ``features`` of the one set there is, batches have these, and no image is read.
        """
        plans = self._train_plans(first_step, last_step, self.world)
        if features is not None:
            (plan,) = plans
            self._resident.pop(id(plan.manifest), None)
            return FeatureLoader(plan, features, self.world.device)
        loaders = [self._make(plan) for plan in plans]
        if len(loaders) == 1:
            return loaders[0]
        return JoinedBatches(loaders, len(self.train_set), labeled_batch(self.config))

    def hold_train_set(self) -> None:
        """Read what loaders of the training set keep in memory, if they do. Collective."""
        self._hold(self.train_set)

    def train_once(self, samples: np.ndarray) -> Loader:
        """Samples (N,) of the training set in their order, seen as :meth:`train` would see them, if
        nothing of ``view`` is random. Not collective: :meth:`hold_train_set` comes before.
        """
        config = self.config
        seen = config.view, config.data.eval_batch_size, World()
        plan = OncePlan(self.train_set, *seen, samples=samples)
        return make_loader(plan, config, self.world, self._resident.get(id(self.train_set)))

    def evaluate(self, split: str, crops: int = 1) -> Loader:
        """This rank's share of ``split``, once, in sample_id order; ``crops`` views of each.

        Collective.
        """
        config = self.config
        view, batch_size = config.eval_view, config.data.eval_batch_size
        plan = EvalPlan(self.manifest(split), view, batch_size, self.world, crops)
        return Told(self._make(plan), split, len(plan.share))

    def sample_ids(self, step: int) -> np.ndarray:
        """Those of the global batch of ``step``."""
        plans = self._train_plans(step, step + 1, World())
        ids = [plan.sample_ids(plan.batches) for plan in plans]
        return np.concatenate([ids[0], *(other + len(self.train_set) for other in ids[1:])])

    def local_batch_size(self) -> int:
        """This rank's samples in a global batch."""
        return sum(len(plan.share) for plan in self._train_plans(0, 1, self.world))

    def check_bad(self) -> None:
        """Stop when too much of what is trained on is damaged. Collective."""
        for part in self.train_sets:
            distinct = set().union(*gather_objects(set(part.bad)))  # ranks may have met the same
            check_bad_samples(len(distinct), part, self.config.data.max_bad_share)

    def _train_plans(self, first_step: int, last_step: int, world: World) -> list[TrainPlan]:
        config, steps = self.config, (first_step, last_step)
        labeled = replace(config, global_batch_size=labeled_batch(config))
        plans = [TrainPlan(labeled, self.train_sets[0], world, *steps)]
        for pool in self.train_sets[1:]:
            other = replace(  # its own augmentations and order
                config,
                global_batch_size=config.global_batch_size - labeled.global_batch_size,
                sampler=SamplerConfig(),
                seed=int(mix(config.seed, Stream.SECOND_SET)[0] >> 2),
            )
            # ranks from the other end, which evens out shares that do not divide
            mirrored = replace(world, rank=world.size - 1 - world.rank)
            plans.append(TrainPlan(other, pool, mirrored, *steps))
        return plans

    def _make(self, plan: BatchPlan) -> Loader:
        self._hold(plan.manifest)
        return make_loader(plan, self.config, self.world, self._resident.get(id(plan.manifest)))

    def _hold(self, manifest: Manifest) -> None:
        if self.config.data.loader == "resident" and id(manifest) not in self._resident:
            self._resident[id(manifest)] = on_every_rank(
                lambda: read_resident(manifest, self.config, self.world)
            )


class Told:
    """The batches of a loader; where they take long, how many images are through is said."""

    def __init__(self, loader: Loader, split: str, images: int):
        self.loader, self.split, self.images = loader, split, images

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        of_all = f"{self.images:,} images of this rank"
        with working(lambda: f"evaluating on {self.split}: {done:,} of {of_all}"):
            for batch in self.loader:
                yield batch
                done += len(batch)


def open_together(root: Path, split: str, world: World) -> Manifest:
    """A split, opened by every rank; the first one of each node compares its tables' checksums.

    Its tables are read from the disk once a node then. What any rank finds wrong is raised on all.
    Collective.
    """
    check: Check = "all" if world.local_rank == 0 else "bounds"
    return on_every_rank(lambda: Manifest(root, split, check))


def drawn(part: Manifest, max_samples: int | None, seed: int) -> Manifest:
    """``max_samples`` of a set at random, in their order; all where there are no more, or of None.

    The same for everybody who gives the same seed.
    """
    if max_samples is None or max_samples >= len(part):
        return part
    return part.subset(_draw(max_samples, len(part), seed))


class JoinedBatches:
    """Batches made of one batch of each of two loaders, the first one's samples first.

    The second one's sample ids go on after the ``first_size`` of the first set, its places after
    the ``first_batch`` of the first one's global batch.
    """

    def __init__(self, loaders: list[Loader], first_size: int, first_batch: int):
        self.loaders, self.first_size, self.first_batch = loaders, first_size, first_batch

    def __iter__(self) -> Iterator[Batch]:
        for first, second in zip(*self.loaders):
            yield Batch(
                views=[torch.cat(pair) for pair in zip(first.views, second.views)],
                label=torch.cat([first.label, second.label]),
                sample_id=torch.cat([first.sample_id, second.sample_id + self.first_size]),
                place=np.concatenate([first.place, second.place + self.first_batch]),
                is_labeled=np.concatenate([first.is_labeled, second.is_labeled]),
            )


def make_loader(
    plan: BatchPlan, config: Config, world: World, resident: torch.Tensor | None = None
) -> Loader:
    """The loader that ``config.data.loader`` names, over ``plan``.

    ``resident``: what :func:`read_resident` has read already.
    """
    # imported here, so that a machine without DALI can run the resident loader
    if config.data.loader == "dali":
        from lt_train.data.dali_loader import DaliLoader

        threads = config.data.decode_threads or world.cpu_threads
        on_gpu = decodes_on_gpu(config, world.device)
        return DaliLoader(plan, world.device, threads, scale_of(config.model), on_gpu)
    from lt_train.data.resident_loader import ResidentLoader

    images = read_resident(plan.manifest, config, world) if resident is None else resident
    return ResidentLoader(plan, images, padding_of(config), scale_of(config.model))


def decodes_on_gpu(config: Config, device: torch.device) -> bool:
    """Whether images are decoded on the GPU, as ``data.decode`` and this rank's device say."""
    data, has_gpu = config.data, device.type == "cuda"
    if data.loader == "dali" and data.decode == "gpu" and not has_gpu:
        raise UserError("data.decode=gpu, but torch finds no GPU here: set data.decode to auto")
    return has_gpu and data.decode != "cpu"


def read_resident(manifest: Manifest, config: Config, world: World) -> torch.Tensor:
    """All images of a split on the device, padded as the config's crops need."""
    from lt_train.data.resident_loader import load_resident

    padding = padding_of(config)
    images = load_resident(manifest, world.device, world.cpu_threads, padding)
    for key, view in training_views(config).items():
        side = images.shape[1] + 2 * (view.padding - padding)
        if view.crop == "pad" and view.size > side:
            raise UserError(
                f"{key}.size={view.size} is larger than the images with "
                f"{key}.padding={view.padding} round them ({side} pixels)"
            )
    return images


def check_bad_samples(bad: int, manifest: Manifest, max_share: float) -> None:
    """Stop when more than ``max_share`` of a split is damaged.

    ``bad`` counts distinct samples over all ranks.
    """
    if bad > max_share * len(manifest) and bad > 0:
        # two roots, where two sets are sampled as one
        roots = dict.fromkeys(str(path.parent) for path in manifest.paths)
        raise UserError(
            f"{bad} of {len(manifest)} samples of {' and '.join(roots)} ({manifest.split}) "
            f"are damaged or do not decode, more than data.max_bad_share={max_share}; the warnings "
            f"before this line say why; python -m data_prep verify {' or '.join(roots)} says "
            "whether files have changed since they were written"
        )


def padding_of(config: Config) -> int:
    """Zero pixels round resident images: as many as any view's crops may reach into."""
    padded = [view for view in training_views(config).values() if view.crop == "pad"]
    return max((view.padding for view in padded), default=0)


def _pseudo_labeled(pool: Manifest, config: UnlabeledConfig, train_set: Manifest) -> Manifest:
    """``pool`` with labels from ``unlabeled.label_column``, or without any.

    Of labeled ones, those that are sure enough.
    """
    classes = train_set.classes
    if config.label_column is None:
        return pool.relabeled(np.broadcast_to(np.int32(UNLABELED), len(pool)), classes)
    if pool.classes and pool.classes != classes:  # a pool of any images has none
        raise UserError(
            f"unlabeled.root {pool.root} was made for other classes than data.root {train_set.root}"
        )
    labels = pool.column(config.label_column)
    if labels.dtype.kind not in "iu" or not _all_between(labels, UNLABELED, len(classes) - 1):
        raise UserError(
            f"unlabeled.label_column={config.label_column} of {pool.root} does not hold labels "
            f"of {len(classes)} classes; choose another"
        )
    wanted = f"a {config.label_column}; python -m lt_train pseudo_label writes one"
    confidences = None
    if config.min_confidence > 0:
        confidences = pool.column(config.confidence_column)
        if confidences.dtype.kind != "f":
            raise UserError(
                f"unlabeled.confidence_column={config.confidence_column} of {pool.root} "
                "does not hold fractions; choose another"
            )
        wanted = (
            f"a {config.label_column} of {config.confidence_column} {config.min_confidence} "
            "or more; lower unlabeled.min_confidence"
        )

    def is_kept(rows: slice) -> np.ndarray:
        is_labeled = labels[rows] != UNLABELED
        if confidences is None:
            return is_labeled
        return is_labeled & (confidences[rows] >= config.min_confidence)

    kept = rows_where(is_kept, len(pool))
    if not len(kept):
        raise UserError(f"{pool.root}/{pool.split} has no sample with {wanted}")
    part = pool if len(kept) == len(pool) else pool.subset(kept)
    return part.relabeled(part.column(config.label_column), classes)


def _all_between(values: np.ndarray, least: int, most: int) -> bool:
    return len(values) == 0 or bool(least <= values.min() and values.max() <= most)


def _draw(number: int, size: int, seed: int) -> np.ndarray:
    """``number`` of ``size`` row numbers, in order."""
    drawn, key = np.empty(number, row_type(size)), mix(seed, Stream.SUBSET)
    for rows in slices(number):
        drawn[rows] = permute(np.arange(rows.start, rows.stop), size, key)
    drawn.sort()
    return drawn
