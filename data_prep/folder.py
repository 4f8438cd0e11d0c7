"""Anyone's own images: class folders, optionally under train/, val/ and test/, or list files of ``path label`` lines."""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.source import Source, SourceSplit
from lt_train.errors import UserError

HELP = "your own images: class folders, or lists of 'path label' lines"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageFiles:
    """Images that lie as files."""

    paths: list[Path]

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, metavar="DIR", help="class folders, or train/ val/ test/ with class folders in them; "
                        "with --list, what relative paths are relative to")
    parser.add_argument("--list", type=Path, metavar="FILE", help="training images, a 'path label' line each, labels 0, 1, 2, ...")
    parser.add_argument("--val-list", type=Path, metavar="FILE", help="the same for validation")
    parser.add_argument("--test-list", type=Path, metavar="FILE", help="the same for test")
    parser.add_argument("--val-fraction", type=float, default=0.0, help="move this share of each class's training images to val")
    parser.add_argument("--test-fraction", type=float, default=0.0, help="the same to test")
    parser.add_argument("--name", help="of the data set; default: the folder's")


def make_source(arguments: argparse.Namespace) -> Source:
    if arguments.list is not None:
        classes, found = _from_lists(arguments)
    elif arguments.source is not None:
        classes, found = _from_folders(arguments.source)
    else:
        raise UserError("give --source DIR (class folders) or --list FILE ('path label' lines)")
    found = _hold_out(found, {"val": arguments.val_fraction, "test": arguments.test_fraction}, arguments.seed)
    splits = {name: SourceSplit(labels, _keys(paths), ImageFiles(paths)) for name, (paths, labels) in found.items()}
    origin = str((arguments.source or arguments.list).resolve())
    return Source(arguments.name or arguments.out.resolve().name, classes, splits, origin)


def class_folders(root: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted; a :class:`UserError` if there are none."""
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if images:
            found[folder.name] = images
    if not found:
        raise UserError(f"'{root}' has no class folders with images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
    return found


def labelled(found: dict[str, list[Path]], classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """All files, and their labels as indices into ``classes``."""
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(f"class folder '{unknown[0]}' is not among the {len(classes)} training classes")
    paths = [path for name in found for path in found[name]]
    labels = np.array([classes.index(name) for name in found for _ in found[name]], np.int64)
    return paths, labels


def _from_folders(root: Path) -> tuple[list[str], dict[str, tuple[list[Path], np.ndarray]]]:
    if not (root / "train").is_dir():
        found = class_folders(root)
        return list(found), {"train": labelled(found, list(found))}
    folders = {split: class_folders(root / split) for split in SPLITS if (root / split).is_dir()}
    classes = list(folders["train"])
    return classes, {split: labelled(found, classes) for split, found in folders.items()}


def _from_lists(arguments: argparse.Namespace) -> tuple[list[str], dict[str, tuple[list[Path], np.ndarray]]]:
    files = {"train": arguments.list, "val": arguments.val_list, "test": arguments.test_list}
    found = {split: _read_list(file, arguments.source) for split, file in files.items() if file is not None}
    labels = np.concatenate([split_labels for _, split_labels in found.values()])
    present = np.unique(labels)
    missing = np.flatnonzero(present != np.arange(len(present)))
    if len(missing):
        raise UserError(f"no image has label {missing[0]}, though labels go up to {labels.max()}; labels must be 0, 1, 2, ... without gaps")
    return [str(label) for label in range(labels.max() + 1)], found


def _read_list(file: Path, root: Path | None) -> tuple[list[Path], np.ndarray]:
    base = root if root is not None else file.parent
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list '{file}': {error}") from error
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not (label.isascii() and label.isdigit()):
            raise UserError(f"{file}, line {number}: '{line.strip()[:80]}' is not 'path label' with a label of 0 or more")
        paths.append(base / name)
        labels.append(min(int(label), np.iinfo(np.int32).max))
    if not paths:
        raise UserError(f"the list '{file}' is empty")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images in '{file}' do not exist, first: {', '.join(map(str, missing[:10]))}")
    return paths, np.array(labels, np.int64)


def _hold_out(found: dict, fractions: dict[str, float], seed: int) -> dict:
    """Move a share of every class's training images to val and test, drawn with ``seed``."""
    if any(fraction < 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        raise UserError("--val-fraction and --test-fraction must be 0 or more and together less than 1")
    paths, labels = found["train"]
    generator = np.random.default_rng(seed)
    target = np.full(len(labels), "train", dtype=object)
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        for split, fraction in fractions.items():
            taken, indices = np.split(indices, [round(fraction * (labels == label).sum())])
            target[taken] = split
    for split, fraction in fractions.items():
        if fraction and split in found:
            raise UserError(f"the source has a {split} split already: --{split}-fraction cannot make another")
    moved = {}
    for split in dict.fromkeys(target):
        indices = np.flatnonzero(target == split)
        moved[split] = [paths[index] for index in indices], labels[indices]
    return {**moved, **{split: rows for split, rows in found.items() if split != "train"}}


def _keys(paths: list[Path]) -> list[str]:
    """Class folder and file name without suffix; more of the path, and the suffix, where files differ in nothing else."""
    files = len({path.with_suffix("") for path in paths})
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        plain = ["/".join((*path.parts[-depth:-1], path.stem)).replace(".", "_") for path in paths]
        if len(set(plain)) == files:
            break
    repeated = {key for key, count in Counter(plain).items() if count > 1}
    strange = next((path for path in paths if not str(path).isprintable()), None)
    if strange is not None:
        raise UserError(f"the file name {ascii(str(strange))} is not valid text; rename it")
    keys = [f"{key}_{path.suffix[1:]}" if key in repeated else key for key, path in zip(plain, paths)]
    for key, count in Counter(keys).items():
        if count > 1:
            same = [str(path) for path, other in zip(paths, keys) if other == key]
            raise UserError(f"{count} images would have the same key '{key}': {', '.join(same[:3])}; give them different names")
    return keys
