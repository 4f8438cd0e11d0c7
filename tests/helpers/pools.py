"""Second sets for the tests: images without labels, and with columns that a classifier wrote."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from lt_train.data.manifest import Manifest
from lt_train.data.tables import add_columns
from tests.helpers.pictures import encode
from tests.helpers.sources import prepared

CLASSES = [f"class_{label}" for label in range(4)]
HIDDEN = np.array([0, 1, 2, 3, 0, 0, 1, 3, 2, 0, 1])  # of the unlabeled images, by key
PSEUDO = np.array([0, 1, 2, 3, 0, 1, -1, 3, 2, 0, 0])  # two are wrong and one image was damaged
CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.5, 0.95, 0.4, 0.0, 0.5, 0.6, 0.99, 0.3], np.float32)
POOL_SIZE = len(HIDDEN)


class Greys:
    """Image number i is of one grey level, 20 * i."""

    def __init__(self, image_format: str):
        self.image_format = image_format

    def read(self, index: int) -> bytes:
        return encode(Image.new("RGB", (32, 32), (20 * index,) * 3), self.image_format)


def prepare_pool(out: Path) -> Path:
    """11 images of no classes."""
    keys = [f"{index:02d}" for index in range(POOL_SIZE)]
    return prepared(Source("pool", [], {"train": SourceSplit(None, keys, Greys("PPM"))}), out, 4)


def prepare_pseudo_labeled(out: Path) -> Path:
    """11 images without labels, with the columns hidden_label, pseudo_label and confidence."""
    keys = [f"u{index:02d}" for index in range(POOL_SIZE)]
    columns = {"hidden_label": HIDDEN.astype(np.int32)}
    split = SourceSplit(None, keys, Greys("PNG"), columns, deal_by=HIDDEN)
    root = prepared(Source("unlabeled", CLASSES, {"train": split}), out, 4)
    order = numbers(Manifest(root, "train"))
    written = {
        "pseudo_label": pa.array(PSEUDO[order], pa.int32()),
        "confidence": pa.array(CONFIDENCE[order]),
    }
    add_columns(root, "train", written, "tests")
    return root


def numbers(part: Manifest) -> list[int]:
    """The number of each sample's image, by sample_id."""
    return [int(part.key(sample_id).removeprefix("u")) for sample_id in range(len(part))]
