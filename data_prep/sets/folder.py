"""Anyone's own images: class folders, optionally under train/, val/ and test/, list files of ``path
label`` lines, or a CSV.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np

from data_prep.reading.images import ImageFiles
from data_prep.reading.lists import (
    NUMBER,
    Rows,
    as_label,
    check_files,
    check_inside,
    check_labels,
    check_published,
    class_names,
    make_keys,
    read_list,
    relative,
)
from data_prep.reading.source import Recipe, Source, SourceSplit
from data_prep.reading.subsets import Draw, add_imbalance_arguments, imbalanced_counts
from lt_train.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
SPLITS = ("train", "val", "test")
CSV_COLUMNS = {  # what a column is for -> the names it may have
    "path": ("path", "image", "image_path", "file", "filename", "file_name"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help=(
            "class folders, or train/ val/ test/ with class folders in them; "
            "with --list or --csv, what paths are relative to (default: the file's own folder)"
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


def add_fraction_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-fraction",
        type=float,
        default=0.0,
        help="move this share of each class's training images to val",
    )
    parser.add_argument("--test-fraction", type=float, default=0.0, help="the same to test")


def make_source(arguments: argparse.Namespace) -> Source:
    given = [name for name in ("list", "csv") if getattr(arguments, name) is not None]
    if len(given) == 2:
        raise UserError("give --list or --csv, not both")
    if arguments.list is None and (arguments.val_list or arguments.test_list):
        raise UserError(
            "--val-list and --test-list go with --list, which names the training images"
        )
    notes = []
    if given:
        file: Path = getattr(arguments, given[0])
        root = arguments.source or file.parent
        if given[0] == "list":
            files = {
                "train": arguments.list,
                "val": arguments.val_list,
                "test": arguments.test_list,
            }
            classes, found, notes = from_lists(
                root, {split: file for split, file in files.items() if file is not None}
            )
        else:
            classes, found = _from_csv(file, root)
        for split, (names, _) in found.items():
            check_files(root, names, f"'{file}' ({split})")
    elif arguments.source is not None:
        root = arguments.source
        classes, found = _from_folders(root)
    else:
        raise UserError(
            "give --source DIR (class folders), --list FILE ('path label' lines) or --csv FILE"
        )
    found = hold_out(found, arguments)
    if arguments.imbalance_ratio is not None:
        found["train"], note = make_tail(found["train"], arguments)
        notes.append(note)
    return file_source(
        arguments.name or os.path.basename(os.path.realpath(arguments.out)),
        classes,
        root,
        found,
        notes,
    )


def file_source(
    name: str, classes: list[str], root: Path, found: dict[str, Rows], notes: list[str]
) -> Source:
    """A source of files below ``root``."""
    splits = {
        split: SourceSplit(labels, make_keys(names), ImageFiles(str(root), names))
        for split, (names, labels) in found.items()
    }
    files = [path for split in splits.values() for path in split.images.paths]
    return Source(name, classes, splits, files, notes)


def from_lists(root: Path, files: dict[str, Path]) -> tuple[list[str], dict[str, Rows], list[str]]:
    """Classes, rows by split, and notes on which of the lists are published ones."""
    found = {split: relative(read_list(file), root) for split, file in files.items()}
    number = check_labels(found, f"'{files['train']}'")
    return (
        class_names(*found["train"], number),
        found,
        [check_published(file) for file in files.values()],
    )


def _from_csv(file: Path, root: Path) -> tuple[list[str], dict[str, Rows]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = {name.strip().lower(): name for name in reader.fieldnames or [] if name}
            columns = {
                use: next((header[name] for name in names if name in header), None)
                for use, names in CSV_COLUMNS.items()
            }
            for use in ("path", "label"):
                if columns[use] is None:
                    raise UserError(
                        f"'{file}' has no column '{use}' (or {', '.join(CSV_COLUMNS[use][1:])}) in"
                        f" its header: {', '.join(header)}"
                    )
            rows = [
                (
                    reader.line_num,
                    {use: (row[name] or "").strip() for use, name in columns.items() if name},
                )
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the CSV '{file}': {error}") from error
    by_split: dict[str, tuple[list[str], list[str]]] = {}
    for line, row in rows:
        split = {"": "train", "training": "train", "validation": "val", "valid": "val"}.get(
            row.get("split", "").lower(), row.get("split", "").lower()
        )
        if not row["path"] or not row["label"] or split not in SPLITS:
            raise UserError(
                f"{file}, line {line}: needs a path, a label and (if at all) a split of"
                f" {', '.join(SPLITS)}"
            )
        check_inside(row["path"], f"{file}, line {line}")
        names, labels = by_split.setdefault(split, ([], []))
        names.append(row["path"])
        labels.append(row["label"])
    if "train" not in by_split:
        raise UserError(f"the CSV '{file}' has no training images")
    every = [label for _, labels in by_split.values() for label in labels]
    numbers = all(NUMBER.fullmatch(label) for label in every)
    classes = sorted(set(by_split["train"][1]))
    index = {label: place for place, label in enumerate(classes)}
    if numbers:
        index = {label: as_label(label) for label in every}
    unknown = next((label for label in every if label not in index), None)
    if unknown is not None:
        raise UserError(f"the class '{unknown}' in '{file}' has no training images")
    found = {
        split: relative((names, np.array([index[label] for label in labels], np.int64)), root)
        for split, (names, labels) in sorted(
            by_split.items(), key=lambda item: SPLITS.index(item[0])
        )
    }
    number = check_labels(found, f"'{file}'")
    return class_names(*found["train"], number) if numbers else classes, found


def _from_folders(root: Path) -> tuple[list[str], dict[str, Rows]]:
    if not (root / "train").is_dir():
        found = class_folders(root)
        return list(found), {"train": labeled_files(found, list(found), "")}
    folders = {split: class_folders(root / split) for split in SPLITS if (root / split).is_dir()}
    classes = list(folders["train"])
    return classes, {
        split: labeled_files(found, classes, split) for split, found in folders.items()
    }


def class_folders(root: Path) -> dict[str, list[str]]:
    """Class name -> its image files relative to ``root``, both sorted; a :class:`UserError` if
    there are none.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder '{root}'")
    found = {}
    for name in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        images = sorted(_image_files(root / name))
        if images:
            found[name] = [os.path.relpath(path, root) for path in images]
    if not found:
        raise UserError(
            f"'{root}' has no class folders with images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it"
        )
    return found


