"""Small data sets for all tests, made in temporary folders; nothing else is needed."""

import argparse
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from data_prep.sets import demo
from lt_train.data.image_files.check import DECODED, Checker
from tests.helpers.pictures import EXIF_ORIENTATION, ROTATED_BY_90, encode, smooth_image
from tests.helpers.sources import prepared

TESTS = Path(__file__).parent
LONG = ("slurm", "integration", "reliability", "golden")  # folders of the longest tests, in order


def pytest_configure():
    """One thread for each process that tests start: many run side by side, and threads that wait
    for a core spin. A shell's jobs in the background do not hear Ctrl-C; what tests start must.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The longest first, so that no process has them left when the others are done."""
    ranks = {folder: number for number, folder in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.relative_to(TESTS).parts[0], len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``--dist loadfile``, the tests on Slurm in one process too: jobs of two clusters would
    meet at their ports.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(super()._split_scope(nodeid))
            return str(file.parent if file.parent.name == "slurm" else file)

    return ByFile(config, log)


@dataclass(frozen=True)
class Encoded:
    """A split's images, already encoded."""

    contents: Sequence[bytes]

    def read(self, index: int) -> bytes:
        return self.contents[index]


@dataclass(frozen=True)
class SmallSet:
    """A prepared set of 32 x 32 images with known pixels and labels, in the order of their keys."""

    root: Path
    pixels: np.ndarray  # (N, 32, 32, 3) uint8
    labels: np.ndarray  # (N,)


@pytest.fixture(scope="session")
def prepare(tmp_path_factory) -> Callable[..., Path]:
    """Function that prepares a data set from ``{split: (encoded images, labels)}`` and returns its
    folder.

    A sample's key is its index in the given sequence, so that ``int(manifest.key(sample_id))``
    finds it again.
    """

    def make(
        splits: dict[str, tuple[Sequence[bytes], Sequence[int]]],
        classes: int = 0,
        samples_per_shard: int = 8,
        checker: Checker = DECODED,
    ) -> Path:
        out = tmp_path_factory.mktemp("prepared") / "set"
        classes = classes or 1 + max(max(labels) for _, labels in splits.values())
        parts = {}
        for name, (contents, labels) in splits.items():
            keys = [f"{index:05d}" for index in range(len(labels))]
            parts[name] = SourceSplit(np.asarray(labels), keys, Encoded(contents))
        source = Source("set", [f"class_{label}" for label in range(classes)], parts)
        return prepared(source, out, samples_per_shard, checker)

    return make


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory) -> Path:
    """The demo data set: 60 ... 3 training images a class, 5 for validation and test, in several
    shards a split.
    """
    sizes = argparse.Namespace(
        largest=60, imbalance_ratio=20, val=5, test=5, seed=0, image_size=None
    )
    return prepared(demo.make_source(sizes), tmp_path_factory.mktemp("demo") / "demo", 25)


@pytest.fixture(scope="session")
def small(prepare) -> SmallSet:
    """Long-tailed noise: 12, 6, 3 and 2 images of four classes, the same in all three splits."""
    labels = np.repeat(np.arange(4), [12, 6, 3, 2])
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    contents = [encode(Image.fromarray(image), "PNG") for image in pixels]
    root = prepare(dict.fromkeys(("train", "val", "test"), (contents, labels)))
    return SmallSet(root, pixels, labels)


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """Real-looking JPEGs by name, of all kinds that a decoder may meet."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_BY_90
    kinds = {
        "landscape": ((500, 375), {}),
        "portrait": ((333, 500), {}),
        "square": ((256, 256), {}),
        "smaller than the view": ((121, 90), {}),
        "panorama": ((900, 231), {}),
        "full chroma": ((410, 307), {"subsampling": 0}),
        "progressive": ((640, 427), {"progressive": True}),
        "grayscale": ((375, 500), {}),
        "rotated by EXIF": ((480, 360), {"exif": exif}),
    }
    generator = np.random.default_rng(0)
    images = {name: smooth_image(generator, *size) for name, (size, _) in kinds.items()}
    images["grayscale"] = images["grayscale"].convert("L")
    every = kinds.items()
    return {name: encode(images[name], "JPEG", quality=90, **own) for name, (_, own) in every}


@pytest.fixture
def damaged_copy(tmp_path) -> Callable[..., Path]:
    """Function that copies a data set and flips a bit in the middle of some images of a split."""

    def make(root: Path, sample_ids: Iterable[int] = (), split: str = "train") -> Path:
        copy = Path(shutil.copytree(root, tmp_path / "damaged"))
        rows = pa.ipc.open_file((copy / f"{split}.arrow").read_bytes()).read_all().to_pylist()
        for sample_id in sample_ids:
            row = rows[sample_id]
            with open(copy / f"{split}-{row['shard']:06d}.tar", "r+b") as shard:
                shard.seek(row["offset"] + row["size"] // 2)
                byte = shard.read(1)[0]
                shard.seek(-1, os.SEEK_CUR)
                shard.write(bytes([byte ^ 1]))
        return copy

    return make
