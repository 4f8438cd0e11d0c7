"""iNaturalist 2018 and Places-LT, from annotations or lists."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lt_train.errors import UserError
from tests.helpers.sources import contents, fill, source_of, touch

INAT = {  # place -> label
    "train": {
        "train_val2018/Plantae/1/b.jpg": 1,
        "train_val2018/Aves/0/a.jpg": 0,
        "train_val2018/Plantae/1/c d.jpg": 1,
        "train_val2018/Aves/2/\N{SNOWMAN}.jpg": 2,
        **{f"train_val2018/Aves/0/{number}.jpg": 0 for number in range(7)},
    },
    "test": {"train_val2018/Aves/2/v.jpg": 2, "train_val2018/Aves/0/w.jpg": 0},
}


def rows_of(listed: dict[str, dict[str, int]]) -> dict[str, list[tuple[str, int, bytes]]]:
    """Key (class folder and file name), label and content of files that hold their own names."""
    found = {}
    for split, rows in listed.items():
        found[split] = [
            ("/".join(name.removesuffix(".jpg").split("/")[-2:]), label, name.encode())
            for name, label in rows.items()
        ]
    return found


def lines_of(rows: dict[str, int]) -> bytes:
    """A list."""
    return "".join(f"{name} {label}\n" for name, label in rows.items()).encode()


def make_inat(root: Path) -> Path:
    fill(root, {name: name.encode() for rows in INAT.values() for name in rows})
    for split, file, first in (("train", "train2018.json", 0), ("test", "val2018.json", 1000)):
        images, annotations = [], []
        for place, (name, label) in enumerate(INAT[split].items()):
            number = first + 7 * place
            images.append({"id": number, "file_name": name, "width": 800, "height": 600})
            annotations.append({"id": number, "image_id": number, "category_id": label})
        categories = [
            {"id": label, "name": f"species {label}", "supercategory": "x"} for label in (2, 0, 1)
        ]
        content = {
            "info": {"year": 2018},
            "images": images,
            "annotations": annotations[::-1],
            "categories": categories,
        }
        (root / file).write_text(json.dumps(content))
    return root


def make_inat_lists(folder: Path) -> Path:
    lists = {
        "iNaturalist18_train.txt": lines_of(INAT["train"]),
        "iNaturalist18_val.txt": lines_of(INAT["test"]),
    }
    return fill(folder, lists)


def test_inaturalist_is_the_same_from_json_and_from_lists(tmp_path):
    root = make_inat(tmp_path / "inat")
    from_json = source_of("inat18", "--source", root)
    lists = make_inat_lists(tmp_path / "lists")
    from_lists = source_of("inat18", "--source", root, "--lists", lists)
    assert contents(from_json) == contents(from_lists) == rows_of(INAT)
    assert from_json.classes == ["species 0", "species 1", "species 2"]
    assert from_lists.classes == ["0", "1", "2"]
    assert any("validation images are the split 'test'" in note for note in from_json.notes)
    assert from_json.notes[-1] == from_lists.notes[-1]
    assert sum("NOT the published list" in note for note in from_lists.notes) == 2


def test_lists_beside_the_images_are_found(tmp_path):
    root = make_inat(tmp_path)
    expected = contents(source_of("inat18", "--source", root))
    make_inat_lists(root)
    (root / "val2018.json").unlink()
    assert contents(source_of("inat18", "--source", root)) == expected


def test_a_val_fraction_of_inaturalist_comes_from_training_images(tmp_path):
    root = make_inat(tmp_path)
    whole, parts = (
        contents(source_of("inat18", "--source", root, "--val-fraction", share))
        for share in (0, 0.5)
    )
    assert sorted(parts) == ["test", "train", "val"] and parts["test"] == whole["test"]
    assert sorted(parts["train"] + parts["val"]) == sorted(whole["train"])
    assert np.bincount([label for _, label, _ in parts["val"]], minlength=3).tolist() == [4, 1, 0]
    with pytest.raises(UserError, match="has a test split already"):
        source_of("inat18", "--source", root, "--test-fraction", 0.5)


def edited(content: dict, **changes) -> bytes:
    return json.dumps(content | changes).encode()


def recategorized(
    content: dict, change: Callable[[int], float | None], number: int | None = None
) -> bytes:
    """With the categories of the first ``number`` annotations changed."""
    rows = content["annotations"]
    for row in rows[:number]:
        row["category_id"] = change(row["category_id"])
    return edited(content, annotations=rows)


def renamed(content: dict, name: str) -> bytes:
    """With all images under one name."""
    return edited(content, images=[row | {"file_name": name} for row in content["images"]])


def without(content: dict, key: str) -> bytes:
    return json.dumps({name: value for name, value in content.items() if name != key}).encode()


JSON_MISTAKES = {
    "cut off": lambda content: json.dumps(content).encode()[:-20],
    "no object": lambda content: b"[1, 2]",
    "no images": lambda content: edited(content, images=[]),
    "no annotations": lambda content: without(content, "annotations"),
    "an image without annotation": (
        lambda content: edited(content, annotations=content["annotations"][1:])
    ),
    "not UTF-8": lambda content: b'{"images": "\xff"}',
    "endless nesting": lambda content: b'{"images": ' + b"[" * 100_000,
    "a category of any size": lambda content: recategorized(content, lambda label: 10**30),
    "an infinite category": lambda content: recategorized(content, lambda label: float("inf")),
    "no category": lambda content: recategorized(content, lambda label: None),
    "categories from 1": lambda content: recategorized(content, lambda label: label + 1),
    "a negative category": lambda content: recategorized(content, lambda label: -1, 1),
    "a path that leaves": lambda content: renamed(content, "../x.jpg"),
    "a path elsewhere": lambda content: renamed(content, "/etc/passwd"),
}


@pytest.mark.parametrize("mistake", JSON_MISTAKES)
def test_a_bad_annotation_file_is_refused(tmp_path, mistake):
    touch(tmp_path, "x.jpg")
    file = make_inat(tmp_path / "inat") / "train2018.json"
    file.write_bytes(JSON_MISTAKES[mistake](json.loads(file.read_text())))
    messages = {
        "a path that leaves": "train2018.json: the path '../x.jpg' leaves",
        "a path elsewhere": "/etc/passwd.*lies outside",
        "an image without annotation": (
            r"train2018.json': 1 of its 11 images have no annotation, first .*\.jpg \(id \d+\)"
        ),
        "no annotations": "train2018.json' is not iNaturalist's .*: it lacks 'annotations'",
    }
    with pytest.raises(UserError, match=messages.get(mistake, "train2018.json")):
        source_of("inat18", "--source", tmp_path / "inat")


def test_inaturalist_without_annotations_or_images_is_refused(tmp_path):
    root = make_inat(tmp_path / "inat")
    for name in list(INAT["train"])[:3]:
        (root / name).unlink()
    with pytest.raises(UserError, match="3 of the 11 images of .*train2018.json.*Plantae/1/b.jpg"):
        source_of("inat18", "--source", root)
    (root / "train2018.json").unlink()
    message = "has neither train2018.json and val2018.json nor iNaturalist18_train.txt"
    with pytest.raises(UserError, match=message):
        source_of("inat18", "--source", root)


PLACES = {
    "train": {"train/airfield/1.jpg": 0, "train/zoo/1.jpg": 1, "train/airfield/2.jpg": 0},
    "val": {"val/airfield/9.jpg": 0},
    "test": {"val_256/Places365_val_00000001.jpg": 1, "val_256/Places365_val_00000002.jpg": 0},
}


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path]:
    """The images and the lists."""
    fill(tmp_path / "images", {name: name.encode() for rows in PLACES.values() for name in rows})
    lists = {f"Places_LT_{split}.txt": lines_of(rows) for split, rows in PLACES.items()}
    fill(tmp_path / "lists", lists)
    return tmp_path / "images", tmp_path / "lists"


def test_places_lt_has_the_listed_images(places):
    source = source_of("places_lt", "--source", places[0], "--lists", places[1])
    assert (source.name, source.classes) == ("places_lt", ["airfield", "zoo"])
    assert contents(source) == rows_of(PLACES)
    starts = [note[:15] for note in source.notes]
    assert starts == ["Places_LT_train", "Places_LT_val.t", "Places_LT_test."]


def test_places_lt_needs_its_training_list_and_images(places):
    images, folder = places
    (folder / "Places_LT_test.txt").unlink()
    source = source_of("places_lt", "--source", images, "--lists", folder)
    assert list(source.splits) == ["train", "val"]
    (images / "val/airfield/9.jpg").unlink()
    with pytest.raises(UserError, match="1 of the 1 images of .*Places_LT_val.txt"):
        source_of("places_lt", "--source", images, "--lists", folder)
    (folder / "Places_LT_train.txt").unlink()
    message = "has no Places_LT_train.txt; name the folder of the published lists with --lists"
    with pytest.raises(UserError, match=message):
        source_of("places_lt", "--source", images, "--lists", folder)
