"""iNaturalist 2018 and Places-LT: folders of images with the official JSON files or the published
lists.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from data_prep.reading.folders import file_source
from data_prep.reading.lists import (
    Rows,
    check_files,
    check_inside,
    check_labels,
    read_lists,
    relative,
)
from data_prep.reading.source import Recipe, Source
from data_prep.reading.subsets import add_fraction_arguments, hold_out
from lt_train.data.image_files.walk import PassedOver
from lt_train.errors import UserError, unreadable

INAT_LISTS = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}
INAT_JSON = {"train": "train2018.json", "test": "val2018.json"}
INAT_NOTE = (
    "iNaturalist's validation images are the split 'test', on which results are reported;"
    " --val-fraction holds out training images to choose by"
)
PLACES_LISTS = {split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")}


def add_inat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"holds train_val2018/ and {' and '.join(INAT_JSON.values())}",
    )
    parser.add_argument(
        "--lists",
        type=Path,
        metavar="DIR",
        help=f"holds {' and '.join(INAT_LISTS.values())}, in place of the JSON files",
    )
    add_fraction_arguments(parser)


def make_inat_source(arguments: argparse.Namespace) -> Source:
    root: Path = arguments.source
    files = {split: root / name for split, name in INAT_JSON.items()}
    if arguments.lists is None and all(file.is_file() for file in files.values()):
        notes: list[str] = []
        classes, found = _read_json(files)
    else:
        instead = f"neither {' and '.join(INAT_JSON.values())} nor "
        files = _lists(arguments.lists or root, INAT_LISTS, instead)
        classes, found, notes = read_lists(root, files)
    return _source("inat18", root, classes, found, files, [*notes, INAT_NOTE], arguments)


def add_places_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="Places365: what the lists' paths are relative to",
    )
    parser.add_argument(
        "--lists",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"holds {', '.join(PLACES_LISTS.values())}",
    )
    add_fraction_arguments(parser)


def make_places_source(arguments: argparse.Namespace) -> Source:
    files = _lists(arguments.lists, PLACES_LISTS)
    classes, found, notes = read_lists(arguments.source, files)
    return _source("places_lt", arguments.source, classes, found, files, notes, arguments)


def _source(
    name: str,
    root: Path,
    classes: list[str],
    found: dict[str, Rows],
    files: dict[str, Path],
    notes: list[str],
    arguments: argparse.Namespace,
) -> Source:
    for split, (names, _) in found.items():
        check_files(root, names, f"'{files[split]}'")
    return file_source(name, classes, root, hold_out(found, arguments), notes, PassedOver())


def _lists(folder: Path, names: dict[str, str], instead: str = "") -> dict[str, Path]:
    """The lists' paths; the training list is needed, the others may lack."""
    files = {split: folder / name for split, name in names.items() if (folder / name).is_file()}
    if "train" not in files:
        raise UserError(
            f"'{folder}' has {instead or 'no '}{names['train']}; name the folder of the published"
            " lists with --lists"
        )
    return files


def _read_json(files: dict[str, Path]) -> tuple[list[str], dict[str, Rows]]:
    found, classes = {}, {}
    for split, file in files.items():
        try:
            content = json.loads(file.read_bytes())
            images = content["images"]
            label_of = {row["image_id"]: int(row["category_id"]) for row in content["annotations"]}
            bare = [image for image in images if image["id"] not in label_of]
            if bare:
                raise UserError(
                    f"'{file}': {len(bare)} of its {len(images)} images have no annotation, first"
                    f" {bare[0]['file_name']} (id {bare[0]['id']}); is it whole, and of {split}"
                    " images?"
                )
            names = [str(image["file_name"]) for image in images]
            labels = np.array([label_of[image["id"]] for image in images], np.int64)
            for category in content.get("categories", []):
                classes[int(category["id"])] = str(category["name"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise unreadable(
                error, f"'{file}' is not iNaturalist's annotation file: {_problem(error)}"
            ) from error
        if not names:
            raise UserError(f"'{file}' names no images")
        for name in names:
            check_inside(name, str(file))
        found[split] = relative((names, labels), file.parent)
    number = check_labels(found, f"'{files['train']}'")
    return [classes.get(label, str(label)) for label in range(number)], found


def _problem(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"


RECIPES = {
    "inat18": Recipe(
        "iNaturalist 2018 from its JSON files or the published lists",
        add_inat_arguments,
        make_inat_source,
    ),
    "places_lt": Recipe(
        "Places-LT from Places365's folders and the published lists",
        add_places_arguments,
        make_places_source,
    ),
}
