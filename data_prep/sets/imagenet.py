"""ImageNet-LT (Liu et al. 2019) from ILSVRC2012's folders, or its official tars read in place, with
the published lists or a new subset; and the training images that it leaves, as an unlabeled set.
"""

import argparse
import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.reading.folders import split_folders
from data_prep.reading.lists import (
    Rows,
    check_labels,
    check_published,
    class_names,
    make_keys,
    read_list,
    report_missing,
)
from data_prep.reading.source import Recipe, Source, SourceSplit
from data_prep.reading.subsets import pareto_counts
from lt_train.data.image_files.places import ImageFiles, Images, TarImages, tar_members
from lt_train.data.image_files.walk import PassedOver, is_taken, listing
from lt_train.data.tables import UNLABELED
from lt_train.errors import UserError, unreadable

LISTS = {split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")}
TARS = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
VAL_SOLUTION = "LOC_val_solution.csv"  # Kaggle's labels of the validation images
KAGGLE = "Data/CLS-LOC"  # its folder of images within ILSVRC
VAL_PER_CLASS = 20  # as in the published val list


@dataclass(frozen=True)
class Half:
    """ILSVRC2012's training or validation images, wherever they lie.

    ``places``: ``class/file`` (training) or ``file`` (validation) -> what ``images`` makes images
    of. ``passed``: what else lies there.
    """

    places: dict[str, object]
    images: Callable[[Sequence[object]], Images]
    files: Callable[[Sequence[object]], list[str]]
    where: str
    passed: PassedOver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = f"ILSVRC2012: train/ and val/ (class folders or flat), or {' and '.join(TARS.values())}"
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help=text)
    parser.add_argument(
        "--lists", type=Path, metavar="DIR", help=f"holds the published {', '.join(LISTS.values())}"
    )
    parser.add_argument(
        "--make-subset",
        choices=["pareto"],
        help="no lists: draw a new subset (NOT the published one) with --seed",
    )
    parser.add_argument(
        "--largest",
        type=int,
        default=1280,
        help="with --make-subset: images of the largest class (default: 1280)",
    )
    parser.add_argument(
        "--smallest",
        type=int,
        default=5,
        help="with --make-subset: images of the smallest class (default: 5)",
    )


def add_unlabeled_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    text = (
        "a uniform draw of F times as many images as the labeled training set has (default: all"
        " that are left)"
    )
    parser.add_argument("--size-factor", type=float, metavar="F", help=text)


def make_source(arguments: argparse.Namespace) -> Source:
    _check_choice(arguments)
    halves = {half: _find_half(arguments.source, half) for half in TARS}
    if arguments.lists is not None:
        classes, found, notes = _from_lists(arguments.lists)
    else:
        classes, found, notes = _make_subset(halves["train"], arguments)
        found["test"] = _validation_labels(halves["val"], arguments.source, classes)
    splits, files = {}, {}
    for split, (names, labels) in found.items():
        half = halves["val" if names[0].startswith("val/") else "train"]
        places = _locate(half, names, arguments.lists / LISTS[split] if arguments.lists else split)
        splits[split] = SourceSplit(labels, make_keys(names), half.images(places))
        files |= dict.fromkeys(half.files(places))
    passed = PassedOver()
    for half in halves.values():
        passed.add(half.passed)
    return Source("imagenet_lt", classes, splits, list(files), notes, passed)


def make_unlabeled_source(arguments: argparse.Namespace) -> Source:
    """The training images that no split of ``imagenet_lt`` with the same options holds; the column
    ``hidden_label`` has their class, -1 if it is none of the labeled set's.
    """
    _check_choice(arguments)
    half = _find_half(arguments.source, "train")
    if arguments.lists is not None:
        classes, found, notes = _from_lists(arguments.lists)
    else:
        classes, found, notes = _make_subset(half, arguments)
    used: dict[str, int] = {}  # class/file -> label
    for split, (names, labels) in found.items():
        if names[0].startswith("train/"):  # the others are ILSVRC's validation images
            _locate(half, names, arguments.lists / LISTS[split] if arguments.lists else split)
            used |= zip((name.partition("/")[2] for name in names), labels.tolist())
    rest = sorted(name for name in half.places if "/" in name and name not in used)
    chosen = _draw(rest, len(found["train"][0]), arguments)
    label_of = {name.partition("/")[0]: label for name, label in used.items()}
    hidden_labels = [label_of.get(name.partition("/")[0], UNLABELED) for name in chosen]
    hidden = np.array(hidden_labels, np.int32)
    places = [half.places[name] for name in chosen]
    split = SourceSplit(
        None, make_keys(chosen), half.images(places), {"hidden_label": hidden}, deal_by=hidden
    )
    notes += [
        f"{len(chosen):,} of the {len(rest):,} training images that imagenet_lt with the same"
        f" options leaves; it holds {len(used):,}"
    ]
    splits, files = {"train": split}, half.files(places)
    return Source("unlabeled_imagenet_lt", classes, splits, files, notes, half.passed)


