"""Sources, and sets prepared of them, that whole runs of data_prep share."""

import numpy as np
import pytest

from data_prep.reading.images import ppm
from tests.helpers.data_prep_runs import Little, Made, Original, noise, noise_png, succeed
from tests.helpers.pictures import encode, smooth_image
from tests.helpers.sources import fill


@pytest.fixture
def little(tmp_path) -> Little:
    images = {f"{number}.png": noise_png(number, 24) for number in range(6)}
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        fill(tmp_path / "images" / folder, images)
    return Little(tmp_path / "images")


LONG = 150  # bytes of a name that does not fit into a tar header
STRANGE_CLASSES = ["a b  c", "plain", "x" * LONG, "ねこ・犬"]  # sorted
STRANGE_STEMS = [
    "0",
    "a b",
    "naïve",
    "写真　一",
    "写真　二",
    "y" * LONG + "1",
    "y" * LONG + "2",
    "[bold]",
    "name.with.dots",
]


@pytest.fixture(scope="session")
def strange(tmp_path_factory) -> Made:
    """JPEGs under names with spaces, dots, brackets, of other scripts and longer than a tar header,
    in folders of such names.
    """
    root = tmp_path_factory.mktemp("strange")
    generator = np.random.default_rng(0)
    originals, contents = {"train": {}, "test": {}}, {}
    for split, found in originals.items():
        for label, name in enumerate(STRANGE_CLASSES):
            for stem in STRANGE_STEMS:
                content = encode(smooth_image(generator, 24, 16), "JPEG", quality=90)
                contents[f"{split}/{name}/{stem}.jpg"] = content
                found[f"{name}/{stem.replace('.', '_')}"] = Original(content, label)
    source = fill(root / "Quelle [alt] für ねこ", contents)
    out = root / "Ziel [neu] ü $1$ ねこ"
    arguments = ["folder", "--source", str(source), "--samples-per-shard", "10"]
    succeed(*arguments, "--out", out)
    return Made(out, arguments, "jpg", originals)


@pytest.fixture(scope="session")
def pool(tmp_path_factory) -> Made:
    """A pool of unlabeled raw pixels."""
    root = tmp_path_factory.mktemp("pool")
    pixels = np.stack([noise(number, 9)[:7] for number in range(25)])
    np.save(root / "pool.npy", pixels)
    arguments = ["tinyimages", "--source", str(root / "pool.npy"), "--samples-per-shard", "10"]
    succeed(*arguments, "--out", root / "set")
    images = {f"{number:08d}": Original(ppm(image), -1) for number, image in enumerate(pixels)}
    return Made(root / "set", arguments, "ppm", {"train": images})
