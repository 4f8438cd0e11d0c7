"""Long-tailed subsets: how many samples each class keeps, and which."""

import numpy as np

from lt_train.errors import UserError


def exponential_counts(largest: int, classes: int, ratio: float) -> list[int]:
    """Samples per class, falling exponentially from ``largest`` to ``largest / ratio`` (Cui et al. 2019), rounded down."""
    if largest < 1:
        raise UserError(f"the largest class must have at least 1 image, not {largest}")
    if not 1 <= ratio < float("inf"):
        raise UserError(f"--imbalance-ratio is the largest class over the smallest, so at least 1, not {ratio:g}")
    return [int(largest * (1 / ratio) ** (label / (classes - 1))) for label in range(classes)]


def published_subset(labels: np.ndarray, counts: list[int], seed: int = 0) -> np.ndarray:
    """The published CIFAR-LT draw, index for index: classes in order, each one's indices shuffled, the first n kept.

    Cao et al. 2019 and Yang and Xu 2020 use NumPy's legacy generator with seed 0, so this must as well.
    """
    generator = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        indices = np.flatnonzero(labels == label)
        generator.shuffle(indices)
        chosen.append(indices[:count])
    return np.concatenate(chosen)
