"""Subsets: how many samples each class keeps in a long tail, and which; and what is held out."""

import argparse
from collections.abc import Sequence

import numpy as np

from data_prep.reading.images import Picked
from data_prep.reading.lists import Rows
from data_prep.reading.source import SPLITS, LabeledSplit, Source, SourceSplit
from lt_train.data.image_files.walk import PassedOver
from lt_train.errors import UserError

PARETO_ALPHA = 6  # of ImageNet-LT (Liu et al. 2019, section 4)


def add_imbalance_arguments(
    parser: argparse.ArgumentParser, ratio: float | None, largest: int | None = None
) -> None:
    """``--imbalance-ratio`` (default: ``ratio``), ``--imbalance-type`` and, of a published subset,
    ``--largest`` (default: ``largest``).
    """
    default = f"default: {ratio:g}" if ratio is not None else "default: all images"
    parser.add_argument(
        "--imbalance-ratio",
        type=float,
        default=ratio,
        metavar="R",
        help=f"largest class over smallest ({default})",
    )
    parser.add_argument(
        "--imbalance-type",
        choices=["exp", "step"],
        default="exp",
        help="exponential decay, or the second half of the classes small (default: exp)",
    )
    if largest is not None:
        text = (
            f"labeled training images of the largest class (default: {largest}; another number is"
            " not the published subset)"
        )
        parser.add_argument("--largest", type=int, default=largest, metavar="N", help=text)


def unpublished(seed: int, largest: int, published_largest: int) -> list[str]:
    """Notes for the user: what makes a drawn subset another one than the published."""
    changed = [("--seed", seed, 0), ("--largest", largest, published_largest)]
    return [
        f"{option} is not {published}: this is not the published subset"
        for option, value, published in changed
        if value != published
    ]


