"""The order of samples: permutations, samplers, ranks, and literal values so that it can never
change silently.
"""

import io

import numpy as np
import pytest
from PIL import Image

from lt_train.config.schema import SamplerConfig
from lt_train.data.manifest import UNLABELED, Manifest
from lt_train.data.order import Sampler, batch_slice, check_batch, make_sampler
from lt_train.errors import UserError
from lt_train.random_streams import mix, permute

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
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "PNG")
    labels = np.repeat(np.arange(len(CLASS_SIZES)), CLASS_SIZES)
    return Manifest(
        prepare({"train": ([pixel.getvalue()] * len(labels), labels)}, samples_per_shard=20),
        "train",
    )


def sampler_of(config: SamplerConfig, manifest: Manifest, seed: int) -> Sampler:
    return make_sampler(config, manifest, seed, EPOCHS)


@pytest.fixture(params=SAMPLERS, ids=lambda config: f"{config.name}-{config.samples_per_class}")
def sampler_config(request) -> SamplerConfig:
    return request.param


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 100, 1236])
def test_permute_is_a_permutation_for_every_key(size):
    for key in mix(0, np.arange(50)):
        np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@pytest.mark.parametrize("size", [64, 100, 1236])
def test_keys_give_different_permutations(size):
    orders = {tuple(permute(np.arange(size), size, key)) for key in mix(0, np.arange(200))}
    assert len(orders) == 200


def test_mixed_sizes_and_keys_equal_one_element_at_a_time():
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 5000, 300)
    indices, keys = generator.integers(0, sizes), mix(generator.integers(0, 2**40, 300), 7)
    together = permute(indices, sizes, keys)
    alone = [permute(indices[i : i + 1], sizes[i], keys[i])[0] for i in range(300)]
    np.testing.assert_array_equal(together, alone)


