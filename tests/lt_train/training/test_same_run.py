"""What a data set is known again by."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from lt_train.config.schema import Config, DataConfig, UnlabeledConfig
from lt_train.data.run_data import RunData
from lt_train.data.tables import add_columns
from lt_train.distributed import World
from lt_train.training.same_run import data_digests
from tests.helpers.pictures import encode
from tests.helpers.pools import POOL_SIZE, prepare_pseudo_labeled


def digests(data: Path, **unlabeled) -> dict[str, str]:
    config = Config(data=DataConfig(root=str(data)), unlabeled=UnlabeledConfig(**unlabeled))
    return data_digests(RunData(config, World()))


def greys(prepare, levels: list[int], labels: list[int], classes: int = 2, **more) -> Path:
    """A set of images of one grey level each."""
    contents = [encode(Image.new("RGB", (8, 8), (level,) * 3), "PNG") for level in levels]
    return prepare(dict.fromkeys(("train", "val"), (contents, labels)), classes, **more)


def test_a_set_is_the_same_wherever_it_lies_and_however_it_is_cut(prepare, tmp_path):
    root = greys(prepare, [1, 2, 3], [0, 0, 1])
    moved = shutil.copytree(root, tmp_path / "moved")
    assert digests(moved) == digests(root)
    assert list(digests(moved)) == ["data.root"]


def test_other_images_labels_and_classes_are_another_set(prepare):
    first = digests(greys(prepare, [1, 2, 3], [0, 0, 1]))
    assert digests(greys(prepare, [1, 2, 3], [0, 0, 1])) == first
    others = [
        greys(prepare, [1, 2, 4], [0, 0, 1]),
        greys(prepare, [1, 2, 3], [0, 1, 1]),
        greys(prepare, [1, 2, 3], [0, 0, 1], classes=3),
    ]
    found = [digests(other)["data.root"] for other in others]
    assert len({*found, first["data.root"]}) == 4


def test_of_a_second_set_what_is_used_counts(small, tmp_path):
    root = prepare_pseudo_labeled(tmp_path / "pool")
    unlabeled = {"root": str(root)}
    with_labels = {**unlabeled, "label_column": "pseudo_label", "min_confidence": 0.5}
    before, labeled = digests(small.root, **unlabeled), digests(small.root, **with_labels)
    assert before.keys() == labeled.keys() == {"data.root", "unlabeled.root"}
    add_columns(root, "train", {"other": pa.array(np.zeros(POOL_SIZE, np.int32))}, "tests")
    assert digests(small.root, **unlabeled) == before
    assert digests(small.root, **with_labels) == labeled
    add_columns(root, "train", {"pseudo_label": pa.array(np.ones(POOL_SIZE, np.int32))}, "tests")
    assert digests(small.root, **unlabeled) == before
    changed = digests(small.root, **with_labels)
    assert changed["data.root"] == labeled["data.root"]
    assert changed["unlabeled.root"] != labeled["unlabeled.root"]
