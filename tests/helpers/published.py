"""The published draws, retold from the released code of Cao et al. 2019 (CIFAR) and of Yang and Xu
2020 (SVHN, and the unlabeled sets D_U).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def published_subset(
    labels: np.ndarray, classes: Sequence[int], img_max: int, imb_factor: float
) -> list[int]:
    """The labeled set: np.random.seed(0), which is a RandomState(0), then class after class."""
    random, indices = np.random.RandomState(0), []
    for place, label in enumerate(classes):
        img_num = int(img_max * imb_factor ** (place / (len(classes) - 1.0)))
        found = np.where(labels == label)[0]
        random.shuffle(found)
        indices.extend(found[:img_num].tolist())
    return indices


@dataclass(frozen=True)
class Published:
    """What the released code of Yang and Xu 2020 starts from."""

    order: list[int]  # of the classes
    img_max: int
    sizes: list[int]  # of the classes of the whole labeled set, in that order


CIFAR10 = Published(list(range(10)), 5000, [5000] * 10)
SVHN = Published(
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
    1000,
    [13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659, 4948],
)


def labeled_counts(which: Published, ratio: float, kind: str) -> list[int]:
    if kind == "step":
        return [which.img_max] * 5 + [int(which.img_max * (1 / ratio))] * 5
    return [int(which.img_max * (1 / ratio) ** (place / 9.0)) for place in range(10)]


def published_counts(labeled: list[int], ratio: float, factor: float) -> list[int]:
    """Of D_U."""
    total = sum(labeled) * factor
    first = total // 10
    numbers = [int(first * (1 / ratio) ** (place / 9.0)) for place in range(10)]
    scale = total / sum(numbers)
    return [int(number * scale) for number in numbers]


def published_draw(which: Published, aux_truth: np.ndarray, counts: list[int]) -> list[int]:
    """D_U: np.random.seed(0), the draw of the labeled set, and then that of the unlabeled one with
    the same generator.
    """
    random = np.random.RandomState(0)
    targets = np.random.default_rng(9).permutation(np.repeat(which.order, which.sizes))
    for label in which.order:
        random.shuffle(np.where(targets == label)[0])
    chosen = []
    for label, count in zip(which.order, counts):
        found = np.where(aux_truth == label)[0]
        random.shuffle(found)
        chosen.extend(found[:count].tolist())
    return chosen