def chi_square(observed: np.ndarray) -> float:
    """The statistic against equal expected counts, in standard deviations from its mean."""
    freedom = observed.size - 1
    expected = observed.sum() / observed.size
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [3, 5, 8, 64, 100])
def test_every_index_lands_everywhere_equally_often(size):
    keys = mix(1, np.arange(20_000))
    for index in {0, 1, size // 2, size - 1}:
        landed = permute(index, size, keys)
        assert chi_square(np.bincount(landed, minlength=size)) < 5


@pytest.mark.parametrize("size", [3, 4, 5, 8, 10])
def test_pairs_of_neighbours_land_independently(size):
    keys = mix(2, np.arange(50_000))
    first, second = permute(0, size, keys), permute(1, size, keys)
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert (np.diag(pairs) == 0).all()
    assert chi_square(pairs[~np.eye(size, dtype=bool)]) < 5


def test_a_long_permutation_has_no_visible_trend():
    """Neither with the index nor with the value before: correlations below four standard errors."""
    size = 100_000
    for key in mix(3, np.arange(5)):
        order = permute(np.arange(size), size, key)
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / np.sqrt(size)
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / np.sqrt(size)


def test_instance_balanced_gives_every_sample_once_an_epoch_and_a_new_order_each_time(manifest):
    size = len(manifest)
    epochs = sampler_of(SamplerConfig(), manifest, 5)(np.arange(20 * size)).reshape(20, size)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(size), (20, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_a_batch_may_straddle_two_epochs(manifest):
    """Of 85 samples, batch 1 of 50 ends epoch 0 with its last 35 and starts epoch 1 with 15:
    nothing is dropped.
    """
    sampler = sampler_of(SamplerConfig(), manifest, 5)
    first, straddling = (sampler(batch_slice(step, 50, 0, 1)) for step in (0, 1))
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
    assert len({tuple(order) for order in runs[..., 0]}) > 25, (
        "classes come in a new order each cycle"
    )


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
    for step in (0, 1, 17):
        shares = [sampler(batch_slice(step, batch_size, rank, ranks)) for rank in range(ranks)]
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
    orders = {
        tuple(sampler_of(sampler_config, manifest, seed)(np.arange(85))) for seed in range(20)
    }
    assert len(orders) == 20


# samplers that draw classes by shares


def shares_of(config: SamplerConfig, epoch: int) -> np.ndarray:
    """How often each class should be drawn, by the papers' formulas."""
    sizes = np.array(CLASS_SIZES, float)
    present = sizes > 0
    if config.name == "square_root":
        shares = sizes**0.5
    elif config.name == "progressively_balanced":
        shares = (
            1 - epoch / EPOCHS
        ) * sizes / sizes.sum() + epoch / EPOCHS * present / present.sum()
    else:  # a sample's weight in WeightedRandomSampler, times the class's samples
        shares = np.array(
            [
                size * (1 - config.beta) / (1 - config.beta**size) if size else 0.0
                for size in CLASS_SIZES
            ]
        )
    return shares / shares.sum()


def chi_square_against(observed: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations from its mean."""
    freedom = len(observed) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("config", BY_SHARES, ids=lambda config: config.name)
def test_classes_are_drawn_by_their_shares_and_their_samples_alike(manifest, config):
    """Of 100,000 draws for epoch 0, from many seeds, since an epoch has only 85 positions."""
    size, present = len(manifest), np.flatnonzero(CLASS_SIZES)
    draws = np.concatenate(
        [
            make_sampler(config, manifest, seed, EPOCHS)(np.arange(size))
            for seed in range(100_000 // size)
        ]
    )
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
    assert (
        abs(
            chi_square_against(
                observed, len(draws) * shares_of(config, min(epoch, EPOCHS))[present]
            )
        )
        < 5
    )


def test_a_batch_may_straddle_two_epochs_of_different_shares(manifest):
    sampler = sampler_of(SamplerConfig("progressively_balanced"), manifest, 0)
    np.testing.assert_array_equal(
        sampler(np.arange(60, 200)),
        np.concatenate([sampler(np.arange(60, 85)), sampler(np.arange(85, 200))]),
    )


def test_successive_draws_are_independent(manifest):
    """Pairs of neighbours from the three largest classes, against the product of their shares."""
    sampler = SamplerConfig("square_root")
    labels = np.concatenate(
        [manifest.labels[sampler_of(sampler, manifest, seed)(np.arange(84))] for seed in range(400)]
    ).reshape(-1, 2)
    pairs = np.bincount(labels[:, 0] * 7 + labels[:, 1], minlength=49)
    shares = shares_of(sampler, 0)
    kept = np.outer(shares, shares).ravel() > 0
    assert (
        abs(chi_square_against(pairs[kept], len(labels) * np.outer(shares, shares).ravel()[kept]))
        < 5
    )


def test_effective_numbers_limits_are_instance_and_class_balanced(manifest):
    """beta 0: every sample alike; beta -> 1: every class alike."""
    sizes = np.array(CLASS_SIZES)
    limits = {0.0: sizes / sizes.sum(), 1 - 1e-7: (sizes > 0) / (sizes > 0).sum()}
    for beta, shares in limits.items():
        sampler = make_sampler(SamplerConfig("effective_number", beta=beta), manifest, 0, EPOCHS)
        np.testing.assert_allclose(sampler.shares(0) / sampler.shares(0).sum(), shares, rtol=1e-5)


def test_a_billion_samples_need_no_permutation_in_memory():
    size = 10**9
    image = permute(np.arange(1000) * 999_983, size, mix(0, 0))
    assert image.min() >= 0 and image.max() < size and len(set(image.tolist())) == 1000


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((0,), 0xE220A8397B1DCDAF),
        ((0, 0), 0xA706DD2F4D197E6F),
        ((1, 2, 3), 0x6AE515C1C0AC7E37),
        ((2**63, 5), 0x4117AE723CC3FD3F),
    ],
)
def test_keys_never_change(words, key):
    """mix(0) is the first output of SplitMix64 with state 0, as published with the generator."""
    assert mix(*words).tolist() == [key]


@pytest.mark.parametrize(
    ("size", "seed", "order"),
    [
        (10, 0, [3, 8, 6, 4, 5, 1, 7, 2, 0, 9]),
        (7, 1, [3, 4, 2, 1, 5, 6, 0]),
        (1236, 2, [720, 871, 1174, 142, 586, 647, 61, 708, 63, 778]),
        (80_000_000, 3, [48191030, 54738723, 67507492, 10043086, 21903203, 19117337]),
    ],
)
def test_permutations_never_change(size, seed, order):
    """A run that is resumed with a newer version goes on in the same order."""
    assert permute(np.arange(len(order)), size, mix(seed, 0)).tolist() == order


def test_samplers_never_change(manifest):
    """Class-balanced draws are pinned as (class, number within the class), which no change of the
    shards can move.
    """
    positions = np.arange(80, 92)
    assert sampler_of(SamplerConfig(), manifest, 4)(positions).tolist() == [
        52,
        2,
        1,
        19,
        43,
        39,
        23,
        64,
        49,
        78,
        47,
        63,
    ]
    samples = sampler_of(SamplerConfig("class_balanced", 2), manifest, 4)(positions)
    labels = manifest.labels[samples]
    within = [
        np.flatnonzero(manifest.labels == label).tolist().index(sample)
        for label, sample in zip(labels, samples)
    ]
    assert labels.tolist() == [1, 1, 4, 4, 3, 3, 4, 4, 5, 5, 0, 0]
    assert within == [14, 1, 0, 1, 4, 0, 3, 2, 0, 0, 43, 42]


@pytest.mark.parametrize(
    ("config", "classes"),
    list(zip(BY_SHARES, ["1010403444400001", "1000303455400001", "1010403555400001"])),
    ids=[config.name for config in BY_SHARES],
)
def test_draws_by_shares_never_change(manifest, config, classes):
    """Positions 165 to 180, which are of epochs 1 and 2."""
    assert (
        "".join(map(str, manifest.labels[sampler_of(config, manifest, 4)(np.arange(165, 181))]))
        == classes
    )


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
    with pytest.raises(
        UserError,
        match=f"sampler.name={config.name} .* unlabeled: set sampler.name=instance_balanced$",
    ):
        sampler_of(config, unlabeled, 0)
    assert sorted(sampler_of(SamplerConfig(), unlabeled, 0)(np.arange(85))) == list(range(85))


def test_as_many_ranks_as_shares_are_accepted():
    check_batch(SamplerConfig(), 8, 8)
    check_batch(SamplerConfig("class_balanced", 4), 32, 8)
