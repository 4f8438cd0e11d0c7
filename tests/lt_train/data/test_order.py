"""The order of samples: samplers, ranks, and literal values so that it never changes silently."""

import numpy as np
import pytest
from PIL import Image

from lt_train.config.schema import SamplerConfig
from lt_train.data.manifest import Manifest
from lt_train.data.order import Sampler, check_batch, make_sampler
from lt_train.data.tables import UNLABELED
from lt_train.distributed import rank_share
from lt_train.errors import UserError
from tests.helpers.pictures import encode

CLASS_SIZES = [50, 20, 0, 7, 4, 1, 3]  # class 2 has no training image
SAMPLERS = [
    SamplerConfig("instance_balanced"),
    SamplerConfig("class_balanced", samples_per_class=1),
    SamplerConfig("class_balanced", samples_per_class=4),
    SamplerConfig("square_root"),
    SamplerConfig("progressively_balanced"),
    SamplerConfig("effective_number", beta=0.9),
]
BY_SHARES = SAMPLERS[3:]
EPOCHS = 5


@pytest.fixture(scope="module")
def manifest(prepare) -> Manifest:
    pixel = encode(Image.new("L", (1, 1)), "PNG")
    labels = np.repeat(np.arange(len(CLASS_SIZES)), CLASS_SIZES)
    root = prepare({"train": ([pixel] * len(labels), labels)}, samples_per_shard=20)
    return Manifest(root, "train")


def sampler_of(config: SamplerConfig, manifest: Manifest, seed: int) -> Sampler:
    return make_sampler(config, manifest, seed, EPOCHS)


@pytest.fixture(params=SAMPLERS, ids=lambda config: f"{config.name}-{config.samples_per_class}")
def sampler_config(request) -> SamplerConfig:
    return request.param


