"""What a user means by naming a place: an image, a folder of images, a list, or tars."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from itertools import chain

import numpy as np

from lt_train.data.image_files.places import Chained, ImageFiles, Images, TarImages, tar_members
from lt_train.data.image_files.walk import PassedOver, images_below, is_image, is_taken, shown
from lt_train.errors import UserError, unreadable

LISTS = (".txt", ".lst", ".list")


@dataclass(frozen=True)
class FoundImages:
    """``names``: a path or a place within a tar, one an image, which nobody has looked at yet."""

    names: Sequence[str]
    images: Images


def find_images(place: str, passed: PassedOver) -> FoundImages:
    """The images at ``place``, or in all folders, tars and files that it matches as a pattern.

    Of a folder all that lie in and below it, sorted; of a list its lines, which are relative to its
    folder. What else there is, is counted in ``passed``. A :class:`UserError`: there are none.
    """
    if os.path.exists(place):
        parts = [_at(place, passed)]
    else:
        parts = [_matched(each, passed) for each in sorted(glob(place, recursive=True))]
    if not parts:
        raise UserError(f"there is no file or folder '{place}', nor one that matches it")
    names = list(chain.from_iterable(part.names for part in parts))
    if not names:
        raise UserError(passed.after(f"'{place}' has no images ({shown()}) in it"))
    starts = np.cumsum([0, *(len(part.names) for part in parts)])[:-1]
    return FoundImages(names, Chained([part.images for part in parts], starts))


def _matched(place: str, passed: PassedOver) -> FoundImages:
    """What a match of a pattern holds: lists and others lie beside what is meant."""
    if os.path.isdir(place) or place.lower().endswith(".tar"):
        return _at(place, passed)
    names = [place] if is_taken(os.path.basename(place), passed) else []
    return FoundImages(names, ImageFiles("", names))


def _at(place: str, passed: PassedOver) -> FoundImages:
    """What a place that is named holds, perhaps nothing."""
    suffix = os.path.splitext(place)[1].lower()
    if os.path.isdir(place):
        inside = images_below(place, passed)
        return FoundImages(
            [os.path.join(place, name) for name in inside], ImageFiles(place, inside)
        )
    if suffix == ".tar":
        return _in_tar(place, passed)
    if suffix in LISTS:
        lines = _lines(place)
        return FoundImages(lines, ImageFiles(os.path.dirname(place), lines))
    if is_image(place):
        return FoundImages([place], ImageFiles("", [place]))
    raise UserError(
        f"'{place}' is neither a folder, an image ({shown()}), a list of images"
        f" ({', '.join(LISTS)}) nor an uncompressed .tar"
    )


def _in_tar(path: str, passed: PassedOver) -> FoundImages:
    names, places = [], []
    for name, offset, size in tar_members(path):
        if is_taken(name.removeprefix("./"), passed):
            names.append(f"{path}/{name.removeprefix('./')}")
            places.append((0, offset, size))
    return FoundImages(names, TarImages([path], np.array(places, np.int64).reshape(-1, 3)))


def _lines(path: str) -> list[str]:
    """The lines of a list that are not empty; a name may be of any bytes."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise unreadable(error, f"cannot read the list '{path}': {error.strerror}") from error
    return [line for line in lines if line.strip()]