def _image_files(folder: Path) -> list[str]:
    return [
        os.path.join(path, name)
        for path, _, names in os.walk(folder, onerror=refuse_unreadable)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        and os.path.isfile(os.path.join(path, name))
    ]


def refuse_unreadable(error: OSError) -> None:
    """For os.walk, which would else leave out a folder that it cannot list."""
    raise UserError(f"cannot read '{error.filename}': {error.strerror}") from error


def labeled_files(found: dict[str, list[str]], classes: list[str], prefix: str) -> Rows:
    """All files, below the folder ``prefix``, and their labels as indices into ``classes``."""
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise UserError(
            f"class folder '{unknown[0]}' is not among the {len(classes)} training classes"
        )
    names = [os.path.join(prefix, path) for paths in found.values() for path in paths]
    index = {name: label for label, name in enumerate(classes)}
    return names, np.repeat(
        [index[name] for name in found], [len(paths) for paths in found.values()]
    ).astype(np.int64)


def hold_out(found: dict[str, Rows], arguments: argparse.Namespace) -> dict[str, Rows]:
    """Move a share of every class's training images to val and test, drawn with the seed; one at
    least stays.
    """
    fractions = {"val": arguments.val_fraction, "test": arguments.test_fraction}
    if any(not fraction >= 0 for fraction in fractions.values()) or sum(fractions.values()) >= 1:
        raise UserError(
            "--val-fraction and --test-fraction must be 0 or more and together less than 1"
        )
    names, labels = found["train"]
    generator = np.random.default_rng(arguments.seed)
    target = np.full(len(labels), "train", dtype=object)
    for label in np.unique(labels):
        indices = generator.permutation(np.flatnonzero(labels == label))
        for split, fraction in fractions.items():
            taken, indices = np.split(
                indices, [min(round(fraction * (labels == label).sum()), len(indices) - 1)]
            )
            target[taken] = split
    for split, fraction in fractions.items():
        if fraction and split in found:
            raise UserError(
                f"the source has a {split} split already: --{split}-fraction cannot make another"
            )
    moved = {}
    for split in SPLITS:
        if (target == split).any():
            moved[split] = pick((names, labels), np.flatnonzero(target == split))
    return {**moved, **{split: rows for split, rows in found.items() if split != "train"}}


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
    return pick(rows, chosen), note + (
        f"; {short} class(es) have fewer images than their share" if short else ""
    )


def pick(rows: Rows, indices: np.ndarray) -> Rows:
    """Some of the rows."""
    return [rows[0][index] for index in indices.tolist()], rows[1][indices]


RECIPES = {
    "folder": Recipe(
        "your own images: class folders, 'path label' lists or a CSV", add_arguments, make_source
    )
}
