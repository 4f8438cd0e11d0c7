"""Small CIFARs, of which a labeled set leaves most training images."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.sets.cifar import CIFAR10_CLASSES
from tests.helpers.sources import fill
from tests.helpers.stand_ins import all_different, write_folders


@dataclass(frozen=True)
class Layout:
    """What tells the two apart."""

    classes: list[str]
    folder: str  # of the official files
    train: list[str]
    test: str
    labels: str  # their name in a batch


BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
LAYOUTS_OF = {
    "cifar10": Layout(
        CIFAR10_CLASSES,
        "cifar-10-batches-py",
        BATCHES,
        "test_batch",
        "labels",
    ),
    "cifar100": Layout(
        [f"class_{label:03d}" for label in range(100)],
        "cifar-100-python",
        ["train"],
        "test",
        "fine_labels",
    ),
}


@pytest.fixture(scope="session")
def cifar(tmp_path_factory) -> dict[str, dict[str, Path]]:
    """Set -> ``official`` or ``folders`` -> folder: 400 training images of each set, 40 or 4 a
    class.
    """
    roots = {}
    for name, layout in LAYOUTS_OF.items():
        root = tmp_path_factory.mktemp(name)
        number = len(layout.classes)
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(number), 400 // number))
        pixels = all_different(400, 32)
        black = np.zeros((number, 32, 32, 3), np.uint8)
        batches = np.array_split(np.arange(400), len(layout.train))
        official = {
            file: batch_of(layout, labels[part], pixels[part])
            for file, part in zip(layout.train, batches)
        }
        official[layout.test] = batch_of(layout, np.arange(number), black)
        official["meta"] = pickle.dumps({"fine_label_names": layout.classes})
        fill(root / "official" / layout.folder, official)
        write_folders(root / "folders" / "train", layout.classes, labels, pixels)
        write_folders(root / "folders" / "test", layout.classes, np.arange(number), black)
        roots[name] = {"official": root / "official", "folders": root / "folders"}
    return roots


def batch_of(layout: Layout, labels: np.ndarray, pixels: np.ndarray) -> bytes:
    planes = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
    return pickle.dumps({layout.labels: labels.tolist(), "data": planes})
