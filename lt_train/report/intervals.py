"""How far an accuracy may be off by which test images there happen to be.

The images of each class are drawn again, with replacement: a class that got h of n right then gets
as many right as n draws of probability h / n (the stratified bootstrap of Efron and Tibshirani
1993).
"""

from typing import Any, NamedTuple

import numpy as np

from lt_train.data.manifest import shot_groups

DRAWS = 1000
TAIL = 0.025  # of the draws on either side of a 95 % interval


class Interval(NamedTuple):
    """In %."""

    low: float
    high: float


def can_be_drawn(metrics: dict[str, Any], class_counts: np.ndarray) -> bool:
    """Whether it is known of each class how many images there were, and how many were right."""
    samples = metrics["class_samples"]
    return len(samples) == len(class_counts) and samples.any()


def intervals(metrics: dict[str, Any], class_counts: np.ndarray) -> dict[str, Interval]:
    """95 % intervals of "top1", "balanced" and the groups of classes that have images.

    ``metrics``: as in :class:`Run`; ``class_counts`` (C,): training images.
    """
    found = {}
    for name, (right, samples, values) in _drawn(metrics, class_counts, seed=0).items():
        low, high = np.quantile(values, (TAIL, 1 - TAIL))
        # draws of what is all right or all wrong are all alike, but n images say no more than this
        unseen = 100 * (1 - TAIL ** (1 / samples))
        if right == 0:
            high = max(high, unseen)
        if right == samples:
            low = min(low, 100 - unseen)
        found[name] = Interval(float(low), float(high))
    return found


def difference(metrics: dict, other: dict, class_counts: np.ndarray) -> Interval:
    """95 % interval of the top-1 accuracy of ``metrics`` minus that of ``other``, in points.

    Images are drawn for each on its own, which is wider than for both at once.
    """
    ours, theirs = (
        _drawn(each, class_counts, seed)["top1"][2] for seed, each in enumerate((metrics, other))
    )
    low, high = np.quantile(ours - theirs, (TAIL, 1 - TAIL))
    return Interval(float(low), float(high))


def _drawn(
    metrics: dict[str, Any], class_counts: np.ndarray, seed: int
) -> dict[str, tuple[int, int, np.ndarray]]:
    """Images that were right, all images, and (DRAWS,) accuracies in %, by the metric's name."""
    samples = metrics["class_samples"]
    seen = samples > 0
    samples = samples[seen]
    right = np.rint(metrics["per_class"][seen] * samples / 100).astype(np.int64)
    drawn = np.random.default_rng(seed).binomial(samples, right / samples, (DRAWS, len(samples)))
    balanced = 100 * (drawn / samples).mean(1)
    found = {"balanced": (int(right.sum()), int(samples.sum()), balanced)}
    groups = {"top1": np.ones_like(seen), **shot_groups(class_counts)}
    for name, members in groups.items():
        part = members[seen]
        if part.any():
            images = int(samples[part].sum())
            values = 100 * drawn[:, part].sum(1) / images
            found[name] = (int(right[part].sum()), images, values)
    return found
