"""Samplers for PyTorch's DataLoader: training's own draws, on any number of ranks."""

import json
from collections.abc import Callable
from itertools import chain

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader

from lt_train.config.schema import SAMPLERS, Config, SamplerConfig
from lt_train.data.batch_plan import TrainPlan
from lt_train.data.image_dataset import ImageDataset
from lt_train.data.manifest import Manifest
from lt_train.data.order import ByClassShares
from lt_train.data.samplers import (
    ClassBalancedSampler,
    EffectiveNumberSampler,
    ElasticSampler,
    InstanceBalancedSampler,
    ProgressivelyBalancedSampler,
    SquareRootSampler,
)
from lt_train.distributed import World
from lt_train.errors import UserError

SIZES = [50, 20, 0, 7, 4, 1, 3]  # class 2 has no sample
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), SIZES))
N, GLOBAL, EPOCHS, SEED = len(LABELS), 6, 5, 3
MADE: dict[str, Callable[..., ElasticSampler]] = {
    "instance_balanced": InstanceBalancedSampler,
    "class_balanced": ClassBalancedSampler,
    "square_root": SquareRootSampler,
    "progressively_balanced": lambda data, **settings: ProgressivelyBalancedSampler(
        data, EPOCHS, **settings
    ),
    "effective_number": lambda data, **settings: EffectiveNumberSampler(data, 0.9, **settings),
}


@pytest.fixture(params=MADE)
def make(request) -> Callable[..., ElasticSampler]:
    return MADE[request.param]


