"""What a large second set takes of a rank's memory: some bytes a sample, whatever it holds."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lt_train.config.schema import Config, DataConfig, UnlabeledConfig
from lt_train.data.dataset import Dataset, Shard, Split, write_dataset
from lt_train.data.run_data import RunData
from lt_train.data.tables import MANIFEST_SCHEMA, write_manifest
from lt_train.distributed import World

SAMPLES, SHARDS, CLASSES = 400_000, 8, 10
SCHEMA = pa.schema([*MANIFEST_SCHEMA, ("pseudo_label", pa.int32()), ("confidence", pa.float32())])
USES = {  # of the second set -> the bytes a sample that may be taken
    "no label": ({"label_column": None, "share": 0.5}, 0.5),
    "every label": ({"label_column": "pseudo_label", "share": 0.5}, 0.5),
    "sure labels": ({"label_column": "pseudo_label", "min_confidence": 0.5}, 4.5),
    "a draw": ({"label_column": "pseudo_label", "max_samples": SAMPLES // 2}, 4.5),
}


def rows() -> Iterator[pa.Table]:
    generator, size = np.random.default_rng(0), SAMPLES // SHARDS
    for shard in range(SHARDS):
        columns = {name: np.ones(size, np.int64) for name in SCHEMA.names}
        columns |= {
            "key": [f"{shard}/{row}" for row in range(size)],
            "shard": np.full(size, shard),
            "label": np.full(size, -1),
            "pseudo_label": generator.integers(0, CLASSES, size),
            "confidence": generator.random(size),
        }
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in SCHEMA]
        yield pa.table(arrays, schema=SCHEMA)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """A pool of many samples whose shards nobody reads."""
    root = tmp_path_factory.mktemp("pool")
    counts = write_manifest(root, "train", rows(), SCHEMA, CLASSES)
    shards = [
        Shard(f"{number}.tar", SAMPLES // SHARDS, 10**6, "0" * 64) for number in range(SHARDS)
    ]
    classes = [f"class {number}" for number in range(CLASSES)]
    write_dataset(root, Dataset("pool", classes, {"train": Split(SAMPLES, counts, shards)}))
    return root


@pytest.mark.parametrize("use", USES)
def test_a_second_set_takes_a_few_bytes_a_sample(use, pool):
    settings, most = USES[use]
    data = DataConfig(root=str(pool))
    config = Config(data=data, unlabeled=UnlabeledConfig(root=str(pool), **settings))
    run = RunData(config, World())
    assert len(run.train_set) == SAMPLES, "it is opened before"
    tracemalloc.start()
    try:
        part = run.unlabeled_set
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    verified = len(part)  # a byte a sample, of which the kernel gives what is written to
    assert kept - verified < most * len(part) + 100_000, f"{(kept - verified) / len(part):.1f}"
    assert part.places(np.arange(3)).shape == (3, 3) and part.key(2) == part.key(np.int64(2))