def imbalanced_counts(largest: int, classes: int, ratio: float, kind: str = "exp") -> list[int]:
    """Samples per class: ``exp`` falls exponentially from ``largest`` to ``largest / ratio`` (Cui
    et al. 2019), ``step`` gives the first half of the classes ``largest`` and the rest ``largest
    / ratio`` (Buda et al. 2018); rounded down.
    """
    if largest < 1:
        raise UserError(f"the largest class must have at least 1 image, not {largest}")
    if not 1 <= ratio < float("inf"):
        raise UserError(
            "--imbalance-ratio is the largest class over the smallest, so at least 1, not"
            f" {ratio:g}"
        )
    factor = 1 / ratio
    if kind == "step":
        return [largest] * (classes // 2) + [int(largest * factor)] * (classes - classes // 2)
    return [int(largest * factor ** (label / max(classes - 1, 1))) for label in range(classes)]


def unlabeled_counts(labeled: int, classes: int, ratio: float, size_factor: float) -> list[int]:
    """Samples per class of D_U: exponential with ``ratio``, ``size_factor`` times ``labeled`` in
    all, but for roundings.

    Rounded where Yang and Xu 2020 round (their released code), so that the counts are theirs.
    """
    total = labeled * size_factor
    if not 0 < total < float("inf"):
        raise UserError(f"--size-factor must be more than 0 and finite, not {size_factor:g}")
    shape = imbalanced_counts(int(total // classes), classes, ratio)
    return [int(count * (total / sum(shape))) for count in shape]


def pareto_counts(largest: int, smallest: int, classes: int) -> list[int]:
    """Samples per class, falling from ``largest`` to ``smallest`` as the quantiles of a Pareto
    distribution with alpha 6.

    The quantiles are stretched to the two ends. ImageNet-LT's own counts are only published as its
    list; for its 1,280 and 5 over 1,000 classes this gives 116,079 images (388 many-, 469 medium-,
    143 few-shot classes), the published list has 115,846 (385, 479, 136).
    """
    if not 1 <= smallest <= largest:
        raise UserError(
            f"--smallest ({smallest}) must be at least 1 and at most --largest ({largest})"
        )
    survival = (np.arange(classes) + 0.8) / classes
    quantiles = survival ** (-1 / PARETO_ALPHA)
    span = max(quantiles[0] - quantiles[-1], 1e-12)
    counts = smallest + (largest - smallest) * (quantiles - quantiles[-1]) / span
    return np.round(counts).astype(int).tolist()


class Draw:
    """The published way to draw, index for index: classes in order, each one's indices shuffled,
    the first n kept.

    Cao et al. 2019 and Yang and Xu 2020 use NumPy's legacy generator with seed 0 for all draws one
    after the other.
    """

    def __init__(self, seed: int):
        self._generator = np.random.RandomState(seed)

    def subset(
        self, labels: np.ndarray, counts: Sequence[int], order: Sequence[int] | None = None
    ) -> np.ndarray:
        """Indices of the chosen samples: of class ``order[i]`` (default: i) ``counts[i]``.

        A class may have fewer.
        """
        chosen = []
        for label, count in zip(range(len(counts)) if order is None else order, counts):
            indices = np.flatnonzero(labels == label)
            self._generator.shuffle(indices)
            chosen.append(indices[:count])
        return np.concatenate(chosen)

    def skip(self, class_sizes: Sequence[int]) -> None:
        """Draw from classes of these sizes, in order, and forget it: what comes next is as if a
        subset had been drawn.
        """
        for size in class_sizes:
            self._generator.shuffle(np.arange(size))


def long_tailed(
    name: str,
    classes: list[str],
    splits: dict[str, LabeledSplit],
    counts: list[int],
    seed: int,
    notes: list[str],
    order: list[int] | None = None,
) -> Source:
    """A source of the published draw of ``splits["train"]`` (of class ``order[i]``, ``counts[i]``),
    and the other splits whole.
    """
    made, files, passed = {}, [], PassedOver()
    for split, part in splits.items():
        chosen = np.arange(len(part.labels))
        if split == "train":
            chosen = draw_labeled(name, classes, part.labels, counts, seed, order)
        keys = keys_of(part.labels, chosen, classes)
        made[split] = SourceSplit(part.labels[chosen], keys, Picked(part.images, chosen))
        files += part.files
        passed.add(part.passed)
    return Source(name, classes, made, files, notes, passed)


def draw_labeled(
    name: str,
    classes: list[str],
    labels: np.ndarray,
    counts: list[int],
    seed: int,
    order: list[int] | None = None,
) -> np.ndarray:
    """Indices of the labeled training images: of class ``order[i]``, ``counts[i]``; a
    :class:`UserError` if a class has fewer.
    """
    have = np.bincount(labels, minlength=len(classes))
    for label, count in zip(order or range(len(counts)), counts):
        if have[label] < count:
            raise UserError(
                f"class '{classes[label]}' has {have[label]} training images and {count} are"
                f" needed: the source is not all of {name.removesuffix('_lt')}, or --largest is too"
                " large"
            )
        if not count:
            raise UserError(
                f"class '{classes[label]}' would have no training images; lower --imbalance-ratio"
            )
    return Draw(seed).subset(labels, counts, order)


def keys_of(labels: np.ndarray, chosen: np.ndarray, classes: list[str]) -> list[str]:
    """Class name and place within the class in the official order: the same whichever layout the
    images came in.
    """
    place = np.empty(len(labels), np.int64)
    for label in range(len(classes)):
        place[labels == label] = np.arange((labels == label).sum())
    return [f"{classes[labels[index]]}/{place[index]:04d}" for index in chosen]


def add_fraction_arguments(parser: argparse.ArgumentParser) -> None:
    """``--val-fraction`` and ``--test-fraction``, for :func:`hold_out`."""
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0,
        help="move this share of each class's training images to val",
    )
    parser.add_argument("--test-fraction", type=float, default=0.0, help="the same to test")


def hold_out(found: dict[str, Rows], arguments: argparse.Namespace) -> dict[str, Rows]:
    """Move a share of every class's training images to val and test, drawn with the seed; one at
    least stays.
    """
    fractions = {"val": arguments.val_fraction, "test": arguments.test_fraction}
    if any(not fraction >= 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        raise UserError(
            "--val-fraction and --test-fraction must be 0 or more and together less than 1"
        )
    labels = found["train"][1]
    generator = np.random.default_rng(arguments.seed)
    target = np.full(len(labels), "train", dtype=object)
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        size = len(indices)
        for split, fraction in fractions.items():
            number = min(round(fraction * size), len(indices) - 1)
            taken, indices = np.split(indices, [number])
            target[taken] = split
    for split, fraction in fractions.items():
        if fraction and split in found:
            raise UserError(
                f"the source has a {split} split already: --{split}-fraction cannot make another"
            )
    moved = {}
    for split in SPLITS:
        if (target == split).any():
            moved[split] = pick(found["train"], np.flatnonzero(target == split))
    others = {split: rows for split, rows in found.items() if split != "train"}
    return moved | others


def pick(rows: Rows, indices: np.ndarray) -> Rows:
    """Some of the rows."""
    return [rows[0][index] for index in indices.tolist()], rows[1][indices]
