"""CIFAR-10-LT: the published long-tailed subset of CIFAR-10's training images, and the whole test set."""

import argparse
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.folder import ImageFiles, class_folders, labelled
from data_prep.source import Images, Source, SourceSplit
from data_prep.subsets import exponential_counts, published_subset
from lt_train.errors import UserError

HELP = "CIFAR-10-LT from cifar-10-batches-py or from train/ and test/ class folders"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_CLASS = 5000
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


@dataclass(frozen=True)
class RawImages:
    """Images as an array (N, 32, 32, 3) uint8, read as PNG, which loses nothing."""

    pixels: np.ndarray

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Picked:
    """Some of another source's images, by index."""

    images: Images
    indices: np.ndarray

    def read(self, index: int) -> bytes:
        return self.images.read(int(self.indices[index]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="holds data_batch_1 ... test_batch, or train/ and test/ class folders")
    parser.add_argument("--imbalance-ratio", type=float, default=100.0, help="largest class over smallest (default: 100)")


def make_source(arguments: argparse.Namespace) -> Source:
    root: Path = arguments.source
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    if (root / "cifar-10-batches-py").is_dir():
        root = root / "cifar-10-batches-py"
    official = (root / BATCHES["train"][0]).is_file()
    splits = {split: _read_batches(root, split) if official else _read_folders(root / split) for split in ("train", "test")}
    images, labels = splits["train"]
    counts = exponential_counts(PER_CLASS, len(CLASSES), arguments.imbalance_ratio)
    too_few = [name for name, have, want in zip(CLASSES, np.bincount(labels, minlength=10), counts) if have < want]
    if too_few:
        raise UserError(f"class '{too_few[0]}' in '{root}' has fewer than the {PER_CLASS} training images that CIFAR-10 has")
    chosen = published_subset(labels, counts, arguments.seed)
    splits["train"] = Picked(images, chosen), labels[chosen]
    keys = {"train": _keys(labels, chosen), "test": _keys(splits["test"][1], np.arange(len(splits["test"][1])))}
    notes = [] if arguments.seed == 0 else ["--seed is not 0: this is not the published subset"]
    return Source(
        "cifar10_lt",
        CLASSES,
        {name: SourceSplit(labels, keys[name], images) for name, (images, labels) in splits.items()},
        str(root.resolve()),
        notes,
    )


def _keys(labels: np.ndarray, chosen: np.ndarray) -> list[str]:
    """Class name and place within the class in the official order: the same whichever layout the images came in."""
    place = np.empty(len(labels), np.int64)
    for label in range(len(CLASSES)):
        place[labels == label] = np.arange((labels == label).sum())
    return [f"{CLASSES[labels[index]]}/{place[index]:04d}" for index in chosen]


def _read_folders(root: Path) -> tuple[Images, np.ndarray]:
    paths, labels = labelled(class_folders(root), CLASSES)
    return ImageFiles(paths), labels


def _read_batches(root: Path, split: str) -> tuple[Images, np.ndarray]:
    pixels, labels = [], []
    for name in BATCHES[split]:
        try:
            with open(root / name, "rb") as file:
                batch = _ArrayUnpickler(file, encoding="bytes").load()
            pixels.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], np.int64))
        except (OSError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"cannot read the CIFAR batch '{root / name}': {error}") from error
    return RawImages(np.concatenate(pixels).transpose(0, 2, 3, 1).copy()), np.concatenate(labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads nothing but NumPy arrays and plain values: a pickle from elsewhere must not run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch of images does not need; refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
