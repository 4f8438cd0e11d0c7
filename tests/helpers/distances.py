"""Images at known distances, for the tests of near-duplicates."""

from math import isqrt

import numpy as np

LIMIT = 2000**2  # squared: nearer than this is a near-duplicate


def moved(generator: np.random.Generator, image: np.ndarray, squared: int) -> np.ndarray:
    """An image at exactly this squared distance from ``image``."""
    result, left = image.astype(np.int64).ravel(), squared
    for place in generator.permutation(result.size):
        room = max(result[place], 255 - result[place])
        step = min(int(generator.integers(45, 80)), isqrt(left), int(room))
        result[place] += step if result[place] + step <= 255 else -step
        left -= step * step
    assert not left
    return result.astype(np.uint8).reshape(image.shape)


def squared_distances(images: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(N, M) int64."""
    flat = test.reshape(len(test), -1).astype(np.int64)
    return np.stack([((flat - image.ravel().astype(np.int64)) ** 2).sum(1) for image in images])
