"""Batches depend on nothing but the step: by either loader, on any number of ranks, from any step
on.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lt_train.config.schema import SamplerConfig, UnlabeledConfig, ViewConfig
from lt_train.data.manifest import Manifest
from lt_train.data.tables import UNLABELED
from lt_train.distributed import World
from tests.helpers.loading import (
    JITTER,
    RANDAUGMENT,
    WHOLE,
    all_ranks,
    assert_same_batches,
    configure,
    evaluate,
    grey_levels,
    keys,
    labels,
    sample_ids,
    train,
)

SAMPLERS = [SamplerConfig(), SamplerConfig("class_balanced", 2)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_both_loaders_give_the_same_samples(small, sampler):
    """The plan alone decides; class-balanced batches of 10 hold 2 or 4 of each of the 4 classes."""
    view = ViewConfig(size=32)
    config = configure(small.root, "dali", view, sampler=sampler)
    dali, resident = train(config), train(configure(small.root, "resident", view, sampler=sampler))
    assert sample_ids(dali) == sample_ids(resident)
    assert labels(dali) == labels(resident) == small.labels[keys(config, dali)].tolist()
    if sampler.name == "class_balanced":
        assert np.bincount(labels(dali)).tolist() == [10] * 4


STRONG = {**RANDAUGMENT, "cutout": 0.5}
OPTIONS = {"plain": {}, "jitter": JITTER, "strong": STRONG}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_views_do_not_depend_on_the_number_of_ranks(small, loader, ranks, options):
    """10 samples on 3 ranks are 3, 3 and 4."""
    config = configure(small.root, loader, ViewConfig(size=32, **OPTIONS[options]))
    assert_same_batches(all_ranks(config, ranks, views=2), train(config, views=2))


def test_views_do_not_depend_on_the_batch_size(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32, **JITTER, **STRONG))
    by_ten = train(config, views=2)
    by_twenty = train(replace(config, global_batch_size=20), views=2, last=2)
    assert sample_ids(by_ten) == sample_ids(by_twenty)
    for view in (0, 1):
        np.testing.assert_array_equal(grey_levels(by_ten, view), grey_levels(by_twenty, view))


@pytest.mark.parametrize("ranks", [1, 3])
def test_later_views_follow_second_view(small, loader, ranks):
    """In size, crop and operations; the first view stays what it is."""
    weak, strong = replace(WHOLE, flip_probability=0.5), ViewConfig(size=24, **RANDAUGMENT)
    config = configure(small.root, loader, weak, second_view=strong)
    batches = all_ranks(config, ranks, views=3)
    shapes = [(10, 3, 32, 32), (10, 3, 24, 24), (10, 3, 24, 24)]
    assert [tuple(view.shape) for view in batches[0].views] == shapes
    of_weak, of_strong = (
        train(replace(config, view=view, second_view=None), views=3) for view in (weak, strong)
    )
    np.testing.assert_array_equal(grey_levels(batches), grey_levels(of_weak))
    for view in (1, 2):
        np.testing.assert_array_equal(grey_levels(batches, view), grey_levels(of_strong, view))
    assert (grey_levels(batches, 1) != grey_levels(batches, 2)).any()


def test_a_second_view_like_the_first_changes_nothing(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32, **JITTER, **STRONG))
    same = replace(config, second_view=config.view)
    assert_same_batches(train(same, views=2), train(config, views=2))


def test_labeled_and_unlabeled_samples_have_the_same_views(small, loader):
    """The second view of either half is smaller and augmented; any number of ranks sees the same
    pixels of each.
    """
    unlabeled = UnlabeledConfig(root=str(small.root), split="val")
    second = ViewConfig(size=24, **RANDAUGMENT)
    config = configure(small.root, loader, WHOLE, second_view=second, unlabeled=unlabeled)
    for one, other in zip(train(config, views=2), all_ranks(config, 2, views=2), strict=True):
        assert [tuple(view.shape) for view in one.views] == [(10, 3, 32, 32), (10, 3, 24, 24)]
        assert int((one.label == UNLABELED).sum()) == 5
        orders = [batch.sample_id.argsort() for batch in (one, other)]
        for views in zip(one.views, other.views):
            assert torch.equal(*(view[order] for view, order in zip(views, orders)))


def test_starting_at_a_step_equals_skipping_those_before(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32, **JITTER))
    assert_same_batches(train(config, views=2, first=3, last=6), train(config, views=2, last=6)[3:])


def test_a_seed_gives_the_same_batches_again_and_another_seed_others(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32))
    batches = train(config)
    assert_same_batches(train(config), batches)
    assert sample_ids(train(replace(config, seed=6))) != sample_ids(batches)


@pytest.mark.parametrize(("samples", "ranks"), [(7, 4), (2, 4), (7, 1)])
def test_evaluation_covers_every_sample_once_over_all_ranks(small, prepare, loader, samples, ranks):
    """In sample_id order, also where a rank's share is empty."""
    manifest = Manifest(small.root, "train")
    contents = [manifest.read(sample_id).tobytes() for sample_id in range(samples)]
    config = configure(prepare({"val": (contents, [0] * samples)}), loader, WHOLE)
    batches = sum((evaluate(config, World(rank, ranks)) for rank in range(ranks)), [])
    assert sample_ids(batches) == list(range(samples))
    assert all(0 < len(batch) <= 4 for batch in batches)


# damage


def test_training_replaces_a_damaged_sample(small, damaged_copy, loader):
    """An epoch in one batch: the next of its class comes twice, with its own pixels; ranks agree on
    it.
    """
    members = np.flatnonzero(Manifest(small.root, "train").labels == 1).tolist()
    config = configure(small.root, loader, WHOLE, global_batch_size=23)
    intact = train(config, last=1)
    planned = sample_ids(intact)
    expected = [members[3] if wanted == members[2] else wanted for wanted in planned]
    root = damaged_copy(small.root, [members[2]])
    config = replace(config, data=replace(config.data, root=str(root)))
    batches = train(config, last=1)
    assert sample_ids(batches) == expected and labels(batches) == labels(intact)
    pixels = small.pixels[keys(config, batches)]
    np.testing.assert_allclose(grey_levels(batches), pixels, rtol=0, atol=1e-4)
    by_rank = [train(config, World(rank, 2), last=1) for rank in range(2)]
    assert sample_ids(sum(by_rank, [])) == expected


BAD = {"one": [5], "a whole batch": [4, 5, 6, 7], "the last batch": [20, 21, 22]}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_evaluation_leaves_out_damaged_samples(small, damaged_copy, loader, bad):
    config = configure(damaged_copy(small.root, bad, "val"), loader, WHOLE)
    batches = evaluate(config)
    assert sample_ids(batches) == [sample_id for sample_id in range(23) if sample_id not in bad]
    pixels = small.pixels[keys(config, batches, "val")]
    np.testing.assert_allclose(grey_levels(batches), pixels, rtol=0, atol=1e-4)
