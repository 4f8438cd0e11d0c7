"""The suite's own images."""

import io

import numpy as np

from lt_train.benchmark.pictures import PHOTOGRAPH, QUALITY, make_sets, photograph
from lt_train.benchmark.rows import LARGE, SMALL
from lt_train.data.manifest import Manifest


def test_a_photographs_file_is_about_as_large_as_one():
    buffer = io.BytesIO()
    photograph(np.random.default_rng(1)).save(buffer, "JPEG", quality=QUALITY)
    assert 80_000 < buffer.tell() < 130_000


def test_sets_are_prepared_with_their_splits(tmp_path):
    said = []
    roots = make_sets(tmp_path, {LARGE: {"train": 3}, SMALL: {"train": 12, "val": 4}}, said.append)
    assert len(said) == 2
    large, train, val = (
        Manifest(roots[name], split)
        for name, split in ((LARGE, "train"), (SMALL, "train"), (SMALL, "val"))
    )
    assert (len(large), len(train), len(val)) == (3, 12, 4)
    assert (large.widths[0], large.heights[0]) == PHOTOGRAPH and {*train.widths} == {32}
    assert train.num_classes == 10
