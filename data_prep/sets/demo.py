"""The embedded demo data set: ten kinds of drawn objects, a long-tailed training split, balanced
validation and test.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from data_prep.reading.render import CLASSES, render_jpeg
from data_prep.reading.source import Recipe, Source, SourceSplit
from data_prep.reading.subsets import imbalanced_counts


@dataclass(frozen=True)
class Drawn:
    """Images that are drawn when they are read."""

    labels: np.ndarray
    seed: int
    split: int

    def read(self, index: int) -> bytes:
        return render_jpeg(int(self.labels[index]), self.seed, self.split, index)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--largest",
        type=int,
        default=500,
        help="training images of the largest class (default: 500)",
    )
    parser.add_argument(
        "--imbalance-ratio",
        type=float,
        default=100.0,
        help="largest class over smallest (default: 100)",
    )
    parser.add_argument(
        "--val", type=int, default=20, help="validation images a class (default: 20)"
    )
    parser.add_argument("--test", type=int, default=100, help="test images a class (default: 100)")


def make_source(arguments: argparse.Namespace) -> Source:
    counts = {
        "train": imbalanced_counts(arguments.largest, len(CLASSES), arguments.imbalance_ratio),
        "val": [arguments.val] * len(CLASSES),
        "test": [arguments.test] * len(CLASSES),
    }
    splits = {}
    for number, (name, per_class) in enumerate(counts.items()):
        labels = np.repeat(np.arange(len(CLASSES)), per_class)
        keys = [f"{CLASSES[label]}/{index:06d}" for index, label in enumerate(labels)]
        splits[name] = SourceSplit(labels, keys, Drawn(labels, arguments.seed, number))
    return Source("demo", list(CLASSES), splits)


RECIPES = {
    "demo": Recipe(
        "a small long-tailed set of drawn objects; needs no source", add_arguments, make_source
    )
}