def test_instance_balanced_gives_every_sample_once_an_epoch_and_a_new_order_each_time(manifest):
    size = len(manifest)
    epochs = sampler_of(SamplerConfig(), manifest, 5)(np.arange(20 * size)).reshape(20, size)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(size), (20, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_a_split_without_images_is_one_line(manifest, sampler_config):
    with pytest.raises(UserError, match="train has no images to train on"):
        sampler_of(sampler_config, manifest.subset(slice(0, 0)), 5)


def test_a_batch_may_straddle_two_epochs(manifest):
    """Of 85 samples, batch 1 of 50 ends epoch 0 with its last 35 and starts epoch 1 with 15:
    nothing is dropped.
    """
    sampler = sampler_of(SamplerConfig(), manifest, 5)
    first, straddling = sampler(np.arange(50)), sampler(np.arange(50, 100))
    assert sorted([*first, *straddling[:35]]) == list(range(85))
    np.testing.assert_array_equal(straddling[35:], sampler(np.arange(85, 100)))


@pytest.mark.parametrize("per_class", [1, 3, 4])
def test_class_balanced_gives_every_present_class_its_run_in_every_cycle(manifest, per_class):
    present = np.flatnonzero(CLASS_SIZES)
    cycles = 30
    sampler = sampler_of(SamplerConfig("class_balanced", per_class), manifest, 0)
    labels = manifest.labels[sampler(np.arange(cycles * len(present) * per_class))]
    runs = labels.reshape(cycles, len(present), per_class)
    assert (runs == runs[..., :1]).all(), "a class has its positions in a row"
    np.testing.assert_array_equal(np.sort(runs[..., 0], 1), np.tile(present, (cycles, 1)))
    orders = {tuple(order) for order in runs[..., 0]}
    assert len(orders) > 25, "classes come in a new order each cycle"


def test_class_balanced_repeats_no_sample_before_all_of_its_class_were_seen(manifest):
    samples = sampler_of(SamplerConfig("class_balanced", 4), manifest, 0)(np.arange(5000))
    for label in np.flatnonzero(CLASS_SIZES):
        drawn = samples[manifest.labels[samples] == label]
        size = CLASS_SIZES[label]
        laps = drawn[: len(drawn) // size * size].reshape(-1, size)
        members = np.flatnonzero(manifest.labels == label)
        np.testing.assert_array_equal(np.sort(laps), np.tile(members, (len(laps), 1)))
        if size > 2:
            assert len(np.unique(laps, axis=0)) > 1, "a class is seen in another order each time"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_size", [32, 37, 64, 100])
def test_ranks_together_hold_the_global_batch_in_order(manifest, sampler_config, batch_size, ranks):
    sampler = sampler_of(sampler_config, manifest, 3)
    places = [np.asarray(rank_share(batch_size, rank, ranks)) for rank in range(ranks)]
    for step in (0, 1, 17):
        shares = [sampler(step * batch_size + own) for own in places]
        alone = sampler(np.arange(step * batch_size, (step + 1) * batch_size))
        np.testing.assert_array_equal(np.concatenate(shares), alone)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_any_position_is_reached_without_those_before(manifest, sampler_config):
    positions = np.random.default_rng(0).permutation(np.arange(400, 800))
    sampler = sampler_of(sampler_config, manifest, 9)
    in_order = sampler(np.arange(800))
    np.testing.assert_array_equal(sampler(positions), in_order[positions])
    fresh = sampler_of(sampler_config, manifest, 9)
    assert [fresh(positions[i : i + 1])[0] for i in range(50)] == in_order[positions[:50]].tolist()


def test_seeds_give_different_orders(manifest, sampler_config):
    samplers = [sampler_of(sampler_config, manifest, seed) for seed in range(20)]
    assert len({tuple(sampler(np.arange(85))) for sampler in samplers}) == 20


# samplers that draw classes by shares


def shares_of(config: SamplerConfig, epoch: int) -> np.ndarray:
    """How often each class should be drawn, by the papers' formulas."""
    sizes = np.array(CLASS_SIZES, float)
    present = sizes > 0
    if config.name == "square_root":
        shares = sizes**0.5
    elif config.name == "progressively_balanced":
        by_samples, by_classes = sizes / sizes.sum(), present / present.sum()
        shares = (1 - epoch / EPOCHS) * by_samples + epoch / EPOCHS * by_classes
    else:  # a sample's weight in WeightedRandomSampler, times the class's samples
        weights = (1 - config.beta) / (1 - config.beta ** sizes[present])
        shares = np.zeros(len(sizes))
        shares[present] = sizes[present] * weights
    return shares / shares.sum()


def chi_square_against(observed: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations from its mean."""
    freedom = len(observed) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("config", BY_SHARES, ids=lambda config: config.name)
def test_classes_are_drawn_by_their_shares_and_their_samples_alike(manifest, config):
    """Of 100,000 draws for epoch 0, from many seeds, since an epoch has only 85 positions."""
    size, present = len(manifest), np.flatnonzero(CLASS_SIZES)
    samplers = [sampler_of(config, manifest, seed) for seed in range(100_000 // size)]
    draws = np.concatenate([sampler(np.arange(size)) for sampler in samplers])
    labels = np.bincount(manifest.labels[draws], minlength=len(CLASS_SIZES))
    assert labels[2] == 0, "it has no samples"
    shares = shares_of(config, 0)
    assert abs(chi_square_against(labels[present], len(draws) * shares[present])) < 5
    by_sample = shares[manifest.labels] / np.array(CLASS_SIZES)[manifest.labels]
    assert abs(chi_square_against(np.bincount(draws, minlength=size), len(draws) * by_sample)) < 5


@pytest.mark.parametrize("epoch", range(EPOCHS + 2))
def test_progressive_shares_go_from_the_samples_to_the_classes(manifest, epoch):
    """Linearly with the epoch; past the last one, where nothing is trained any more, they stay."""
    config = SamplerConfig("progressively_balanced")
    positions = np.arange(epoch * 85, (epoch + 1) * 85)
    draws = np.concatenate([sampler_of(config, manifest, seed)(positions) for seed in range(400)])
    present = np.flatnonzero(CLASS_SIZES)
    observed = np.bincount(manifest.labels[draws], minlength=len(CLASS_SIZES))[present]
    expected = len(draws) * shares_of(config, min(epoch, EPOCHS))[present]
    assert abs(chi_square_against(observed, expected)) < 5


def test_a_batch_may_straddle_two_epochs_of_different_shares(manifest):
    sampler = sampler_of(SamplerConfig("progressively_balanced"), manifest, 0)
    parts = [sampler(np.arange(60, 85)), sampler(np.arange(85, 200))]
    np.testing.assert_array_equal(sampler(np.arange(60, 200)), np.concatenate(parts))


def test_successive_draws_are_independent(manifest):
    """Pairs of neighbours from the three largest classes, against the product of their shares."""
    config = SamplerConfig("square_root")
    draws = [sampler_of(config, manifest, seed)(np.arange(84)) for seed in range(400)]
    labels = manifest.labels[np.concatenate(draws)].reshape(-1, 2)
    pairs = np.bincount(labels[:, 0] * 7 + labels[:, 1], minlength=49)
    shares = shares_of(config, 0)
    together = np.outer(shares, shares).ravel()
    kept = together > 0
    assert abs(chi_square_against(pairs[kept], len(labels) * together[kept])) < 5


def test_effective_numbers_limits_are_instance_and_class_balanced(manifest):
    """beta 0: every sample alike; beta -> 1: every class alike."""
    sizes = np.array(CLASS_SIZES)
    limits = {0.0: sizes / sizes.sum(), 1 - 1e-7: (sizes > 0) / (sizes > 0).sum()}
    for beta, shares in limits.items():
        sampler = make_sampler(SamplerConfig("effective_number", beta=beta), manifest, 0, EPOCHS)
        np.testing.assert_allclose(sampler.shares(0) / sampler.shares(0).sum(), shares, rtol=1e-5)


def test_samplers_never_change(manifest):
    """Class-balanced draws are pinned as (class, number within the class), which no change of the
    shards can move.
    """
    positions = np.arange(80, 92)
    in_turn = sampler_of(SamplerConfig(), manifest, 4)(positions)
    assert " ".join(map(str, in_turn)) == "52 2 1 19 43 39 23 64 49 78 47 63"
    samples = sampler_of(SamplerConfig("class_balanced", 2), manifest, 4)(positions)
    labels = manifest.labels[samples]
    members = [np.flatnonzero(manifest.labels == label).tolist() for label in labels]
    within = [of_class.index(sample) for of_class, sample in zip(members, samples)]
    assert labels.tolist() == [1, 1, 4, 4, 3, 3, 4, 4, 5, 5, 0, 0]
    assert within == [14, 1, 0, 1, 4, 0, 3, 2, 0, 0, 43, 42]


@pytest.mark.parametrize(
    ("config", "classes"),
    list(zip(BY_SHARES, ["1010403444400001", "1000303455400001", "1010403555400001"])),
    ids=[config.name for config in BY_SHARES],
)
def test_draws_by_shares_never_change(manifest, config, classes):
    """Positions 165 to 180, which are of epochs 1 and 2."""
    draws = sampler_of(config, manifest, 4)(np.arange(165, 181))
    assert "".join(map(str, manifest.labels[draws])) == classes


@pytest.mark.parametrize(
    ("sampler", "batch_size", "ranks"),
    [
        (SamplerConfig(), 7, 8),
        (SamplerConfig("class_balanced", 4), 31, 8),
        (SamplerConfig("class_balanced", 4), 3, 1),
    ],
)
def test_more_ranks_than_shares_of_the_batch_are_refused(sampler, batch_size, ranks):
    with pytest.raises(UserError, match=f"global_batch_size={batch_size} .* {ranks} ranks"):
        check_batch(sampler, batch_size, ranks)


@pytest.mark.parametrize(
    "config", SAMPLERS[1:], ids=lambda config: f"{config.name}-{config.samples_per_class}"
)
def test_an_unlabeled_set_has_no_classes_to_go_by(manifest, config):
    unlabeled = manifest.relabeled(np.full(len(manifest), UNLABELED), manifest.classes)
    message = f"sampler.name={config.name} .* unlabeled: set sampler.name=instance_balanced$"
    with pytest.raises(UserError, match=message):
        sampler_of(config, unlabeled, 0)
    assert sorted(sampler_of(SamplerConfig(), unlabeled, 0)(np.arange(85))) == list(range(85))


def test_as_many_ranks_as_shares_are_accepted():
    check_batch(SamplerConfig(), 8, 8)
    check_batch(SamplerConfig("class_balanced", 4), 32, 8)