def epoch_of(sampler: ElasticSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def batches(sampler: ElasticSampler) -> list[list[int]]:
    """This rank's, as a DataLoader makes them."""
    size = GLOBAL // sampler.num_replicas
    loader = DataLoader(range(sampler.size), size, sampler=sampler, drop_last=sampler.drop_last)
    return [batch.tolist() for batch in loader]


def global_batches(
    make: Callable[..., ElasticSampler], ranks: int, epoch: int, state: dict | None = None
) -> list[list[int]]:
    """Sorted: which rank has which sample is nobody's business."""
    shares = []
    for rank in range(ranks):
        settings = {"seed": SEED, "num_replicas": ranks, "rank": rank, "drop_last": True}
        sampler = make(LABELS, **settings)
        if state is not None:
            sampler.load_state_dict(state)
        sampler.set_epoch(epoch)
        shares.append(batches(sampler))
    return [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]


# what is drawn


@pytest.mark.parametrize("name", MADE)
def test_draws_are_those_of_training(name, small):
    """Positions of three epochs, against the plan of ``lt_train``'s own batches."""
    config = Config(
        sampler=SamplerConfig(name, beta=0.9), seed=SEED, epochs=EPOCHS, global_batch_size=23
    )
    manifest, dataset = Manifest(small.root, "train"), ImageDataset(small.root, "train")
    expected = TrainPlan(config, manifest, World(), 0, 3).sample_ids(range(3))
    for data in (dataset, dataset.targets, dataset.targets.tolist()):
        sampler = MADE[name](data, seed=SEED)
        found = chain(*(epoch_of(sampler, epoch) for epoch in range(3)))
        np.testing.assert_array_equal(list(found), expected)


def test_instance_balanced_gives_every_sample_once_an_epoch():
    sampler = InstanceBalancedSampler(torch.from_numpy(LABELS))
    epochs = [epoch_of(sampler, epoch) for epoch in range(4)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(N))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epoch_of(sampler, 2) == epochs[2] == list(sampler), "an epoch can be had again"


@pytest.mark.parametrize("per_class", [1, 4])
def test_class_balanced_gives_each_class_exactly_as_many(per_class):
    """In each cycle over the six classes that there are, across ends of epochs too."""
    cycles, length = 12 * N // (6 * per_class), 6 * per_class
    sampler = ClassBalancedSampler(LABELS, per_class)
    drawn = list(chain(*(epoch_of(sampler, epoch) for epoch in range(12))))
    labels = LABELS[drawn[: cycles * length]].reshape(cycles, length)
    for cycle in labels:
        counts = np.bincount(cycle, minlength=7).tolist()
        assert counts == [per_class, per_class, 0, per_class, per_class, per_class, per_class]


def shares_of(name: str, epoch: int, sizes: np.ndarray) -> np.ndarray:
    """How often each class is drawn, by the papers' formulas; all have samples."""
    shares = {
        "square_root": sizes**0.5,
        "effective_number": sizes * (1 - 0.9) / (1 - 0.9**sizes),
        "progressively_balanced": (1 - epoch / EPOCHS) * sizes / sizes.sum()
        + epoch / EPOCHS / len(sizes),
    }[name]
    return shares / shares.sum()


@pytest.mark.parametrize("name", ["square_root", "effective_number", "progressively_balanced"])
@pytest.mark.parametrize("epoch", [0, 3])
def test_frequencies_are_the_closed_forms(name, epoch):
    """Of 60,000 draws; by chi-square, in standard deviations from its mean."""
    sizes = np.array([40_000, 15_000, 4_000, 900, 90, 10])
    sampler = MADE[name](np.repeat(np.arange(6), sizes), seed=SEED)
    drawn = np.repeat(np.arange(6), sizes)[epoch_of(sampler, epoch)]
    expected = len(drawn) * shares_of(name, epoch, sizes.astype(float))
    chi_square = ((np.bincount(drawn, minlength=6) - expected) ** 2 / expected).sum()
    assert abs(chi_square - 5) / 10**0.5 < 5


def test_samples_without_a_label_are_drawn_only_where_classes_are_of_no_matter():
    labels = np.where(np.arange(N) % 2, LABELS, -1)
    assert sorted(InstanceBalancedSampler(labels)) == list(range(N))
    assert set(ClassBalancedSampler(labels)) <= set(np.flatnonzero(labels >= 0))


def test_a_sampler_of_ones_own_is_elastic_too(monkeypatch):
    class Rarest(ByClassShares):
        def shares(self, epoch: int) -> np.ndarray:
            return self.counts == 1

    monkeypatch.setitem(SAMPLERS, "rarest", Rarest)
    sampler = ElasticSampler(LABELS, SamplerConfig("rarest"))
    assert set(sampler) == {*np.flatnonzero(LABELS == 5)}


# ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_global_batches_are_the_same_on_any_number_of_ranks(make, ranks):
    for epoch in (0, 2):
        alone = global_batches(make, 1, epoch)
        assert global_batches(make, ranks, epoch) == alone
        assert len(alone) == N // GLOBAL


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_in_turn_give_the_sequence(make, ranks):
    alone = epoch_of(make(LABELS, seed=SEED), 1) + epoch_of(make(LABELS, seed=SEED), 2)
    shares = [
        epoch_of(make(LABELS, seed=SEED, num_replicas=ranks, rank=rank), 1) for rank in range(ranks)
    ]
    assert {len(share) for share in shares} == {-(-N // ranks)}
    together = list(chain(*zip(*shares)))
    assert together == alone[: len(together)], "the last ones get some of the next epoch's"


def test_the_odd_ones_can_be_left_out():
    places = [{"num_replicas": 4, "rank": rank} for rank in range(4)]
    every, whole = (
        [len(InstanceBalancedSampler(LABELS, drop_last=drop, **place)) for place in places]
        for drop in (False, True)
    )
    assert (N, every, whole) == (85, [22] * 4, [21] * 4)
    share = list(InstanceBalancedSampler(LABELS, drop_last=True, **places[3]))
    assert share == list(InstanceBalancedSampler(LABELS))[3:84:4]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 3), (3, 2), (2, 1)])
def test_other_ranks_go_on_in_the_middle_of_an_epoch(make, before, after):
    undisturbed = global_batches(make, 1, 2) + global_batches(make, 1, 3)
    done = 5
    sampler = make(LABELS, seed=SEED, num_replicas=before, rank=before - 1)
    sampler.set_epoch(2)
    state = json.loads(json.dumps(sampler.state_dict(position=done * GLOBAL)))
    begun = global_batches(make, before, 2)[:done]
    rest = global_batches(make, after, 2, state)
    assert begun + rest + global_batches(make, after, 3, state) == undisturbed


