"""Hashes, permutations and Philox: well spread, and literal values so that they can never change
silently.
"""

import numpy as np
import pytest

from lt_train.random_streams import Stream, mix, permute, philox4x32


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


@pytest.mark.parametrize(
    ("index", "size"),
    [(0, 0), (5, 5), (7, 5), (0, -3), (-1, 5), (-1, -1), ([0, 1, 9], [1, 2, 9]), ([0, 0], [3, 0])],
)
def test_an_index_outside_is_an_error_and_no_endless_walk(index, size):
    with pytest.raises(ValueError, match="not in"):
        permute(np.array(index), np.array(size), mix(0, 0))


def test_nothing_is_permuted_to_nothing():
    assert permute(np.zeros(0, np.int64), 0, mix(0, 0)).tolist() == []


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


def test_streams_never_change():
    """Nor are two of them ever one: a run would draw other numbers."""
    assert {stream.name: stream.value for stream in Stream} == {
        "CLASS_ORDER": 1,
        "WITHIN_CLASS": 2,
        "AUGMENTATION": 3,
        "SHUFFLE": 4,
        "STEP": 5,
        "SECOND_SET": 6,
        "SUBSET": 7,
        "CLASS": 8,
        "SAMPLE": 9,
        "MIXUP": 10,
        "ROTATION": 11,
    }
    assert len(Stream.__members__) == 11, "no name stands for another's value"


ZEROS, ONES = [0] * 4, [0xFFFFFFFF] * 4
PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]  # its digits


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        (ZEROS, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (ONES, tuple(ONES[:2]), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (PI[:4], tuple(PI[4:]), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, answer):
    assert philox4x32(np.array(counter, np.uint64), key).tolist() == answer