def _draw(rest: list[str], labeled: int, arguments: argparse.Namespace) -> list[str]:
    """``--size-factor`` times ``labeled`` names of ``rest``, in its order; without it, all."""
    if arguments.size_factor is None:
        return rest
    if not 0 < arguments.size_factor < float("inf"):
        raise UserError(
            f"--size-factor must be more than 0 and finite, not {arguments.size_factor:g}"
        )
    number = round(arguments.size_factor * labeled)
    if number > len(rest):
        raise UserError(
            f"{len(rest)} training images are left and {number} are needed; lower --size-factor"
            f" ({arguments.size_factor:g}) or leave it out"
        )
    # not the generator that makes the subset
    generator = np.random.default_rng([arguments.seed, 1])
    return [rest[index] for index in np.sort(generator.permutation(len(rest))[:number]).tolist()]


def _check_choice(arguments: argparse.Namespace) -> None:
    if (arguments.lists is None) == (arguments.make_subset is None):
        raise UserError(
            "give --lists DIR with the published ImageNet_LT_{train,val,test}.txt, or --make-subset"
            " pareto for a new subset"
        )


def _from_lists(folder: Path) -> tuple[list[str], dict[str, Rows], list[str]]:
    files = {split: folder / name for split, name in LISTS.items()}
    for file in files.values():
        if not file.is_file():
            raise UserError(
                f"--lists '{folder}' has no {file.name}; it must hold {', '.join(LISTS.values())}"
            )
    found = {split: read_list(file) for split, file in files.items()}
    for split, (names, _) in found.items():
        halves = {name.partition("/")[0] for name in names}
        if halves not in ({"train"}, {"val"}):
            raise UserError(
                f"{files[split]}: its paths must all begin with train/ or all with val/, as the"
                " published list's do"
            )
    number = check_labels(found, f"'{files['train']}'")
    notes = check_published(files.values())
    return class_names(*found["train"], number), found, notes


def _make_subset(
    half: Half, arguments: argparse.Namespace
) -> tuple[list[str], dict[str, Rows], list[str]]:
    """Classes, train and val, and a note."""
    by_class: dict[str, list[str]] = {}
    for name in sorted(half.places):
        folder, slash, _ = name.partition("/")
        if slash:  # a file beside the classes' folders or tars belongs to none
            by_class.setdefault(folder, []).append(f"train/{name}")
    classes = sorted(by_class)
    if not classes:
        raise UserError(f"there are no classes with images in {half.where}")
    counts = pareto_counts(arguments.largest, arguments.smallest, len(classes))
    generator = np.random.default_rng(arguments.seed)
    sizes = [len(by_class[name]) for name in classes]
    shares = _share_out(counts, sizes, generator, arguments)
    train, val = [], []
    for name, share in zip(classes, shares):
        shuffled = generator.permutation(len(by_class[name])).tolist()
        train += [by_class[name][index] for index in shuffled[:share]]
        val += [by_class[name][index] for index in shuffled[share:][:VAL_PER_CLASS]]
    labels = np.arange(len(classes))
    found = {
        "train": (train, np.repeat(labels, shares)),
        "val": (val, np.repeat(labels, VAL_PER_CLASS)),
    }
    notes = [
        f"this is a new Pareto subset (alpha 6, {counts[0]} to {counts[-1]} a class, seed"
        f" {arguments.seed}), NOT the published ImageNet-LT"
    ]
    return classes, found, notes


def _share_out(
    counts: list[int],
    sizes: list[int],
    generator: np.random.Generator,
    arguments: argparse.Namespace,
) -> list[int]:
    """Training images of each class: the ``counts``, largest first, each to any class of those left
    that has enough images (``sizes``) for it and for validation.
    """
    free = generator.permutation(len(sizes)).tolist()
    shares = [0] * len(sizes)
    for count in counts:
        label = next((label for label in free if sizes[label] >= count + VAL_PER_CLASS), None)
        if label is None:
            raise UserError(
                f"no class of '{arguments.source}' is left with {count} training and"
                f" {VAL_PER_CLASS} validation images; lower --largest ({arguments.largest})"
            )
        free.remove(label)
        shares[label] = count
    return shares


