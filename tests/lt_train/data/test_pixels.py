"""What augmentation makes of the pixels, by both loaders alike."""

from dataclasses import replace

import numpy as np
import torch

from lt_train.data.augment import View
from lt_train.data.rand_augment import apply_operations
from tests.helpers.loading import (
    JITTER,
    PIXEL_MEAN,
    RANDAUGMENT,
    WHOLE,
    configure,
    drawn,
    evaluate,
    grey_levels,
    keys,
    train,
)


def coloured(view: View, pixels: np.ndarray) -> np.ndarray:
    """The colour matrices applied to (N, H, W, 3) grey levels, not clipped."""
    of_pixel, of_mean = np.split(view.colour.astype(np.float64), 2, axis=2)
    means = np.einsum("nij,nj->ni", of_mean, pixels.mean((1, 2)))
    return np.einsum("nij,nhwj->nhwi", of_pixel, pixels) + means[:, None, None]


def test_colour_matrices_reach_the_pixels(small, loader):
    """Times the pixel, plus times the mean pixel of the view, then clipped."""
    config = configure(small.root, loader, replace(WHOLE, **JITTER))
    batches = train(config)
    expected = coloured(drawn(config, batches), grey_levels(train(replace(config, view=WHOLE))))
    assert (expected < 0).any() and (expected > 255).any()
    np.testing.assert_allclose(grey_levels(batches), np.clip(expected, 0, 255), rtol=0, atol=1e-2)


def test_rand_augment_reaches_the_pixels_before_colour(small, loader):
    """Of both loaders alike, on pixels that are flipped already."""
    view_config = replace(WHOLE, flip_probability=0.5, **RANDAUGMENT, **JITTER)
    config = configure(small.root, loader, view_config)
    batches = train(config)
    view, pixels = drawn(config, batches), small.pixels[keys(config, batches)]
    assert 0 < view.flip.sum() < 40 and len(np.unique(view.operations.operation)) == 14
    pixels = np.where(view.flip[:, None, None, None], pixels[:, :, ::-1], pixels)
    augmented = apply_operations(torch.from_numpy(pixels), view.operations).double().numpy()
    expected = np.clip(coloured(view, augmented), 0, 255)
    np.testing.assert_allclose(grey_levels(batches), expected, rtol=0, atol=1e-2)


def test_cutout_makes_a_square_grey_after_all_else(small, loader):
    """Of the mean pixel, whatever flips and colour do; by both loaders alike."""
    other = replace(WHOLE, flip_probability=0.5, **RANDAUGMENT, **JITTER)
    config = configure(small.root, loader, replace(other, cutout=0.9))
    batches = train(config)
    expected = grey_levels(train(replace(config, view=other)))
    for image, (top, left, bottom, right) in zip(expected, drawn(config, batches).cutout):
        image[top:bottom, left:right] = PIXEL_MEAN
    actual = grey_levels(batches)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert 0.02 < (actual == PIXEL_MEAN).all(3).mean() < 0.5


def test_evaluation_gives_every_pixel_as_it_was(small, loader):
    config = configure(small.root, loader, WHOLE)
    batches = evaluate(config)
    expected = small.pixels[keys(config, batches, "val")]
    np.testing.assert_allclose(grey_levels(batches), expected, rtol=0, atol=1e-4)
