"""Folders of images: those whose subfolders are the classes, and sources of files below one."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.reading.images import ImageFiles
from data_prep.reading.lists import Rows, make_keys
from data_prep.reading.source import LabeledSplit, Source, SourceSplit
from lt_train.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


def class_folders(root: Path) -> dict[str, list[str]]:
    """Class name -> its image files relative to ``root``, both sorted; a :class:`UserError` if
    there are none.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    found = {}
    for name in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        paths = (path for path in image_paths(root / name) if os.path.isfile(path))
        images = [os.path.relpath(path, root) for path in sorted(paths)]
        if images:
            found[name] = images
    if not found:
        raise UserError(
            f"'{root}' has no class folders with images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it"
        )
    return found


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_paths(folder: Path) -> Iterator[str]:
    """Everything in ``folder`` and below that is named like an image, in no order; a
    :class:`UserError` for a folder that cannot be listed.
    """
    for path, _, names in os.walk(folder, onerror=_refuse_unreadable):
        yield from (os.path.join(path, name) for name in names if is_image(name))


def _refuse_unreadable(error: OSError) -> None:
    """For os.walk, which would else leave out a folder that it cannot list."""
    raise UserError(f"cannot read '{error.filename}': {error.strerror}") from error


def labeled_files(found: dict[str, list[str]], classes: list[str], prefix: str) -> Rows:
    """All files, below the folder ``prefix``, and their labels as indices into ``classes``."""
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"class folder '{unknown[0]}' is not among the {len(classes)} training classes"
        )
    index = {name: label for label, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    for name, paths in found.items():
        names += [os.path.join(prefix, path) for path in paths]
        labels += [index[name]] * len(paths)
    return names, np.array(labels, np.int64)


def labeled_split(
    root: Path, split: str, found: dict[str, list[str]], classes: list[str]
) -> LabeledSplit:
    """The class folders ``found`` in ``root/split``, by :func:`class_folders`, as a whole split."""
    names, labels = labeled_files(found, classes, split)
    images = ImageFiles(str(root), names)
    return LabeledSplit(images, labels, images.paths)


def file_source(
    name: str, classes: list[str], root: Path, found: dict[str, Rows], notes: list[str]
) -> Source:
    """A source of files below ``root``."""
    splits, files = {}, []
    for split, (names, labels) in found.items():
        images = ImageFiles(str(root), names)
        splits[split] = SourceSplit(labels, make_keys(names), images)
        files += images.paths
    return Source(name, classes, splits, files, notes)
