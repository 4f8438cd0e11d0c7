"""Anyone's own images: class folders, optionally under train/, val/ and test/, list files of ``path
label`` lines, or a CSV.
"""

import argparse
import csv
import os
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.reading.folders import class_folders, file_source, labeled_files, split_folders
from data_prep.reading.lists import (
    NUMBER,
    Rows,
    as_label,
    check_files,
    check_inside,
    check_labels,
    class_names,
    read_lists,
    refuse_strange,
    relative,
)
from data_prep.reading.source import SPLIT_NAMES, SPLITS, Recipe, Source
from data_prep.reading.subsets import (
    Draw,
    add_fraction_arguments,
    add_imbalance_arguments,
    hold_out,
    imbalanced_counts,
    pick,
)
from lt_train.data.image_files.walk import PassedOver, listing
from lt_train.errors import UserError, unreadable

CSV_COLUMNS = {  # what a column is for -> the names it may have
    "path": ("path", "image", "image_path", "file", "filename", "file_name"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset"),
}
CSV_SPLITS = {"": "train"} | SPLIT_NAMES
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
NO_CLASS = {"nan", "<na>"}  # what tables write where a label is missing, lower case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help=(
            "class folders, or train/ val/ test/ (or Training/, valid/, ...) with class folders in"
            " them; with --list or --csv: what paths are relative to (default: the file's folder)"
        ),
    )
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="training images, a 'path label' line each, labels 0, 1, 2, ...",
    )
    parser.add_argument("--val-list", type=Path, metavar="FILE", help="the same for validation")
    parser.add_argument("--test-list", type=Path, metavar="FILE", help="the same for test")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help=(
            "a header with 'path', 'label' (names or 0, 1, 2, ...) and perhaps 'split', then a line"
            " an image"
        ),
    )
    add_fraction_arguments(parser)
    add_imbalance_arguments(parser, None)
    parser.add_argument("--name", help="of the data set; default: the folder's")


def make_source(arguments: argparse.Namespace) -> Source:
    passed = PassedOver()
    root, classes, found, notes = _read(arguments, passed)
    found = hold_out(found, arguments)
    if arguments.imbalance_ratio is not None:
        found["train"], note = make_tail(found["train"], arguments)
        notes.append(note)
    if list(found) == ["train"]:
        notes.append(
            "there is no validation or test split, so that training measures no accuracy;"
            " --val-fraction 0.1 holds out a tenth of every class"
        )
    name = arguments.name or os.path.basename(os.path.realpath(arguments.out))
    return file_source(name, classes, root, found, notes, passed)


def _read(
    arguments: argparse.Namespace, passed: PassedOver
) -> tuple[Path, list[str], dict[str, Rows], list[str]]:
    """What paths are relative to, the classes, rows by split, and notes."""
    if arguments.list is not None and arguments.csv is not None:
        raise UserError("give --list or --csv, not both")
    if arguments.list is None and (arguments.val_list or arguments.test_list):
        raise UserError(
            "--val-list and --test-list go with --list, which names the training images"
        )
    file: Path | None = arguments.list or arguments.csv
    if file is None:
        if arguments.source is None:
            raise UserError(
                "give --source DIR (class folders), --list FILE ('path label' lines) or --csv FILE"
            )
        return arguments.source, *_from_folders(arguments.source, passed), []
    root, notes = arguments.source or file.parent, []
    if arguments.list is not None:
        lists = {"train": file, "val": arguments.val_list, "test": arguments.test_list}
        given = {split: path for split, path in lists.items() if path is not None}
        classes, found, notes = read_lists(root, given)
    else:
        classes, found = _from_csv(file, root)
    for split, (names, _) in found.items():
        check_files(root, names, f"'{file}' ({split})")
    return root, classes, found, notes


def _from_csv(file: Path, root: Path) -> tuple[list[str], dict[str, Rows]]:
    by_split: dict[str, tuple[list[str], list[str]]] = {}
    for line, row in _read_csv(file):
        split = row.get("split", "").lower()
        split = CSV_SPLITS.get(split, split)
        if not row["path"] or not row["label"] or split not in SPLITS:
            raise UserError(
                f"{file}, line {line}: needs a path, a label and (if at all) a split of"
                f" {', '.join(SPLITS)}"
            )
        check_inside(row["path"], f"{file}, line {line}")
        _check_label(row["label"], f"{file}, line {line}")
        names, labels = by_split.setdefault(split, ([], []))
        names.append(row["path"])
        labels.append(row["label"])
    if "train" not in by_split:
        raise UserError(f"the CSV '{file}' has no training images")
    every = list(chain.from_iterable(labels for _, labels in by_split.values()))
    classes = _in_order(set(by_split["train"][1]))
    numbers = all(NUMBER.fullmatch(label) for label in every)
    index = {label: as_label(label) for label in every} if numbers else _indices(classes)
    unknown = next((label for label in every if label not in index), None)
    if unknown is not None:
        raise UserError(f"the class '{unknown}' in '{file}' has no training images")
    found = {}
    for split in filter(by_split.get, SPLITS):
        names, texts = by_split[split]
        labels = np.array([index[text] for text in texts], np.int64)
        found[split] = relative((names, labels), root)
    number = check_labels(found, f"'{file}'")
    return class_names(*found["train"], number) if numbers else classes, found


