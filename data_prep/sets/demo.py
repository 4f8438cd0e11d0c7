"""The embedded demo data sets of ten kinds of drawn objects: one with a long-tailed training split,
balanced validation and test; and unlabeled images, long-tailed too, to go with it.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from data_prep.reading.render import CLASSES, render_jpeg
from data_prep.reading.source import Recipe, Source, SourceSplit
from data_prep.reading.subsets import imbalanced_counts, unlabeled_counts

PLACES = {"train": 0, "val": 1, "test": 2, "unlabeled": 3}  # in the seeds of images


@dataclass(frozen=True)
class Drawn:
    """Images that are drawn when they are read. ``side``: as of :func:`render_jpeg`."""

    labels: np.ndarray
    seed: int
    place: int
    side: int | None

    def read(self, index: int) -> bytes:
        label = int(self.labels[index])
        return render_jpeg(label, self.seed, self.place, index, side=self.side)


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--largest",
        type=int,
        default=500,
        help="labeled training images of the largest class (default: 500)",
    )
    parser.add_argument(
        "--imbalance-ratio",
        type=float,
        default=100.0,
        help="largest class over smallest (default: 100)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of square images (default: 96 to 256 pixels, of any shape)",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument(
        "--val", type=int, default=20, help="validation images a class (default: 20)"
    )
    parser.add_argument("--test", type=int, default=100, help="test images a class (default: 100)")


def add_unlabeled_arguments(parser: argparse.ArgumentParser) -> None:
    _add_common_arguments(parser)
    parser.add_argument(
        "--size-factor", type=float, default=5.0, help="unlabeled over labeled images (default: 5)"
    )


def make_source(arguments: argparse.Namespace) -> Source:
    counts = {
        "train": imbalanced_counts(arguments.largest, len(CLASSES), arguments.imbalance_ratio),
        "val": [arguments.val] * len(CLASSES),
        "test": [arguments.test] * len(CLASSES),
    }
    splits = {}
    for name, per_class in counts.items():
        labels = _labels(per_class)
        keys = [f"{CLASSES[label]}/{index:06d}" for index, label in enumerate(labels)]
        splits[name] = SourceSplit(labels, keys, _drawn(labels, name, arguments))
    return Source("demo", list(CLASSES), splits)


def make_unlabeled(arguments: argparse.Namespace) -> Source:
    """Unlabeled images; what they show is in the column ``hidden_label``, which none trains on."""
    ratio, number = arguments.imbalance_ratio, len(CLASSES)
    labeled = sum(imbalanced_counts(arguments.largest, number, ratio))
    labels = _labels(unlabeled_counts(labeled, number, ratio, arguments.size_factor))
    keys = [f"unlabeled/{index:06d}" for index in range(len(labels))]
    images = _drawn(labels, "unlabeled", arguments)
    columns = {"hidden_label": labels.astype(np.int32)}
    split = SourceSplit(None, keys, images, columns, deal_by=labels)
    return Source("unlabeled_demo", list(CLASSES), {"train": split})


def _labels(per_class: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(CLASSES)), per_class)


def _drawn(labels: np.ndarray, place: str, arguments: argparse.Namespace) -> Drawn:
    return Drawn(labels, arguments.seed, PLACES[place], arguments.image_size)


RECIPES = {
    "demo": Recipe(
        "a small long-tailed set of drawn objects; needs no source", add_arguments, make_source
    ),
    "unlabeled_demo": Recipe(
        "unlabeled images of the same objects, long-tailed too",
        add_unlabeled_arguments,
        make_unlabeled,
    ),
}
