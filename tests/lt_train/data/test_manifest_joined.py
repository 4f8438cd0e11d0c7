"""The manifest of two sets sampled as one."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from lt_train.data.manifest import Manifest
from lt_train.data.run_data import check_bad_samples
from lt_train.errors import UserError
from tests.helpers.pools import CLASSES, HIDDEN, numbers


def join(labeled: Manifest, pool: Manifest) -> Manifest:
    """With the pool's hidden labels."""
    return labeled.joined(pool.relabeled(pool.column("hidden_label"), CLASSES))


@pytest.fixture
def parts(small, pseudo_labeled) -> list[Manifest]:
    return [Manifest(small.root, "train"), Manifest(pseudo_labeled, "train")]


@pytest.fixture
def both(parts) -> Manifest:
    return join(*parts)


def keys_of(part: Manifest) -> list[str]:
    return [part.key(index) for index in range(len(part))]


def test_both_sets_follow_each_other_with_labels_bytes_and_keys(both, parts, small):
    assert len(both) == 23 + 11 and both.classes == CLASSES
    assert keys_of(both) == keys_of(parts[0]) + keys_of(parts[1])
    own = numbers(both)
    assert both.labels.tolist() == [*small.labels[own[:23]], *HIDDEN[own[23:]]]
    greys = [np.full((32, 32, 3), 20 * number, np.uint8) for number in own[23:]]
    for sample_id, expected in enumerate([*small.pixels[own[:23]], *greys]):
        np.testing.assert_array_equal(Image.open(io.BytesIO(both.read(sample_id))), expected)
    assert not both.bad and both.bytes == sum(part.bytes for part in parts)
    checksums = []
    for shard, start, size in both.places(np.arange(34)):
        checksums.append(zlib.crc32(both.paths[shard].read_bytes()[start : start + size]))
    assert checksums == both._crc32.tolist()


def test_the_class_index_covers_both_sets(both, small):
    own = numbers(both)
    labels = np.array([*small.labels[own[:23]], *HIDDEN[own[23:]]])
    assert both.class_ids.tolist() == np.argsort(labels, kind="stable").tolist()
    assert both.class_counts.tolist() == [12 + 4, 6 + 3, 3 + 2, 2 + 2]
    assert both.class_offsets.tolist() == [0, 16, 25, 30, 34]


def content_of(part: Manifest) -> tuple:
    places = part.places(np.arange(len(part)))
    return places.tolist(), part.labels.tolist(), len(part.paths), part.bytes


def test_the_joined_sets_stay_as_they_were(parts):
    before = [content_of(part) for part in parts]
    parts[0].joined(parts[1])
    assert before == [content_of(part) for part in parts]


def test_a_joined_set_can_be_cut_and_relabeled(both):
    rows = np.array([1, 22, 23, 33])
    part = both.subset(rows)
    assert keys_of(part) == [both.key(index) for index in rows]
    contents = [bytes(part.read(index)) for index in range(4)]
    assert contents == [bytes(both.read(index)) for index in rows]
    assert part.bytes == sum(map(len, contents)) < both.bytes
    other = both.relabeled(np.full(34, 2), CLASSES).subset(slice(20, 26))
    assert other.class_counts.tolist() == [0, 0, 6, 0] and other.labels.tolist() == [2] * 6
    assert other.key(3) == both.key(23) and both.class_counts.sum() == 34


def test_a_column_that_only_one_side_has_is_one_clear_error(both):
    with pytest.raises(UserError, match="no column 'pseudo_label'"):
        both.column("pseudo_label")


@pytest.mark.parametrize("side", ["labeled", "unlabeled"])
def test_damage_on_either_side_is_replaced_within_the_class_and_named(
    side, small, pseudo_labeled, damaged_copy, caplog
):
    roots = {"labeled": small.root, "unlabeled": pseudo_labeled}
    root = roots[side] = damaged_copy(roots[side], [3])
    both = join(*(Manifest(root, "train") for root in roots.values()))
    bad = 3 if side == "labeled" else 26
    replacement, content = both.read_or_replace(bad)
    members = np.flatnonzero(both.labels == both.labels[bad]).tolist()
    assert replacement == members[(members.index(bad) + 1) % len(members)]
    assert bytes(content) == bytes(both.read(replacement))
    assert set(both.bad) == {bad} and both.key(bad) in caplog.text and str(root) in caplog.text
    with pytest.raises(UserError, match=f"1 of 34 samples of .*verify .*{root}"):
        check_bad_samples(1, both, 0.001)
