"""The order of samples as a pure function: (seed, sampler, position) -> sample_id.

A *position* counts samples from the start of training: global step ``s`` of batch size ``G`` holds
positions ``[s * G, (s + 1) * G)``, and epoch ``e`` of a split with ``N`` samples is ``[e * N, (e +
1) * N)`` for every sampler, so no sample is dropped at an epoch's end and a batch may straddle it.
Nothing depends on the number of ranks, any position is reached without those before, and memory is
O(1): permutations are keyed Feistel networks with cycle-walking (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002).
"""

from typing import Protocol

import numpy as np

from lt_train.config.schema import SAMPLERS, SamplerConfig, code_of
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from lt_train.random_streams import Stream, mix, permute


def make_sampler(config: SamplerConfig, manifest: Manifest, seed: int, epochs: float) -> "Sampler":
    """The sampler that ``config`` names, over the training split, for a training of ``epochs``."""
    sampler = code_of(SAMPLERS, config.name)
    if not len(manifest):
        raise UserError(
            f"{manifest.root}/{manifest.split} has no images to train on; name another split or set"
        )
    if sampler.by_class and not manifest.class_counts.any():
        raise UserError(
            f"sampler.name={config.name} goes by classes, but {manifest.root} is unlabeled: "
            f"set sampler.name={SamplerConfig().name}"
        )
    return sampler(config, manifest, seed, epochs)


def check_batch(
    config: SamplerConfig, global_batch_size: int, world_size: int, parts: int = 1
) -> None:
    """Refuse more ranks than the global batch has shares for, or than that its shares have
    ``parts``.
    """
    together = code_of(SAMPLERS, config.name).positions_together(config)
    shares = global_batch_size // together
    if world_size > shares:
        unit = "sample(s)" if together == 1 else f"class(es) of {together} samples"
        raise UserError(
            f"global_batch_size={global_batch_size} holds {shares} {unit}, too few for "
            f"{world_size} ranks, each of which needs one; "
            f"use at most {max(shares, 1)} ranks or a larger global_batch_size"
        )
    if world_size * parts > global_batch_size:
        raise UserError(
            f"engine.accumulate={parts}: a rank's share of {global_batch_size} samples on "
            f"{world_size} rank(s) has too few for so many parts; use at most "
            f"{global_batch_size // world_size}"
        )


class ByClass(Protocol):
    """What a sampler looks at of a set: the arrays of a :class:`Manifest` that group it."""

    class_counts: np.ndarray
    class_offsets: np.ndarray
    class_ids: np.ndarray

    def __len__(self) -> int: ...


class Sampler:
    """Which sample stands at each position of a training over ``manifest``.

    ``seed`` and positions alone decide; ``epochs`` is how long the training will be.
    """

    by_class = True  # needs labels

    def __init__(self, config: SamplerConfig, manifest: ByClass, seed: int, epochs: float):
        self.config, self.seed, self.epochs = config, seed, epochs
        self.size = len(manifest)
        self.counts, self.offsets = manifest.class_counts, manifest.class_offsets
        # grouped by class, from ``offsets``; of views they are made only for who goes by classes
        self.ids = manifest.class_ids if self.by_class else None

    @staticmethod
    def positions_together(config: SamplerConfig) -> int:
        """How many positions in a row belong together; a rank's share of a batch has so many."""
        return 1

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids (B,) int64 at ``positions`` (B,) int64."""
        raise NotImplementedError


class InstanceBalanced(Sampler):
    """Every sample once an epoch, in a new permutation each epoch."""

    by_class = False

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        epoch, index = np.divmod(positions, self.size)
        return permute(index, self.size, mix(self.seed, epoch))


class ClassBalanced(Sampler):
    """Class-aware sampling: ``samples_per_class`` positions in a row for a class.

    Classes come in a new order each cycle. Within a class, its samples are drawn without repetition
    until all have been seen, then in a new permutation. Over every cycle of classes *
    samples_per_class positions, each class has exactly samples_per_class of them. Classes without
    training samples are left out.
    """

    def __init__(self, config: SamplerConfig, manifest: ByClass, seed: int, epochs: float):
        super().__init__(config, manifest, seed, epochs)
        self.per_class = config.samples_per_class
        self.present = np.flatnonzero(self.counts)

    @staticmethod
    def positions_together(config: SamplerConfig) -> int:
        return config.samples_per_class

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        slot, within = np.divmod(positions, self.per_class)
        cycle, turn = np.divmod(slot, len(self.present))
        order = mix(self.seed, cycle, Stream.CLASS_ORDER)
        label = self.present[permute(turn, len(self.present), order)]
        lap, draw = np.divmod(cycle * self.per_class + within, self.counts[label])
        order = mix(self.seed, lap, label, Stream.WITHIN_CLASS)
        within = permute(draw, self.counts[label], order)
        return self.ids[self.offsets[label] + within].astype(np.int64)


class ByClassShares(Sampler):
    """At every position a class at random, by its share, and one of its samples at random.

    Drawn with replacement, as torch's WeightedRandomSampler does. Subclasses say how often which
    class is drawn.
    """

    def shares(self, epoch: int) -> np.ndarray:
        """How often each class is drawn (C,), up to a common factor; 0 for one without samples."""
        raise NotImplementedError

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        draw = (mix(self.seed, positions, Stream.CLASS) >> np.uint64(11)) * 2.0**-53
        epochs, label = positions // self.size, np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            cumulative = np.cumsum(self.shares(int(epoch)))
            here = epochs == epoch
            label[here] = np.searchsorted(cumulative, draw[here] * cumulative[-1], side="right")
        drawn = mix(self.seed, positions, Stream.SAMPLE) % self.counts[label].astype(np.uint64)
        return self.ids[self.offsets[label] + drawn.astype(np.int64)].astype(np.int64)


class SquareRoot(ByClassShares):
    """Classes by the square root of their size (Mahajan et al. 2018; Kang et al. 2020)."""

    def shares(self, epoch: int) -> np.ndarray:
        return np.sqrt(self.counts)


class ProgressivelyBalanced(ByClassShares):
    """From instance-balanced to class-balanced shares, linearly by epochs (Kang et al. 2020)."""

    def shares(self, epoch: int) -> np.ndarray:
        present = self.counts > 0
        progress = min(1.0, epoch / self.epochs)
        return (1 - progress) * self.counts / self.counts.sum() + progress * present / present.sum()


class EffectiveNumber(ByClassShares):
    """The "Resample" of Cao et al. 2019's code.

    A sample of a class of n is drawn in proportion to (1 - beta) / (1 - beta^n).
    """

    def shares(self, epoch: int) -> np.ndarray:
        effective = np.maximum(1 - self.config.beta**self.counts, 1e-12)
        return np.where(self.counts > 0, self.counts / effective, 0.0)
