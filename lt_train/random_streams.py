"""Every random number of a run: hashes and permutations keyed on whole numbers.

Nothing is drawn from a state, so that what a step or a sample draws depends neither on the steps
before it nor on the number of ranks. NumPy only.
"""

from enum import IntEnum

import numpy as np

FEISTEL_ROUNDS = 12  # with 8, permutations of as few as 10 classes are still measurably biased


class Stream(IntEnum):
    """What a hash is drawn for, so that no two purposes share numbers. The values never change."""

    CLASS_ORDER = 1  # class_balanced: of the classes in a cycle
    WITHIN_CLASS = 2  # class_balanced: of a class's samples in a lap
    AUGMENTATION = 3  # of a view's parameters
    SHUFFLE = 4  # MoCo's shuffled batch norm
    STEP = 5  # torch's own generator
    SECOND_SET = 6  # the seed of the second set's order and augmentation
    SUBSET = 7  # max_samples of data and of unlabeled
    CLASS = 8  # samplers by class shares: the class at a position
    SAMPLE = 9  # ... and one of its samples
    MIXUP = 10  # mixup and CutMix
    ROTATION = 11  # rotation prediction: an image's quarter turns


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Image of ``index`` under a pseudo-random permutation of [0, size) chosen by ``key``.

    All (B,) or scalars; a ValueError if an index is not in [0, size).

    A balanced Feistel network permutes [0, 4^h) >= [0, size); walking its cycle until the value is
    below ``size`` again makes it a permutation of [0, size). Fewer than 4 steps are expected, since
    4^h < 4 * size.
    """
    index, size, key = np.broadcast_arrays(
        np.asarray(index), np.asarray(size), np.asarray(key, np.uint64)
    )
    if ((index < 0) | (index >= size)).any():  # a walk from there would never end
        raise ValueError("an index to permute is not in [0, size)")
    bits = np.ceil(np.log2(np.maximum(size, 2))).astype(np.uint64)
    half = np.maximum((bits + np.uint64(1)) // np.uint64(2), np.uint64(1))
    value = _feistel(index.astype(np.uint64), half, key)
    outside = np.flatnonzero(value >= size.astype(np.uint64))
    while len(outside):
        value[outside] = _feistel(value[outside], half[outside], key[outside])
        outside = outside[value[outside] >= size[outside].astype(np.uint64)]
    return value.astype(np.int64)


def mix(*words: np.ndarray | int) -> np.ndarray:
    """Hash integers (scalars or (B,) arrays) into one uint64 key each.

    SplitMix64's generator, with its finaliser between words.
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        word = np.asarray(word).astype(np.uint64)
        state = _finalise(state + word + np.uint64(0x9E3779B97F4A7C15))
    return state


def _feistel(value: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for round_ in range(FEISTEL_ROUNDS):
        round_key = key + np.uint64(round_ * 0x632BE59BD9B4E019 % 2**64)
        left, right = right, left ^ (_finalise(right + round_key) & mask)
    return (left << half) | right


def _finalise(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood, 2014); wraps modulo 2^64 by design."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    ``counter`` (..., 4) uint64 holding 32-bit words -> (..., 4) uint64 holding 32-bit words.
    """
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c0, c1, c2, c3 = (counter[..., word] for word in range(4))
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> shift) ^ c1 ^ np.uint64(k0),
            second & low,
            (first >> shift) ^ c3 ^ np.uint64(k1),
            first & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1)
