"""Plans: how samples are dealt over shards, and which folders are left alone."""

import numpy as np
import pytest

from data_prep.writing.plan import is_complete
from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from tests.helpers.data_prep_runs import tree
from tests.helpers.noise_sets import COUNTS, interrupt, plan_noise, run


def test_every_class_is_dealt_over_as_many_shards_as_it_can_reach(tmp_path):
    """The class of 5 lies in 5 of the 6 shards; no shard has more than one sample above its share
    of any class.
    """
    run(plan_noise(tmp_path / "noise"))
    manifest = Manifest(tmp_path / "noise", "train")
    shard_of = np.repeat(np.arange(6), [shard.samples for shard in manifest.shards])
    rows = [np.bincount(shard_of[manifest.labels == label], minlength=6) for label in range(4)]
    table = np.array(rows)
    assert table.sum(1).tolist() == COUNTS["train"]
    np.testing.assert_array_equal(table.max(1), [4, 2, 1, 1])
    assert table.min(1).tolist() == [3, 1, 0, 0]
    assert table.sum(0).max() <= 6


def test_samples_are_not_sorted_by_class_within_a_shard(tmp_path):
    run(plan_noise(tmp_path / "noise", samples_per_shard=35))
    labels = Manifest(tmp_path / "noise", "train").labels
    assert (np.diff(labels) < 0).sum() > 5


def test_another_seed_deals_otherwise(tmp_path, undisturbed):
    run(plan_noise(tmp_path / "noise", seed=1))
    assert tree(tmp_path / "noise")["train-000000.tar"] != undisturbed["train-000000.tar"]


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples_per_shard": 5}])
def test_a_folder_with_another_data_set_is_left_alone(tmp_path, undisturbed, change):
    complete, begun = tmp_path / "complete", tmp_path / "begun"
    run(plan_noise(complete))
    with pytest.raises(UserError, match="another data set"):
        is_complete(plan_noise(complete, **change))
    assert tree(complete) == undisturbed
    interrupt(begun, 3)
    before = tree(begun)
    with pytest.raises(UserError, match="start of another data set"):
        run(plan_noise(begun, **change))
    assert tree(begun) == before


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        run(plan_noise(tmp_path))
    assert tree(tmp_path) == before
