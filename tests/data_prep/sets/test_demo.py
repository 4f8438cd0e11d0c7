"""The drawn sets: what they hold, and that equal seeds give equal bytes."""

import io

import numpy as np
from PIL import Image

from data_prep.reading.render import CLASSES, render_jpeg
from data_prep.reading.source import SourceSplit
from data_prep.reading.subsets import imbalanced_counts
from tests.helpers.sources import source_of

SIZES = ("--largest", 20, "--imbalance-ratio", 4, "--image-size", 32)


def contents(split: SourceSplit, number: int = 5) -> list[bytes]:
    """The first images of a split."""
    return [split.images.read(index) for index in range(number)]


def drawn(name: str, *words) -> SourceSplit:
    return source_of(name, *SIZES, *words).splits["train"]


def test_images_follow_from_the_seed_and_differ_between_splits_and_sets():
    source = source_of("demo", *SIZES, "--val", 5, "--test", 5)
    every = [contents(split) for split in source.splits.values()]
    every.append(contents(drawn("unlabeled_demo")))
    assert len({content for images in every for content in images}) == 4 * 5
    assert contents(drawn("demo")) == every[0] != contents(drawn("demo", "--seed", 1))
    assert contents(drawn("unlabeled_demo")) == every[3]


def test_unlabeled_images_are_so_many_and_as_long_tailed_and_only_data_prep_knows_what_they_show():
    split = drawn("unlabeled_demo", "--size-factor", 3)
    shown = np.bincount(split.columns["hidden_label"])
    labeled = np.array(imbalanced_counts(20, len(CLASSES), 4))
    assert split.labels is None and set(split.columns) == {"hidden_label"}
    assert abs(len(split.keys) - 3 * labeled.sum()) < len(CLASSES)
    np.testing.assert_allclose(shown / shown.sum(), labeled / labeled.sum(), atol=0.01)
    assert not any(name in key for key in split.keys for name in CLASSES)


def test_a_size_makes_images_square_and_without_one_they_are_of_many_sizes():
    sizes = {Image.open(io.BytesIO(content)).size for content in contents(drawn("demo"))}
    assert sizes == {(32, 32)}
    free = [Image.open(io.BytesIO(render_jpeg(3, 0, 0, index))).size for index in range(5)]
    assert len(set(free)) == 5 and all(96 <= side <= 256 for size in free for side in size)
