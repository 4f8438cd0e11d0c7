"""Mixup and CutMix: what is mixed with what, how much of it, and alike on every rank."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lt_train.config.schema import ClassifierConfig
from lt_train.methods.mixup import mix_images
from tests.helpers.small_methods import make_images

MIXUP, CUTMIX = ClassifierConfig(mixup_alpha=1.0), ClassifierConfig(cutmix_alpha=1.0)


@pytest.mark.parametrize("step", range(5))
def test_mixup_is_the_convex_combination_with_the_mirrored_sample(step):
    images = make_images(5)
    result, share = mix_images(images, ClassifierConfig(mixup_alpha=0.7), 3, step)
    assert 0 < share < 1
    torch.testing.assert_close(result, share * images + (1 - share) * images[[4, 3, 2, 1, 0]])


def test_cutmix_pastes_one_box_whose_area_is_the_partners_share():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 10, 14).contiguous()
    shares = []
    for step in range(200):
        result, share = mix_images(images, CUTMIX, 3, step)
        pasted = result != images
        assert (pasted == pasted[:1, :1]).all(), "the same box in every image"
        assert (result == images.where(~pasted, images.flip(0))).all()
        assert pasted[0, 0].float().mean().item() == pytest.approx(1 - share, abs=1e-6)
        rows, columns = pasted[0, 0].any(1), pasted[0, 0].any(0)
        assert pasted[0, 0].equal(rows[:, None] & columns), "a box"
        assert rows.int().diff().ne(0).sum() <= 2 and columns.int().diff().ne(0).sum() <= 2
        shares.append(share)
    assert len(set(shares)) > 30 and min(shares) < 0.2 and max(shares) > 0.9
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3], "the batch itself is left alone"


@pytest.mark.parametrize("config", [MIXUP, CUTMIX], ids=["mixup", "CutMix"])
def test_every_rank_mixes_alike_and_every_step_and_seed_anew(config):
    """Each with its own images, and one more or less of them."""
    images = make_images(7)
    first, share = mix_images(images[:3], config, 5, 8)
    last, share_of_last = mix_images(images[3:], config, 5, 8)
    assert share == share_of_last and first[1].equal(images[1]) and last.shape == (4, 3, 8, 8)
    if config.cutmix_alpha:
        assert (first[0] == images[2]).equal(last[0] == images[6]), "the same box"
    times = ((5, 8), (5, 9), (6, 8))
    assert len({mix_images(images, config, seed, step)[1] for seed, step in times}) == 3


def test_shares_are_of_the_beta_distribution_and_methods_alternate():
    """Beta(0.5, 0.5) has mean 1/2 and variance 1/8; with both methods on, each has its turns."""
    config, blank = ClassifierConfig(mixup_alpha=0.5), torch.zeros(2, 3, 1, 1)
    shares = np.array([mix_images(blank, config, 0, step)[1] for step in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 8 / 2000))
    assert shares.var() == pytest.approx(1 / 8, abs=0.01)

    images = torch.stack([torch.zeros(3, 9, 9), torch.ones(3, 9, 9)])
    both = replace(config, cutmix_alpha=1.0)
    results = [mix_images(images, both, 0, step)[0] for step in range(200)]
    patched = [bool((result * (1 - result)).eq(0).all()) for result in results]
    assert 70 < sum(patched) < 130


def test_nothing_is_mixed_unless_asked_for():
    images = make_images(3)
    result, share = mix_images(images, ClassifierConfig(), 0, 0)
    assert result is images and share == 1
