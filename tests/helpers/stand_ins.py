"""Small stand-ins for published sets, and what holds of the labeled and unlabeled sets made of
them.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from data_prep import inspect
from data_prep.reading.source import Source
from lt_train.data.manifest import Manifest
from lt_train.data.tables import UNLABELED
from tests.helpers.sources import fill, label_files, pixels_of, png, prepared


@dataclass(frozen=True)
class StandIn:
    """With little more images than a long-tailed subset needs."""

    labels: np.ndarray  # in the official order
    pixels: np.ndarray  # (N, 32, 32, 3)
    official: Path
    folders: Path
    test_labels: np.ndarray
    test_pixels: np.ndarray


def noise(labels: np.ndarray, seed: int) -> np.ndarray:
    """Images in which a few pixels are noise, so that they are all different and quick to write."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((len(labels), 32, 32, 3), np.uint8)
    pixels[:, 3:5, 7] = generator.integers(0, 256, (len(labels), 2, 3), np.uint8)
    return pixels


def all_different(number: int, side: int) -> np.ndarray:
    """Images (number, side, side, 3) that have nothing in common."""
    return np.random.default_rng(number).integers(0, 256, (number, side, side, 3), np.uint8)


def write_folders(root: Path, names: list[str], labels: np.ndarray, pixels: np.ndarray) -> None:
    """Class folders; within a class, files are in the order of ``labels``."""
    for label, name in enumerate(names):
        indices = enumerate(np.flatnonzero(labels == label))
        fill(root / name, {f"{rank:04d}.png": png(pixels[index]) for rank, index in indices})


def assert_published_subset(
    source: Source, which: StandIn, names: list[str], expected: list[int]
) -> None:
    """The training split is ``expected`` of the official order; the test split is whole, in any
    order within the same keys.
    """
    train, test = source.splits["train"], source.splits["test"]
    np.testing.assert_array_equal(train.labels, which.labels[expected])
    place = {
        int(index): rank
        for label in range(len(names))
        for rank, index in enumerate(np.flatnonzero(which.labels == label))
    }
    assert train.keys == [f"{names[which.labels[index]]}/{place[index]:04d}" for index in expected]
    for number in range(0, len(expected), 37):
        found = pixels_of(train.images.read(number))
        np.testing.assert_array_equal(found, which.pixels[expected[number]])
    indices = [np.flatnonzero(which.test_labels == label) for label in range(len(names))]
    assert len(test.labels) == len(which.test_labels) == len(set(test.keys))
    for number, (key, label) in enumerate(zip(test.keys, test.labels.tolist())):
        name, rank = key.split("/")
        assert name == names[label]
        if number % 11 == 0:
            found = pixels_of(test.images.read(number))
            np.testing.assert_array_equal(found, which.test_pixels[indices[label][int(rank)]])


def assert_no_label_shows(source: Source, out: Path) -> Manifest:
    """Prepared, nothing but the column ``hidden_label`` tells the class, and ``info`` counts by
    it.
    """
    columns = [(split.labels, list(split.columns)) for split in source.splits.values()]
    assert columns == [(None, ["hidden_label"])]
    root = prepared(source, out, 25)
    manifest = Manifest(root, "train")
    assert (manifest.labels == UNLABELED).all() and not manifest.class_counts.any()
    assert not {"sourced_label", "pseudo_label"} & set(manifest.columns)
    assert manifest.classes == source.classes
    assert not label_files(root)
    assert not list(inspect.problems(root))
    console = Console(file=io.StringIO(), width=120)
    inspect.show(root, console)
    assert "classes by hidden_label (the set is unlabeled)" in console.file.getvalue()
    return manifest
