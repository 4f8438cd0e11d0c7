"""The order of samples as a pure function: (seed, sampler, position) -> sample_id.

A *position* counts samples from the start of training: global step ``s`` of batch size ``G`` holds positions
``[s * G, (s + 1) * G)``, and epoch ``e`` of a split with ``N`` samples is ``[e * N, (e + 1) * N)`` for every sampler, so no
sample is dropped at an epoch's end and a batch may straddle it. Nothing depends on the number of ranks, any position is
reached without those before, and memory is O(1): permutations are keyed Feistel networks with cycle-walking (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

from collections.abc import Callable

import numpy as np

from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from lt_train.schema import SamplerConfig

Sampler = Callable[[np.ndarray], np.ndarray]  # (B,) int64 positions -> (B,) int64 sample ids
FEISTEL_ROUNDS = 12  # with 8, permutations of as few as 10 classes are still measurably biased


def make_sampler(config: SamplerConfig, manifest: Manifest, seed: int, epochs: float) -> Sampler:
    """The sampler that ``config`` names, over the training split, for a training of ``epochs``."""
    if config.name != "instance_balanced" and not manifest.class_counts.any():
        raise UserError(f"sampler.name={config.name} goes by classes, but {manifest.root} is unlabeled: set sampler.name=instance_balanced")
    return SAMPLERS[config.name](config, manifest, seed, epochs)


class InstanceBalanced:
    """Every sample once an epoch, in a new permutation each epoch."""

    def __init__(self, config: SamplerConfig, manifest: Manifest, seed: int, epochs: float):
        self.size, self.seed = len(manifest), seed

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        epoch, index = np.divmod(positions, self.size)
        return permute(index, self.size, mix(self.seed, epoch))


class ClassBalanced:
    """Class-aware sampling: ``samples_per_class`` positions in a row for a class, classes in a new order each cycle.

    Within a class, its samples are drawn without repetition until all have been seen, then in a new permutation.
    Over every cycle of classes * samples_per_class positions, each class has exactly samples_per_class of them.
    Classes without training samples are left out.
    """

    def __init__(self, config: SamplerConfig, manifest: Manifest, seed: int, epochs: float):
        self.per_class, self.seed = config.samples_per_class, seed
        self.present = np.flatnonzero(manifest.class_counts)
        self.counts, self.offsets, self.ids = manifest.class_counts, manifest.class_offsets, manifest.class_ids

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        slot, within = np.divmod(positions, self.per_class)
        cycle, turn = np.divmod(slot, len(self.present))
        label = self.present[permute(turn, len(self.present), mix(self.seed, cycle, 1))]
        lap, draw = np.divmod(cycle * self.per_class + within, self.counts[label])
        return self.ids[self.offsets[label] + permute(draw, self.counts[label], mix(self.seed, lap, label, 2))]


class ByClassShares:
    """At every position a class at random, by shares that may change with the epoch, and one of its samples at random.

    Drawn with replacement, as torch's WeightedRandomSampler does. Subclasses say how often which class is drawn.
    """

    def __init__(self, config: SamplerConfig, manifest: Manifest, seed: int, epochs: float):
        self.config, self.size, self.seed, self.epochs = config, len(manifest), seed, epochs
        self.counts, self.offsets, self.ids = manifest.class_counts, manifest.class_offsets, manifest.class_ids

    def shares(self, epoch: int) -> np.ndarray:
        """How often each class is drawn (C,), up to a common factor; 0 for classes without samples."""
        raise NotImplementedError

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        draw = (mix(self.seed, positions, 8) >> np.uint64(11)) * 2.0**-53
        epochs, label = positions // self.size, np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            cumulative = np.cumsum(self.shares(int(epoch)))
            here = epochs == epoch
            label[here] = np.searchsorted(cumulative, draw[here] * cumulative[-1], side="right")
        return self.ids[self.offsets[label] + (mix(self.seed, positions, 9) % self.counts[label].astype(np.uint64)).astype(np.int64)]


class SquareRoot(ByClassShares):
    """Classes by the square root of their size (Mahajan et al. 2018; Kang et al. 2020)."""

    def shares(self, epoch: int) -> np.ndarray:
        return np.sqrt(self.counts)


class ProgressivelyBalanced(ByClassShares):
    """From instance-balanced to class-balanced shares, linearly over the epochs (Kang et al. 2020)."""

    def shares(self, epoch: int) -> np.ndarray:
        present = self.counts > 0
        progress = min(1.0, epoch / self.epochs)
        return (1 - progress) * self.counts / self.counts.sum() + progress * present / present.sum()


class EffectiveNumber(ByClassShares):
    """A sample of a class of n is drawn in proportion to (1 - beta) / (1 - beta^n): the "Resample" of Cao et al. 2019's code."""

    def shares(self, epoch: int) -> np.ndarray:
        return np.where(self.counts > 0, self.counts / np.maximum(1 - self.config.beta**self.counts, 1e-12), 0.0)


SAMPLERS: dict[str, type] = {
    "instance_balanced": InstanceBalanced,
    "class_balanced": ClassBalanced,
    "square_root": SquareRoot,
    "progressively_balanced": ProgressivelyBalanced,
    "effective_number": EffectiveNumber,
}


def batch_slice(step: int, global_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """The positions of batch ``step`` that ``rank`` takes: a contiguous slice, sizes differing by at most one."""
    start = step * global_batch_size
    return np.arange(start + global_batch_size * rank // world_size, start + global_batch_size * (rank + 1) // world_size)


def check_batch(config: SamplerConfig, global_batch_size: int, world_size: int) -> None:
    """Refuse more ranks than the global batch has shares for."""
    shares, unit = global_batch_size, "sample(s)"
    if config.name == "class_balanced":
        shares, unit = global_batch_size // config.samples_per_class, f"class(es) of {config.samples_per_class} samples"
    if world_size > shares:
        raise UserError(
            f"global_batch_size={global_batch_size} holds {shares} {unit}, too few for {world_size} ranks, each of which needs one; "
            f"use at most {max(shares, 1)} ranks or a larger global_batch_size"
        )


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Image of ``index`` under a pseudo-random permutation of [0, size) chosen by ``key``; all (B,) or scalars.

    A balanced Feistel network permutes [0, 4^h) >= [0, size); walking its cycle until the value is below ``size`` again
    makes it a permutation of [0, size). Fewer than 4 steps are expected, since 4^h < 4 * size.
    """
    index, size, key = np.broadcast_arrays(np.asarray(index), np.asarray(size), np.asarray(key, np.uint64))
    half = np.maximum((np.ceil(np.log2(np.maximum(size, 2))).astype(np.uint64) + np.uint64(1)) // np.uint64(2), np.uint64(1))
    value = _feistel(index.astype(np.uint64), half, key)
    outside = np.flatnonzero(value >= size.astype(np.uint64))
    while len(outside):
        value[outside] = _feistel(value[outside], half[outside], key[outside])
        outside = outside[value[outside] >= size[outside].astype(np.uint64)]
    return value.astype(np.int64)


def mix(*words: np.ndarray | int) -> np.ndarray:
    """Hash integers (scalars or (B,) arrays) into one uint64 key each, with SplitMix64's finaliser between words."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _finalise(state + np.asarray(word).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _feistel(value: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for round_ in range(FEISTEL_ROUNDS):
        left, right = right, left ^ (_finalise(right + key + np.uint64(round_ * 0x632BE59BD9B4E019 % 2**64)) & mask)
    return (left << half) | right


def _finalise(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood, 2014); wraps modulo 2^64 by design."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
