"""D_U from a scored pool: the likeliest images of each class that are no near-duplicates."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.sets.cifar import CIFAR10_CLASSES
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.scores import ScoreStore
from lt_train.data.tables import UNLABELED
from lt_train.errors import UserError
from tests.helpers.distances import LIMIT, moved, squared_distances
from tests.helpers.published import CIFAR10, labeled_counts, published_counts, published_draw
from tests.helpers.sources import pixels_of, png, prepared, source_of


@dataclass(frozen=True)
class Scored:
    """A sharded pool with its scores, and a prepared labeled set; rows are those of the pool."""

    pool: Path
    scores: Path
    test_set: Path
    pixels: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    near: np.ndarray  # by brute force

    @property
    def arguments(self) -> list:
        return ["--pool", self.pool, "--scores", self.scores, "--test-set", self.test_set]

    def best(self, per_class: int) -> list[int]:
        """Sample ids: of each class, the likeliest that are no near-duplicates; of equals, the
        first.
        """
        ids = []
        for label in range(10):
            clean = np.flatnonzero((self.labels == label) & ~self.near).tolist()
            ids += sorted(clean, key=lambda index: (-float(self.values[index]), index))[:per_class]
        return sorted(ids)


POOL = 900


@pytest.fixture(scope="module")
def scored(tmp_path_factory, prepare) -> Scored:
    """Every seventh image is a near-duplicate or just none; of class 3 they have the best scores,
    and of class 4 there is nothing else.
    """
    root = tmp_path_factory.mktemp("scored")
    generator = np.random.default_rng(8)
    test = generator.integers(0, 256, (20, 32, 32, 3), np.uint8)
    pixels = generator.integers(0, 256, (POOL, 32, 32, 3), np.uint8)
    labels = generator.integers(-1, 10, POOL).astype(np.int32)  # -1: could not be read
    values = np.round(generator.random(POOL), 2).astype(np.float32)  # with many equal ones
    doubtful = np.flatnonzero((np.arange(POOL) % 7 == 0) | (labels == 4))
    labels[doubtful[::3]] = 3
    pixels[doubtful] = [
        moved(generator, test[generator.integers(20)], LIMIT - int(generator.integers(-1, 6)))
        for _ in doubtful
    ]
    near = squared_distances(pixels, test).min(1) < LIMIT
    values[near & (labels == 3)] = 1.5
    np.save(root / "pool.npy", pixels)
    pool = prepared(source_of("tinyimages", "--source", root / "pool.npy"), root / "pool")
    write_scores(root / "scores", pool, labels, values)
    labeled = {"train": ([png(test[0])], [0]), "test": ([*map(png, test)], np.arange(20) % 10)}
    test_set = prepare(labeled, 10)
    return Scored(pool, root / "scores", test_set, pixels, labels, values, near)


def write_scores(
    folder: Path,
    pool: Path,
    labels: np.ndarray,
    values: np.ndarray,
    classes: int = 10,
    leave_out: int = 0,
) -> Path:
    store = ScoreStore(folder, read_dataset(pool))
    store.begin(CIFAR10_CLASSES[:classes], "sha256 of a model")
    ends = np.cumsum([0] + [shard.samples for shard in store.shards])
    for shard in range(len(store.shards) - leave_out):
        part = slice(ends[shard], ends[shard + 1])
        store.write(shard, labels[part], values[part])
    return folder


@pytest.mark.parametrize("per_class", [1, 12, 40, 10_000])
def test_the_likeliest_images_that_are_no_near_duplicates_are_kept(scored, per_class):
    expected = scored.best(per_class)
    source = source_of("unlabeled_cifar10", *scored.arguments, "--per-class", per_class, "--all")
    split = source.splits["train"]
    assert split.keys == [f"{index:08d}" for index in expected] and split.labels is None
    np.testing.assert_array_equal(split.columns["sourced_label"], scored.labels[expected])
    np.testing.assert_array_equal(split.columns["score"], scored.values[expected])
    for number in range(0, len(expected), 13):
        found = pixels_of(split.images.read(number))
        np.testing.assert_array_equal(found, scored.pixels[expected[number]])
    assert "withdrawn" in source.notes[0]
    assert f"{len(expected):,} images kept of {POOL} scored" in source.notes[1]


def test_the_selection_had_to_look_beyond_near_duplicates(scored):
    """What the test above relies on: far more than it first looks at, in class 3, and few others in
    class 4.
    """
    third = np.flatnonzero(scored.labels == 3)
    best = third[np.lexsort((third, -scored.values[third]))]
    assert scored.near[best[:36]].all() and (~scored.near[best]).sum() > 12
    assert 0 < (~scored.near & (scored.labels == 4)).sum() < 40
    assert len(np.unique(scored.values)) < 110 and (scored.labels == -1).any()


def test_d_u_is_drawn_from_the_kept_images_as_published(scored, tmp_path):
    kept = np.array(scored.best(12))
    options = ["--size-factor", "0.003", "--imbalance-ratio-unlabeled", 2]
    source = source_of("unlabeled_cifar10", *scored.arguments, "--per-class", 12, *options)
    counts = published_counts(labeled_counts(CIFAR10, 50, "exp"), 2, 0.003)
    expected = kept[published_draw(CIFAR10, scored.labels[kept], counts)]
    assert source.splits["train"].keys == [f"{index:08d}" for index in expected]
    assert len(expected) > 30
    manifest = Manifest(prepared(source, tmp_path / "out", 10), "train")
    places = [int(manifest.key(index)) for index in range(len(manifest))]
    assert sorted(places) == sorted(expected) and (manifest.labels == UNLABELED).all()
    np.testing.assert_array_equal(manifest.column("score"), scored.values[places])
    np.testing.assert_array_equal(manifest.column("sourced_label"), scored.labels[places])


def refused(scored: Scored, **changes) -> str:
    """What the recipe says."""
    found = {"pool": scored.pool, "scores": scored.scores, "test_set": scored.test_set} | changes
    options = {f"--{name.replace('_', '-')}": value for name, value in found.items()}
    given = [word for option in options.items() if option[1] is not None for word in option]
    with pytest.raises(UserError) as error:
        source_of("unlabeled_cifar10", *given, "--per-class", 12, "--all")
    return str(error.value)


def test_a_sharded_pool_needs_scores_and_a_test_set(scored, tmp_path):
    for option in ("scores", "test_set"):
        assert "needs --scores DIR" in refused(scored, **{option: None})
    assert f"'{tmp_path}' is not a prepared data set" in refused(scored, test_set=tmp_path)
    assert "has no split 'test'" in refused(scored, test_set=scored.pool)


def test_missing_or_other_scores_are_refused(scored, tmp_path):
    assert "holds no scores" in refused(scored, scores=tmp_path)
    some = write_scores(tmp_path / "some", scored.pool, scored.labels, scored.values, leave_out=2)
    assert "2 of 9 shards are not scored yet" in refused(scored, scores=some)
    nine = write_scores(tmp_path / "nine", scored.pool, scored.labels, scored.values, classes=9)
    assert "scores for 9 classes, not 10" in refused(scored, scores=nine)
    np.save(tmp_path / "other.npy", scored.pixels[1:])
    source = source_of("tinyimages", "--source", tmp_path / "other.npy")
    other = prepared(source, tmp_path / "other")
    folder = tmp_path / "scores_of_other"
    of_other = write_scores(folder, other, scored.labels[1:], scored.values[1:])
    assert "scores of another pool" in refused(scored, scores=of_other)


def test_images_of_another_size_are_refused(scored, prepare):
    images = [png(np.zeros((size, 32, 3), np.uint8)) for size in (32, 16)]
    test_set = prepare({"train": (images, [0, 1]), "test": (images, [0, 1])}, 10)
    assert "but an image has 32 x 16" in refused(scored, test_set=test_set)


@pytest.mark.parametrize("damage", ["gone", "cut", "overwritten"])
def test_a_pool_that_was_damaged_since_is_named(scored, tmp_path, damage):
    pool = tmp_path / "pool"
    pool.mkdir()
    for file in scored.pool.iterdir():
        (pool / file.name).hardlink_to(file)
    for tar in pool.glob("*.tar"):
        content = tar.read_bytes()
        tar.unlink()
        if damage != "gone":
            tar.write_bytes(content[:1000] if damage == "cut" else bytes(len(content)))
    assert f"cannot read an image of '{pool}'" in refused(scored, pool=pool)
