"""What is in a batch, by either loader: types and memory, places in the global batch, and which
samples are labeled.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_train.config.schema import Config, UnlabeledConfig, ViewConfig
from lt_train.data.batch import Batch
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.data.tables import UNLABELED
from lt_train.distributed import World
from tests.helpers.loading import WHOLE, configure, evaluate, grey_levels, keys, train


def test_batches_are_what_methods_expect(small, loader):
    (batch,) = train(configure(small.root, loader, ViewConfig(size=24)), views=2, last=1)
    assert len(batch) == 10 and len(batch.views) == 2
    assert batch.label.dtype == batch.sample_id.dtype == torch.int64
    assert batch.label.shape == batch.sample_id.shape == batch.place.shape == (10,)
    assert batch.place.dtype == np.int64
    assert batch.is_labeled.dtype == bool and batch.is_labeled.shape == (10,)
    for view in batch.views:
        assert view.shape == (10, 3, 24, 24) and view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)


# training


@pytest.fixture(scope="module")
def half_labeled(prepare, small) -> Path:
    """Every other sample of the small set without its label."""
    manifest = Manifest(small.root, "train")
    contents = [manifest.read(sample_id).tobytes() for sample_id in range(len(manifest))]
    labels = np.where(np.arange(len(manifest)) % 2, manifest.labels, UNLABELED)
    return prepare({"train": (contents, labels)}, classes=4)


@pytest.fixture(params=["one set", "both as one", "a share", "no labels", "half", "without any"])
def config(request, small, half_labeled, pool, pseudo_labeled, loader) -> Config:
    """Of each way to draw labeled and other samples."""
    taught = UnlabeledConfig(str(pseudo_labeled), share=None, label_column="pseudo_label")
    untaught = UnlabeledConfig(str(pool), share=0.6)
    root, method, unlabeled = {
        "one set": (small.root, "classifier", UnlabeledConfig()),
        "both as one": (small.root, "semi", taught),
        "a share": (small.root, "semi", replace(taught, share=0.4)),
        "no labels": (small.root, "fixmatch", untaught),
        "half": (half_labeled, "moco", UnlabeledConfig()),
        "without any": (pool, "moco", UnlabeledConfig()),
    }[request.param]
    return configure(root, loader, WHOLE, method=method, unlabeled=unlabeled)


def by_rank(config: Config, ranks: int) -> list[tuple[Batch, ...]]:
    """The ranks' parts of seven global batches, in which every sample of any set comes."""
    shares = [RunData(config, World(rank, ranks)).train(0, 7) for rank in range(ranks)]
    return list(zip(*shares, strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_places_of_all_ranks_are_those_of_the_global_batch(config, ranks):
    """Each once, in order on a rank, and of the sample that the plan has there."""
    planned = RunData(config, World())
    for step, parts in enumerate(by_rank(config, ranks)):
        places = np.concatenate([part.place for part in parts])
        assert sorted(places.tolist()) == list(range(10))
        assert all((np.diff(part.place) > 0).all() for part in parts)
        ids = torch.cat([part.sample_id for part in parts]).numpy()
        np.testing.assert_array_equal(planned.sample_ids(step)[places], ids)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_sample_is_labeled_where_its_label_is_the_first_sets_own(config, ranks):
    first = Manifest(config.data.root, "train")
    own = np.zeros(sum(map(len, RunData(config, World()).train_sets)), bool)
    own[: len(first)] = first.labels != UNLABELED
    seen = set()
    for parts in by_rank(config, ranks):
        for part in parts:
            np.testing.assert_array_equal(part.is_labeled, own[part.sample_id.numpy()])
            seen |= set(part.is_labeled.tolist())
    assert seen == set(own.tolist())


def test_a_share_of_each_batch_is_labeled_and_comes_first(small, pseudo_labeled, pool, loader):
    """On every rank; in the global batch, labeled samples have the first places."""
    taught = UnlabeledConfig(str(pseudo_labeled), share=0.4, label_column="pseudo_label")
    untaught = UnlabeledConfig(str(pool), share=0.4)
    for method, unlabeled in (("semi", taught), ("sourcing", untaught)):
        config = configure(small.root, loader, WHOLE, method=method, unlabeled=unlabeled)
        for parts in by_rank(config, 3):
            for part in parts:
                assert (np.diff(part.is_labeled.astype(int)) <= 0).all()
                np.testing.assert_array_equal(part.is_labeled, part.place < 6)


def test_a_damaged_samples_stand_in_has_its_place(small, damaged_copy, loader):
    """The whole set is one batch."""
    config = configure(small.root, loader, WHOLE, global_batch_size=23)
    (intact,) = train(config, last=1)
    root = damaged_copy(small.root, [2, 11])
    damaged = replace(config, data=replace(config.data, root=str(root)))
    for ranks in (1, 2):
        parts = [train(damaged, World(rank, ranks), last=1)[0] for rank in range(ranks)]
        places = np.concatenate([part.place for part in parts])
        ids = torch.cat([part.sample_id for part in parts]).numpy()
        assert places.tolist() == list(range(23))
        replaced = ids != intact.sample_id.numpy()
        assert sorted(intact.sample_id.numpy()[replaced]) == [2, 11]
        assert all(part.is_labeled.all() for part in parts)


# evaluation


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_places_of_a_split_are_its_sample_ids(small, damaged_copy, loader, ranks):
    """Those of damaged samples are left out."""
    bad = [4, 5, 6, 7, 21]
    config = configure(damaged_copy(small.root, bad, "val"), loader, WHOLE)
    places = []
    for rank in range(ranks):
        for batch in evaluate(config, World(rank, ranks)):
            assert batch.place.tolist() == batch.sample_id.tolist()
            assert batch.is_labeled.all() and len(batch.is_labeled) == len(batch)
            places += batch.place.tolist()
    assert places == [place for place in range(23) if place not in bad]


def test_five_crops_are_cut_from_the_centre_and_the_corners(small, loader):
    """On two ranks, of images that are not resized."""
    view = replace(WHOLE, size=24)
    config = configure(small.root, loader, WHOLE, eval_view=view)
    batches = []
    for rank in range(2):
        batches += RunData(config, World(rank, 2)).evaluate("val", crops=5)
    assert keys(config, batches, "val") == [*dict.fromkeys(keys(config, batches, "val"))]
    images = small.pixels[keys(config, batches, "val")]
    assert len(images) == 23
    for number, (top, left) in enumerate([(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)]):
        expected = images[:, top : top + 24, left : left + 24]
        np.testing.assert_allclose(grey_levels(batches, number), expected, rtol=0, atol=0.51)


def test_an_unlabeled_split_has_no_labeled_samples(pool, loader):
    """As MoCo's evaluation by neighbours reads it."""
    data = RunData(configure(pool, loader, WHOLE, method="moco"), World())
    batches = list(data.evaluate("train"))
    assert sum(map(len, batches)) == 11 and not any(batch.is_labeled.any() for batch in batches)