def _validation_labels(half: Half, root: Path, classes: list[str]) -> Rows:
    """ILSVRC's validation images with their class: from their folder, or from Kaggle's file."""
    index = {name: label for label, name in enumerate(classes)}
    class_of = _read_solution(root)
    names, labels = [], []
    for name, place in sorted(half.places.items()):
        folder = os.path.basename(os.path.dirname(place)) if isinstance(place, str) else ""
        label = index.get(class_of.get(name) or folder)
        if label is not None:
            names.append(f"val/{name}")
            labels.append(label)
    if len(names) < len(half.places) or not names:
        raise UserError(
            f"{len(half.places) - len(names)} images of {half.where} have no class: put them into"
            f" class folders, or {VAL_SOLUTION} (Kaggle) beside them"
        )
    return names, np.array(labels, np.int64)


def _read_solution(root: Path) -> dict[str, str]:
    """File name -> class of the validation images, from Kaggle's file in ``root`` or up to three
    folders above; empty without one.
    """
    beside = [root / VAL_SOLUTION, *(up / VAL_SOLUTION for up in root.absolute().parents[:3])]
    file = next(filter(Path.is_file, beside), None)
    if file is None:
        return {}
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.reader(stream) if len(row) > 1 and row[1].strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(error, f"cannot read '{file}': {error}") from error
    return {f"{row[0]}.JPEG": row[1].split()[0] for row in rows}


def _locate(half: Half, names: Sequence[str], where: object) -> list[object]:
    """Where each listed image lies; those that do not exist are an error."""
    # a list may give the class folder of a validation image or leave it out, and so may the source
    places = [
        half.places.get(name.partition("/")[2]) or half.places.get(os.path.basename(name))
        for name in names
    ]
    missing = [name for name, place in zip(names, places) if place is None]
    report_missing(missing, len(names), f"in {half.where}", f"'{where}'")
    return places


def _find_half(root: Path, half: str) -> Half:
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    for base in (root, root / KAGGLE, root / "ILSVRC" / KAGGLE):
        folders = split_folders(base) if base.is_dir() else {}
        if half in folders:
            return _folder_half(base, folders[half], half)
    tar = root / TARS[half]
    if tar.is_file():
        return _tar_half(tar)
    raise UserError(f"'{root}' has neither {half}/ nor {TARS[half]}")


def _folder_half(base: Path, folder: str, half: str) -> Half:
    passed = PassedOver()
    classes, flat = listing(base / folder, passed)
    places: dict[str, object] = {name: f"{folder}/{name}" for name in flat}
    for label in classes:
        deeper, images = listing(base / folder / label, passed)
        for name in images:
            places[name if half == "val" else f"{label}/{name}"] = f"{folder}/{label}/{name}"
        for name in deeper:
            passed.name_folder(f"{folder}/{label}/{name}", "in a class folder")
    root = str(base)
    return Half(
        places,
        lambda names: ImageFiles(root, names),
        lambda names: ImageFiles(root, names).paths,
        f"'{base / folder}'",
        passed,
    )


def _tar_half(tar: Path) -> Half:
    places: dict[str, object] = {}
    passed = PassedOver()
    for name, offset, size in tar_members(tar):
        if name.endswith(".tar"):  # a class's own tar
            folder = os.path.basename(name).removesuffix(".tar")
            for inner, *place in tar_members(tar, offset, size):
                if is_taken(inner, passed):
                    places[f"{folder}/{os.path.basename(inner)}"] = place
        elif is_taken(name, passed):
            places[os.path.basename(name)] = [offset, size]
    tars = [str(tar)]

    def images(found: Sequence[object]) -> Images:
        return TarImages(tars, np.array([(0, *place) for place in found], np.int64).reshape(-1, 3))

    return Half(places, images, lambda _: tars, f"'{tar}'", passed)


RECIPES = {
    "imagenet_lt": Recipe(
        "ImageNet-LT from ILSVRC2012's folders or tars, with the published lists or a new subset",
        add_arguments,
        make_source,
    ),
    "unlabeled_imagenet_lt": Recipe(
        "the training images of ILSVRC2012 that imagenet_lt with the same options leaves,"
        " unlabeled",
        add_unlabeled_arguments,
        make_unlabeled_source,
    ),
}
