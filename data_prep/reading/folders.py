"""Folders whose subfolders are the classes, below folders of the splits, and sources of files below
one.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_prep.reading.lists import Rows, make_keys
from data_prep.reading.source import SPLIT_NAMES, LabeledSplit, Source, SourceSplit
from lt_train.data.image_files.places import ImageFiles
from lt_train.data.image_files.walk import PassedOver, images_below, listing, shown
from lt_train.errors import UserError


def class_folders(root: Path, passed: PassedOver) -> dict[str, list[str]]:
    """Class name -> its image files relative to ``root``, both sorted; a :class:`UserError` if
    there are none.

    A folder without images is no class, which ``passed`` tells.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    folders, beside = listing(root, passed)
    found = {}
    for name in folders:
        inside = PassedOver()
        images = images_below(root / name, inside)
        if images:
            found[name] = [os.path.join(name, image) for image in images]
            passed.add(inside)
        else:
            why = ", ".join(f"{number:,} {kind}" for kind, number in inside.counts.most_common())
            passed.name_folder(name, f"without images ({why or 'empty'})")
    if beside:
        passed.counts["images beside the class folders"] += len(beside)
    if not found:
        none = f"'{root}' has no class folders with images ({shown()}) in it"
        raise UserError(passed.after(f"{none}; give the images of each class a folder of its name"))
    return found


def split_folders(root: Path, folders: Iterable[str] | None = None) -> dict[str, str]:
    """Split -> its folder in ``root``, by any of SPLIT_NAMES; ``folders``: those in ``root``, if
    they are known.

    A :class:`UserError`: a split has two.
    """
    found: dict[str, str] = {}
    for name in listing(root, PassedOver())[0] if folders is None else folders:
        split = SPLIT_NAMES.get(name.lower())
        if split in found:
            raise UserError(
                f"'{root}' has two folders for the split '{split}': {found[split]}/ and {name}/;"
                " merge them, or move one away"
            )
        if split is not None:
            found[split] = name
    return found


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
    root: Path, folder: str, classes: list[str] | None, passed: PassedOver
) -> tuple[list[str], LabeledSplit]:
    """The class folders in ``root/folder`` as a whole split, and the classes: those given, or as
    the folders are called.
    """
    found = class_folders(root / folder, passed)
    classes = list(found) if classes is None else classes
    names, labels = labeled_files(found, classes, folder)
    images = ImageFiles(str(root), names)
    return classes, LabeledSplit(images, labels, images.paths, passed)


def file_source(
    name: str,
    classes: list[str],
    root: Path,
    found: dict[str, Rows],
    notes: list[str],
    passed: PassedOver,
) -> Source:
    """A source of files below ``root``."""
    splits, files = {}, []
    for split, (names, labels) in found.items():
        images = ImageFiles(str(root), names)
        splits[split] = SourceSplit(labels, make_keys(names), images)
        files += images.paths
    return Source(name, classes, splits, files, notes, passed)
