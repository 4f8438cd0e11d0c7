"""Near-duplicates of a test set, found exactly: by matrix products in single precision, with
integers where rounding could decide.
"""

import numpy as np

# L2 distance in grey levels: 2000/255 in [0, 1] pixels (Carmon et al. 2019, appendix B.6)
THRESHOLD = 2000
AT_ONCE = 1024  # images compared with the whole test set in one product


class NearDuplicates:
    """Is any of ``test`` (M, ...) uint8 nearer than ``threshold`` grey levels (L2)?"""

    def __init__(self, test: np.ndarray, threshold: int = THRESHOLD):
        self.test = test.reshape(len(test), -1)
        self.limit = threshold**2
        self._centred, self._squares = _centred(self.test)
        # a sum of n products of magnitude 128^2 at most is off by at most n * 2^-24 of the sum of
        # magnitudes; a^2 + b^2 - 2ab is four
        n = self.test.shape[1]
        self._slack = 4 * n * 2.0**-24 * n * 128.0**2

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, ...) uint8 -> (N,) bool."""
        images = images.reshape(len(images), self.test.shape[1])
        near = np.zeros(len(images), bool)
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            near[part] = self._near(images[part])
        return near

    def _near(self, images: np.ndarray) -> np.ndarray:
        centred, squares = _centred(images)
        distance = centred @ self._centred.T
        distance *= -2
        distance += squares[:, None]
        distance += self._squares
        nearest = distance.min(1)
        near = nearest < self.limit - self._slack
        for row in np.flatnonzero(~near & (nearest < self.limit + self._slack)):
            candidates = self.test[distance[row] < self.limit + self._slack].astype(np.int64)
            near[row] = ((candidates - images[row].astype(np.int64)) ** 2).sum(1).min() < self.limit
        return near


def _centred(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels about 0 as float32, which makes products smaller, and their sums of squares (N,)
    float32.
    """
    centred = pixels.astype(np.float32) - 128
    return centred, np.einsum("ij,ij->i", centred, centred)
