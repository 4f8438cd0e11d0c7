"""A raw pool of unlabeled images, such as 80 Million Tiny Images, sharded as it is, ready to be
scored (``lt_train score``).

The pool is read by offset and dealt in runs of its own order, so memory stays flat whatever its
size. Raw pixels are stored as PPM: about as large in a tar as PNG at 32 x 32 pixels, and nothing to
encode or decode.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.reading.folders import IMAGE_SUFFIXES, image_paths, is_image
from data_prep.reading.images import ImageFiles, TarImages, ppm, tar_members
from data_prep.reading.lists import make_keys, refuse_repeated, refuse_strange
from data_prep.reading.pools import WITHDRAWN
from data_prep.reading.source import Recipe, Source, SourceSplit
from lt_train.errors import UserError

SIDE = 32


@dataclass(frozen=True)
class RawPool:
    """Images that lie back to back in one file, read as PPM.

    ``order`` as in NumPy: tiny_images.bin is column-major, "F".
    """

    path: str
    offset: int
    shape: tuple[int, int, int]  # of one image
    order: str

    def read(self, index: int) -> bytes:
        size = int(np.prod(self.shape))
        with open(self.path, "rb") as file:
            content = os.pread(file.fileno(), size, self.offset + index * size)
        return ppm(np.frombuffer(content, np.uint8).reshape(self.shape, order=self.order))


@dataclass(frozen=True)
class Numbered(Sequence):
    """The keys 00000000, 00000001, ..., made when they are asked for."""

    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"{number:08d}" for number in self.numbers[index]]
        return f"{self.numbers[index]:08d}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="PATH",
        help=(
            "tiny_images.bin, an .npy of (N, H, W, 3) uint8, a folder of images, or a folder of"
            " webdataset tars"
        ),
    )
    parser.add_argument("--name", default="tinyimages", help="of the pool (default: tinyimages)")


def make_source(arguments: argparse.Namespace) -> Source:
    path: Path = arguments.source
    if path.is_dir():
        split, files = _from_tars(path) if any(path.glob("*.tar")) else _from_folder(path)
    elif path.suffix == ".npy":
        split, files = _from_npy(path)
    elif path.is_file():
        split, files = _from_bin(path)
    else:
        raise UserError(f"there is no '{path}'")
    return Source(arguments.name, [], {"train": split}, files, [WITHDRAWN])


def _from_bin(path: Path) -> tuple[SourceSplit, list[str]]:
    number, rest = divmod(path.stat().st_size, SIDE * SIDE * 3)
    if rest or not number:
        raise UserError(
            f"'{path}' is truncated or not tiny_images.bin: {path.stat().st_size} bytes are no"
            f" multiple of {SIDE * SIDE * 3}, one image"
        )
    images = RawPool(str(path), 0, (SIDE, SIDE, 3), "F")
    return SourceSplit(None, Numbered(range(number)), images), [str(path)]


def _from_npy(path: Path) -> tuple[SourceSplit, list[str]]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header can raise anything
        raise UserError(f"'{path}' is truncated or not an .npy file: {error}") from error
    fitting = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
    if not fitting or not array.flags.c_contiguous or not len(array):
        raise UserError(
            f"'{path}' holds {array.dtype} of shape {array.shape}; it must hold uint8 of shape (N,"
            " height, width, 3), row-major"
        )
    images = RawPool(str(path), array.offset, array.shape[1:], "C")
    return SourceSplit(None, Numbered(range(len(array))), images), [str(path)]


def _from_folder(path: Path) -> tuple[SourceSplit, list[str]]:
    names = sorted(os.path.relpath(found, path) for found in image_paths(path))
    if not names:
        raise UserError(
            f"'{path}' has neither images ({', '.join(sorted(IMAGE_SUFFIXES))}) nor tars in it"
        )
    images = ImageFiles(str(path), names)
    return SourceSplit(None, make_keys(names), images), images.paths


def _from_tars(path: Path) -> tuple[SourceSplit, list[str]]:
    tars = sorted(str(tar) for tar in path.glob("*.tar"))
    names, places = [], []
    for number, tar in enumerate(tars):
        for name, offset, size in tar_members(tar):
            if is_image(name):
                names.append(name)
                places.append((number, offset, size))
    if not names:
        raise UserError(
            f"the tars in '{path}' hold no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    refuse_strange(names)
    keys = [os.path.splitext(name)[0].removeprefix("./").replace(".", "_") for name in names]
    refuse_repeated(keys, names)
    return SourceSplit(None, keys, TarImages(tars, np.array(places, np.int64))), tars


RECIPES = {
    "tinyimages": Recipe(
        "a raw pool of unlabeled images, sharded for scoring",
        add_arguments,
        make_source,
        samples_per_shard=10_000,
    )
}
