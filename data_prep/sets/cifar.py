"""CIFAR-10-LT and CIFAR-100-LT: the published long-tailed subsets of the training images, and the
whole test sets.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.reading.folders import labeled_split, split_folders
from data_prep.reading.images import PngArray
from data_prep.reading.pickles import expecting, load_pickle, text_keys
from data_prep.reading.source import LabeledSplit, Recipe, Source
from data_prep.reading.subsets import (
    add_imbalance_arguments,
    imbalanced_counts,
    long_tailed,
    unpublished,
)
from lt_train.data.image_files.walk import PassedOver
from lt_train.errors import UserError

CIFAR10_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


@dataclass(frozen=True)
class Cifar:
    """What tells the two apart."""

    name: str
    classes: list[str] | None  # None: as the meta file, or the training folders, name them
    number: int  # of classes
    # training images, and labeled ones of the largest class in the published subsets
    per_class: int
    folder: str  # of the official archive
    batches: dict[str, list[str]]
    labels: str  # their name in a batch


CIFAR10 = Cifar(
    "cifar10_lt",
    CIFAR10_CLASSES,
    10,
    5000,
    "cifar-10-batches-py",
    {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "labels",
)
CIFAR100 = Cifar(
    "cifar100_lt",
    None,
    100,
    500,
    "cifar-100-python",
    {"train": ["train"], "test": ["test"]},
    "fine_labels",
)


def add_arguments(which: Cifar, parser: argparse.ArgumentParser) -> None:
    names = " ".join(chain.from_iterable(which.batches.values()))
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"holds {names} (or {which.folder}/ with them), or train/ and test/ class folders",
    )
    add_imbalance_arguments(parser, 100.0, which.per_class)


def make_source(which: Cifar, arguments: argparse.Namespace) -> Source:
    classes, splits = read_splits(which, arguments.source, which.batches)
    counts = imbalanced_counts(
        arguments.largest, which.number, arguments.imbalance_ratio, arguments.imbalance_type
    )
    notes = unpublished(arguments.seed, arguments.largest, which.per_class)
    return long_tailed(which.name, classes, splits, counts, arguments.seed, notes)


def is_source(which: Cifar, root: Path) -> bool:
    """Whether ``root`` looks like the folder that :func:`read_splits` takes."""
    names = (which.folder, which.batches["train"][0])
    if any((root / name).exists() for name in names):
        return True
    return root.is_dir() and "train" in split_folders(root)


def read_splits(
    which: Cifar, root: Path, wanted: Iterable[str]
) -> tuple[list[str], dict[str, LabeledSplit]]:
    """The classes' names and the ``wanted`` splits, whole, from the official batches or from class
    folders.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    if (root / which.folder).is_dir():
        root = root / which.folder
    if (root / which.batches["train"][0]).is_file():
        classes = which.classes or _read_class_names(root / "meta")
        splits = {split: _read_batches(which, root, split) for split in wanted}
    else:
        folders, classes, splits = split_folders(root), which.classes, {}
        for split in wanted:  # training first, whose folders name the classes
            folder = folders.get(split, split)
            classes, splits[split] = labeled_split(root, folder, classes, PassedOver())
    if len(classes) != which.number:
        raise UserError(
            f"'{root}' has {len(classes)} classes, not the {which.number} of"
            f" {which.name.removesuffix('_lt')}"
        )
    return classes, splits


def _read_batches(which: Cifar, root: Path, split: str) -> LabeledSplit:
    pixels, labels = [], []
    files = [root / name for name in which.batches[split]]
    for file in files:
        batch = load_pickle(file)
        with expecting(file, f"is not a batch of {which.folder}"):
            batch = text_keys(batch)
            data = np.asarray(batch["data"])
            if data.dtype != np.uint8:
                raise ValueError(f"its data is {data.dtype}, not uint8")
            pixels.append(data.reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[which.labels], np.int64))
            in_range = (labels[-1] >= 0) & (labels[-1] < which.number)
            if len(labels[-1]) != len(pixels[-1]) or not in_range.all():
                raise ValueError("its labels do not fit its images")
    images = PngArray(np.concatenate(pixels).transpose(0, 2, 3, 1).copy())
    return LabeledSplit(images, np.concatenate(labels), [str(file) for file in files])


def _read_class_names(file: Path) -> list[str]:
    content = load_pickle(file)
    with expecting(file, "does not name the classes"):
        names = text_keys(content)["fine_label_names"]
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


RECIPES = {
    which.name: Recipe(
        f"CIFAR-{which.number}-LT from {which.folder} or class folders",
        partial(add_arguments, which),
        partial(make_source, which),
    )
    for which in (CIFAR10, CIFAR100)
}