def test_states_are_the_same_on_all_ranks(make):
    samplers = [make(LABELS, num_replicas=3, rank=rank) for rank in range(3)]
    first, *others = (sampler.state_dict(12) for sampler in samplers)
    assert others == [first, first]


def test_workers_that_read_ahead_do_not_move_the_position():
    sampler = InstanceBalancedSampler(LABELS)
    loader = iter(DataLoader(range(N), 5, sampler=sampler, num_workers=1, prefetch_factor=4))
    trained = [next(loader) for _ in range(2)]
    assert sampler.state_dict()["position"] == 0
    again = InstanceBalancedSampler(LABELS)
    again.load_state_dict(sampler.state_dict(position=10))
    assert torch.cat(trained).tolist() + list(again) == list(sampler)
    assert len(again) == N - 10 and again.state_dict()["position"] == 10
    again.set_epoch(1)
    assert len(again) == N


def test_ranks_are_by_default_those_of_torch_distributed():
    assert InstanceBalancedSampler(LABELS).num_replicas == 1
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    try:
        found, named = InstanceBalancedSampler(LABELS), InstanceBalancedSampler(LABELS, rank=2)
    finally:
        dist.destroy_process_group()
    assert (found.rank, found.num_replicas, named.rank) == (1, 3, 2)
    alone = list(InstanceBalancedSampler(LABELS))[1::3]
    assert list(found)[: len(alone)] == alone


# mistakes


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: InstanceBalancedSampler(LABELS, seed=1), r"\(seed 0\) than this one .*seed 1"),
        (lambda: InstanceBalancedSampler(LABELS[:-1]), r"\(samples 85, class_counts_crc32 "),
        (lambda: SquareRootSampler(LABELS), r"\(name instance_balanced\)"),
        (lambda: InstanceBalancedSampler(LABELS[::-1] % 3), r"\(class_counts_crc32 "),
    ],
)
def test_a_state_of_another_sequence_is_refused(other, message):
    state = InstanceBalancedSampler(LABELS).state_dict()
    with pytest.raises(UserError, match=message):
        other().load_state_dict(state)


def test_a_state_that_is_none_is_refused():
    sampler = InstanceBalancedSampler(LABELS)
    for change in ({"position": N + 1}, {"position": -1}, {"epoch": -1}):
        with pytest.raises(UserError, match="epoch .* has no position"):
            sampler.load_state_dict({**sampler.state_dict(), **change})
    with pytest.raises(UserError, match="another sampler"):
        sampler.load_state_dict({})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: ClassBalancedSampler([]), "there are no samples"),
        (lambda: ClassBalancedSampler([-1, -1]), "class_balanced goes by classes, and no sample"),
        (lambda: ClassBalancedSampler([0, -2]), "labels are 0 or more, or -1, not -2"),
        (lambda: ClassBalancedSampler([0.5]), "takes a dataset with targets, or one whole number"),
        (lambda: ClassBalancedSampler([[0, 1]]), "takes a dataset with targets, or one whole"),
        (lambda: ClassBalancedSampler([0], 0), "samples_per_class must be more than 0"),
        (lambda: EffectiveNumberSampler([0], 1.0), "beta must be from 0 to below 1"),
        (lambda: ProgressivelyBalancedSampler([0], 0), "epochs must be more than 0"),
        (lambda: SquareRootSampler([0], seed=-1), "seed must be from 0"),
        (
            lambda: SquareRootSampler([0], num_replicas=2, rank=2),
            "rank must be from 0 to .* 2 of 2",
        ),
        (lambda: ElasticSampler([0], SamplerConfig("rare")), "sampler.name: there is no 'rare'"),
    ],
)
def test_a_mistake_is_one_line(made, message):
    with pytest.raises(UserError, match=message):
        made()
