"""Near-duplicates of test images, told exactly."""

import numpy as np
import pytest

from data_prep.reading import near_duplicates
from data_prep.reading.near_duplicates import NearDuplicates
from tests.helpers.distances import LIMIT, moved, squared_distances


@pytest.mark.parametrize("brightness", ["noise", "black", "white"])
def test_near_duplicates_are_told_to_the_last_grey_level(monkeypatch, brightness):
    """Black and white are where the products are largest, so that rounding would show first."""
    monkeypatch.setattr(near_duplicates, "AT_ONCE", 7)  # several blocks
    generator = np.random.default_rng(5)
    darkest, brightest = {"noise": (0, 255), "black": (0, 2), "white": (253, 255)}[brightness]
    test = generator.integers(darkest, brightest + 1, (30, 32, 32, 3), np.uint8)
    around = [LIMIT + more for more in (-20_000, -2, -1, 0, 1, 2, 20_000)]
    distances = [0, 1, LIMIT // 2, *around, 2 * LIMIT] * 4
    planted = [
        moved(generator, test[(3 * number) % 30], squared)
        for number, squared in enumerate(distances)
    ]
    planted = np.stack(planted)
    exact = squared_distances(planted, test).min(1)
    if brightness == "noise":
        assert exact.tolist() == distances
    found = NearDuplicates(test)(planted)
    np.testing.assert_array_equal(found, exact < LIMIT)
    assert 0 < found.sum() < len(found)


def test_near_duplicates_of_many_random_images_and_of_none():
    generator = np.random.default_rng(6)
    test = generator.integers(0, 256, (50, 32, 32, 3), np.uint8)
    images = generator.integers(0, 256, (300, 32, 32, 3), np.uint8)
    images[::7] = [
        moved(generator, test[number % 50], LIMIT + int(generator.integers(-400, 400)))
        for number in range(len(images[::7]))
    ]
    found = NearDuplicates(test)(images)
    np.testing.assert_array_equal(found, squared_distances(images, test).min(1) < LIMIT)
    assert 10 < found.sum() < 35
    assert NearDuplicates(test)(images[:0]).shape == (0,)


@pytest.mark.parametrize("threshold", [1, 50])
def test_another_threshold_holds_as_exactly(threshold):
    generator = np.random.default_rng(7)
    test = generator.integers(0, 256, (9, 32, 32, 3), np.uint8)
    images = np.stack([moved(generator, test[4], threshold**2 + more) for more in (-1, 0, 1)])
    assert NearDuplicates(test, threshold)(images).tolist() == [True, False, False]
