"""Long-tailed subsets: how many images each class keeps, and which; the published ones, index for
index.
"""

import numpy as np
import pytest

from data_prep.reading.subsets import Draw, imbalanced_counts, pareto_counts, unlabeled_counts
from lt_train.data.manifest import shot_groups
from lt_train.errors import UserError
from tests.helpers.published import (
    CIFAR10,
    SVHN,
    labeled_counts,
    published_counts,
    published_subset,
)


@pytest.mark.parametrize(
    ("largest", "classes", "sizes"),
    [
        (5000, 10, {100: 12_406, 50: 13_996, 10: 20_431}),
        (500, 100, {100: 10_847, 50: 12_608, 10: 19_573}),
        (1000, 10, {100: 2_478, 50: 2_795, 10: 4_084}),
    ],
)
def test_exponential_counts_add_up_to_the_published_sizes(largest, classes, sizes):
    for ratio, size in sizes.items():
        counts = imbalanced_counts(largest, classes, ratio)
        assert sum(counts) == size and (counts[0], counts[-1]) == (largest, largest // ratio)
        powers = [label / (classes - 1.0) for label in range(classes)]
        assert counts == [int(largest * (1.0 / ratio) ** power) for power in powers]


@pytest.mark.parametrize(("largest", "classes"), [(5000, 10), (500, 100), (1000, 10), (7, 5)])
@pytest.mark.parametrize("ratio", [100, 50, 10])
def test_step_counts_are_the_largest_and_the_smallest_for_half_of_the_classes_each(
    largest, classes, ratio
):
    counts = imbalanced_counts(largest, classes, ratio, "step")
    large = classes // 2
    assert counts[:large] == large * [largest]
    assert counts[large:] == (classes - large) * [int(largest * (1 / ratio))]


@pytest.mark.parametrize("kind", ["exp", "step"])
def test_ratio_1_keeps_the_balance(kind):
    assert imbalanced_counts(500, 100, 1, kind) == [500] * 100


@pytest.mark.parametrize("ratio", [0.5, 0, -1, float("nan"), float("inf")])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(UserError, match="--imbalance-ratio"):
        imbalanced_counts(500, 100, ratio)


def test_the_pareto_counts_of_imagenet_lt():
    counts = np.array(pareto_counts(1280, 5, 1000))
    # the inverse of P(X <= x) = 1 - x^-6
    quantiles = [(1 - (rank + 0.2) / 1000) ** (-1 / 6) for rank in reversed(range(1000))]
    stretched = [5 + 1275 * (x - quantiles[-1]) / (quantiles[0] - quantiles[-1]) for x in quantiles]
    assert np.abs(counts - stretched).max() <= 0.5 + 1e-6
    assert (counts[0], counts[-1], counts.sum()) == (1280, 5, 116_079)
    assert (np.diff(counts) <= 0).all()
    groups = {name: int(group.sum()) for name, group in shot_groups(counts).items()}
    assert groups == {"many_shot": 388, "medium_shot": 469, "few_shot": 143}


@pytest.mark.parametrize(
    ("largest", "smallest", "classes"), [(100, 100, 7), (30, 1, 2), (1280, 5, 100)]
)
def test_pareto_counts_reach_both_ends(largest, smallest, classes):
    counts = pareto_counts(largest, smallest, classes)
    assert (len(counts), counts[0], counts[-1]) == (classes, largest, smallest)
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("largest", "smallest"), [(5, 6), (5, 0), (0, 0), (5, -1)])
def test_impossible_ends_are_refused(largest, smallest):
    with pytest.raises(UserError, match="--smallest"):
        pareto_counts(largest, smallest, 10)


@pytest.mark.parametrize(
    ("ratio", "imb_factor", "size"), [(100, 0.01, 12_406), (50, 0.02, 13_996), (10, 0.1, 20_431)]
)
def test_cifar10_lt_is_the_published_subset_index_for_index(ratio, imb_factor, size):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    counts = imbalanced_counts(5000, 10, ratio)
    chosen = Draw(0).subset(labels, counts)
    assert len(chosen) == size and (counts[0], counts[9]) == (5000, 5000 // ratio)
    np.testing.assert_array_equal(chosen, published_subset(labels, range(10), 5000, imb_factor))


def test_draws_are_the_published_ones_index_for_index():
    cifar100 = np.random.default_rng(1).permutation(np.repeat(np.arange(100), 500))
    svhn = np.random.default_rng(2).permutation(np.repeat(np.arange(10), 1200))
    order = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    for ratio in (100, 50, 10):
        drawn = Draw(0).subset(cifar100, imbalanced_counts(500, 100, ratio))
        expected = published_subset(cifar100, range(100), 500, 1 / ratio)
        np.testing.assert_array_equal(drawn, expected)
        drawn = Draw(0).subset(svhn, imbalanced_counts(1000, 10, ratio), order)
        expected = published_subset(svhn, order, 1000, 1 / ratio)
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("kind", ["exp", "step"])
@pytest.mark.parametrize("ratio", [10, 50, 100])
@pytest.mark.parametrize("unlabeled_ratio", [1, 25, 50, 100])
def test_counts_of_d_u_are_the_published_ones(ratio, unlabeled_ratio, kind):
    for which in (CIFAR10, SVHN):
        labeled = labeled_counts(which, ratio, kind)
        number = sum(imbalanced_counts(which.img_max, 10, ratio, kind))
        counts = unlabeled_counts(number, 10, unlabeled_ratio, 5.0)
        assert counts == published_counts(labeled, unlabeled_ratio, 5)
        assert 0 <= 5 * sum(labeled) - sum(counts) < 10, "each class is rounded down"
        assert counts[9] == pytest.approx(counts[0] / unlabeled_ratio, abs=6)
