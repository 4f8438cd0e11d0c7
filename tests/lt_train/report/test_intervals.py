"""How far accuracies may be off by their test images."""

import numpy as np
import pytest
from scipy.stats import binomtest

from lt_train.report.intervals import difference, intervals


def metrics_of(right: list[int], samples: list[int]) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):
        return {
            "per_class": 100 * np.array(right) / np.array(samples),
            "class_samples": np.array(samples),
        }


COUNTS = np.array([500, 400, 50, 5])


def test_an_interval_is_that_of_a_bootstrap_over_images_within_each_class():
    right, samples = [180, 100, 30, 2], [200, 200, 50, 50]
    found = intervals(metrics_of(right, samples), COUNTS)
    generator = np.random.default_rng(7)
    images = [np.arange(n) < hits for n, hits in zip(samples, right)]
    drawn = []
    for _ in range(2000):
        again = [generator.choice(each, len(each)) for each in images]
        drawn.append([each.mean() for each in again])
    drawn = 100 * np.array(drawn)
    pooled = drawn @ np.array(samples) / sum(samples)
    for name, values in {
        "top1": pooled,
        "balanced": drawn.mean(1),
        "few_shot": drawn[:, 3],
    }.items():
        assert found[name] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=1.0), name


def test_what_is_never_right_is_not_certainly_zero():
    """n images that are all wrong leave room for the rate that gives as many in 2.5 % of cases."""
    metrics = metrics_of([200, 150, 0, 0], [200, 200, 30, 30])
    found = intervals(metrics, COUNTS)
    exact = binomtest(0, 30).proportion_ci(0.95, "exact")
    assert found["few_shot"] == pytest.approx((0, 100 * exact.high), abs=1e-6)
    everything = intervals(metrics_of([5, 5, 5, 5], [5, 5, 5, 5]), COUNTS)
    assert everything["top1"].low < 90 and everything["top1"].high == 100


def test_classes_without_test_images_have_no_say():
    some = metrics_of([90, 0, 20, 0], [100, 0, 50, 0])
    found = intervals(some, COUNTS)
    assert found.keys() == {"top1", "balanced", "many_shot", "medium_shot"}
    assert found["balanced"].low < 65 < found["balanced"].high, "the mean of 90 and 40"


def test_a_difference_is_as_wide_as_both_together():
    """Of two rates of 50 % over 400 images each: 1.96 times the root of 2 * 0.25 / 400."""
    half = metrics_of([100] * 4, [200] * 4)
    same = metrics_of([50] * 4, [100] * 4)
    low, high = difference(same, same, COUNTS)
    assert high - low == pytest.approx(2 * 196 * (2 * 0.25 / 400) ** 0.5, rel=0.1)
    assert low < 0 < high
    assert difference(half, metrics_of([60] * 4, [200] * 4), COUNTS).low > 10
