"""SVHN-LT: the published long-tailed subset of the training images (Yang and Xu 2020), and the
whole test set.
"""

import argparse
from pathlib import Path

import numpy as np

from data_prep.reading.folders import labeled_split, split_folders
from data_prep.reading.images import PngArray
from data_prep.reading.source import LabeledSplit, Recipe, Source
from data_prep.reading.subsets import (
    add_imbalance_arguments,
    imbalanced_counts,
    long_tailed,
    unpublished,
)
from lt_train.data.image_files.walk import PassedOver
from lt_train.errors import UserError

CLASSES = [str(digit) for digit in range(10)]
ORDER = [*range(1, 10), 0]  # the digit 0 is the tail: SVHN calls it 10
LARGEST = 1000
# of train_32x32.mat, digits 0 to 9
TRAIN_COUNTS = [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds train_32x32.mat and test_32x32.mat, or train/ and test/ class folders 0 ... 9",
    )
    add_imbalance_arguments(parser, 100.0, LARGEST)


def make_source(arguments: argparse.Namespace) -> Source:
    splits = {split: read_split(arguments.source, split) for split in ("train", "test")}
    counts = imbalanced_counts(
        arguments.largest, len(CLASSES), arguments.imbalance_ratio, arguments.imbalance_type
    )
    notes = unpublished(arguments.seed, arguments.largest, LARGEST)
    return long_tailed("svhn_lt", CLASSES, splits, counts, arguments.seed, notes, ORDER)


def read_split(root: Path, split: str) -> LabeledSplit:
    """``train``, ``test`` or ``extra``, from its .mat file or its class folders."""
    file = root / f"{split}_32x32.mat"
    if file.is_file():
        return _read_mat(file)
    folders = split_folders(root) if root.is_dir() else {}
    folder = folders.get(split, split)
    if not (root / folder).is_dir():
        raise UserError(
            f"'{root}' holds neither {file.name} nor a folder {split}/ with the class folders 0"
            " ... 9"
        )
    return labeled_split(root, folder, CLASSES, PassedOver())[1]


def _read_mat(file: Path) -> LabeledSplit:
    from scipy.io import loadmat

    try:
        content = loadmat(file)
        pixels, labels = content["X"], content["y"].ravel().astype(np.int64)
        fitting = pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3, len(labels))
        if not fitting or not ((labels >= 0) & (labels <= 10)).all():
            raise ValueError(f"it holds images of shape {pixels.shape} and {len(labels)} labels")
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"'{file}' is not a whole SVHN file of cropped digits: {error}") from error
    images = PngArray(np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)))
    return LabeledSplit(images, labels % 10, [str(file)])


RECIPES = {
    "svhn_lt": Recipe(
        "SVHN-LT from train_32x32.mat and test_32x32.mat or class folders",
        add_arguments,
        make_source,
    )
}
