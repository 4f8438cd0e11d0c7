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

from data_prep.reading.images import ppm
from data_prep.reading.lists import make_keys, refuse_repeated, refuse_strange, tell_apart
from data_prep.reading.pools import WITHDRAWN
from data_prep.reading.source import Recipe, Source, SourceSplit
from lt_train.data.image_files.places import ImageFiles, TarImages, tar_members
from lt_train.data.image_files.walk import PassedOver, images_below, is_taken, listing, shown
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
    passed = PassedOver()
    if path.is_dir():
        tars = sorted(map(str, filter(_is_tar, path.glob("*.tar"))))
        split, files = _from_tars(path, tars, passed) if tars else _from_folder(path, passed)
    elif path.suffix == ".npy":
        split, files = _from_npy(path)
    elif path.is_file():
        split, files = _from_bin(path)
    else:
        raise UserError(f"there is no '{path}'")
    return Source(arguments.name, [], {"train": split}, files, [WITHDRAWN], passed)


def _is_tar(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


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


def _from_folder(path: Path, passed: PassedOver) -> tuple[SourceSplit, list[str]]:
    names = images_below(path, passed)
    if not names:
        raise UserError(passed.after(f"'{path}' has neither images ({shown()}) nor tars in it"))
    images = ImageFiles(str(path), names)
    return SourceSplit(None, make_keys(names), images), images.paths


def _from_tars(path: Path, tars: list[str], passed: PassedOver) -> tuple[SourceSplit, list[str]]:
    refuse_strange(map(os.path.basename, tars), "the tar's name")
    names, places = [], []
    for number, tar in enumerate(tars):
        for name, offset, size in tar_members(tar):
            if is_taken(name, passed):
                names.append(name)
                places.append((number, offset, size))
    _count_beside(path, len(tars), passed)
    if not names:
        raise UserError(passed.after(f"the tars in '{path}' hold no images ({shown()})"))
    refuse_strange(names)
    stems = [os.path.splitext(name)[0].removeprefix("./") for name in names]
    keys = [stem.replace(".", "_") for stem in stems]
    if len(set(keys)) < len(keys):
        holders = [os.path.basename(tars[number]) for number, _, _ in places]
        names = [f"{holder}/{name}" for holder, name in zip(holders, names)]
        if _tars_share(keys, holders):
            stems = [f"{holder[:-4]}/{stem}" for holder, stem in zip(holders, stems)]
        keys = tell_apart(stems, [stem.replace(".", "_") for stem in stems], names)
        refuse_repeated(keys, names)
    return SourceSplit(None, keys, TarImages(tars, np.array(places, np.int64))), tars


def _tars_share(keys: Sequence[str], holders: Sequence[str]) -> bool:
    """Whether a key is that of images in two tars."""
    return len(set(zip(keys, holders))) > len(set(keys))


def _count_beside(path: Path, tars: int, passed: PassedOver) -> None:
    """Count what lies beside the tars."""
    folders, images = listing(path, passed)
    passed.counts[".tar"] -= tars
    if images:
        passed.counts["images beside the tars"] += len(images)
    for name in folders:
        passed.name_folder(name, "beside the tars")
    passed.counts = +passed.counts


RECIPES = {
    "tinyimages": Recipe(
        "a raw pool of unlabeled images, sharded for scoring",
        add_arguments,
        make_source,
        samples_per_shard=10_000,
    )
}