def _check_label(label: str, where: str) -> None:
    refuse_strange([label], f"{where}: the label")
    if label.lower() in NO_CLASS or (DECIMAL.fullmatch(label) and float(label) < 0):
        raise UserError(
            f"{where}: the label '{label}' is no class; remove the line, or give the image its"
            " class (images without labels are a set of their own: data_prep tinyimages)"
        )


def _in_order(classes: set[str]) -> list[str]:
    """Sorted by number if all are numbers (0.0, 2.0, 10.0), else as text."""
    if all(map(DECIMAL.fullmatch, classes)):
        return sorted(classes, key=lambda name: (float(name), name))
    return sorted(classes)


def _indices(classes: list[str]) -> dict[str, int]:
    return {name: label for label, name in enumerate(classes)}


def _read_csv(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The number of each line, and what it says by the uses of CSV_COLUMNS."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = _find_columns(file, reader.fieldnames or [])
            rows = []
            for row in reader:
                cells = {use: (row[name] or "").strip() for use, name in columns.items()}
                rows.append((reader.line_num, cells))
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(error, f"cannot read the CSV '{file}': {error}") from error


def _find_columns(file: Path, fields: Iterable[str]) -> dict[str, str]:
    """Use -> the column's name as the header writes it; 'split' may be missing."""
    header = {name.strip().lower(): name for name in fields if name}
    columns = {}
    for use, names in CSV_COLUMNS.items():
        known = next((name for name in names if name in header), None)
        if known is not None:
            columns[use] = header[known]
        elif use != "split":
            raise UserError(
                f"'{file}' has no column '{use}' (or {', '.join(names[1:])}) in its header:"
                f" {', '.join(header)}"
            )
    return columns


def _from_folders(root: Path, passed: PassedOver) -> tuple[list[str], dict[str, Rows]]:
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    folders, beside = listing(root, PassedOver())
    splits = split_folders(root, folders)
    if "train" not in splits:
        _refuse_splits_alone(root, folders, splits)
        found = class_folders(root, passed)
        return list(found), {"train": labeled_files(found, list(found), "")}
    listing(root, passed)
    if beside:
        passed.counts["images beside the splits"] += len(beside)
    for name in folders:
        if name not in splits.values():
            passed.name_folder(name, f"beside {splits['train']}/")
    order = [split for split in SPLITS if split in splits]
    found = {split: class_folders(root / splits[split], passed) for split in order}
    classes = list(found["train"])
    rows = {split: labeled_files(found[split], classes, splits[split]) for split in order}
    return classes, rows


def _refuse_splits_alone(root: Path, folders: list[str], splits: dict[str, str]) -> None:
    """A folder of another split's name is a class only where it lies beside classes and holds
    images itself, as they do.
    """
    for name in splits.values():
        alone = len(folders) == len(splits)
        if alone or not listing(root / name, PassedOver())[1]:
            raise UserError(
                f"'{root}' has {name}/ and no train/: put the training images' class folders into"
                f" train/, or give {name}/ another name if it is a class"
            )


def make_tail(rows: Rows, arguments: argparse.Namespace) -> tuple[Rows, str]:
    """A long-tailed subset: the largest class stays whole, the others follow, larger ones first;
    and a note on what came of it.
    """
    sizes = np.bincount(rows[1])
    order = np.argsort(-sizes, kind="stable")
    wanted = imbalanced_counts(
        int(sizes.max()), len(sizes), arguments.imbalance_ratio, arguments.imbalance_type
    )
    kept = np.minimum(np.maximum(wanted, 1), sizes[order])
    chosen = np.sort(Draw(arguments.seed).subset(rows[1], kept, order))
    short = int((kept < wanted).sum())
    note = (
        f"--imbalance-ratio keeps {len(chosen)} of {len(rows[1])} training images, {kept.max()} to"
        f" {kept.min()} a class"
    )
    if short:
        note += f"; {short} class(es) have fewer images than their share"
    return pick(rows, chosen), note


RECIPES = {
    "folder": Recipe(
        "your own images: class folders, 'path label' lists or a CSV", add_arguments, make_source
    )
}
