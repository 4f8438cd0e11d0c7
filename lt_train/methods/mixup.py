"""Mixup (Zhang et al. 2018) blends two images, CutMix (Yun et al. 2019) patches one into another.

The partner is the sample at the mirrored place of this rank's batch, whose order is random already.
How much is mixed, and where, is drawn once a step, the same on all ranks.
"""

import numpy as np
import torch

from lt_train.config.schema import ClassifierConfig
from lt_train.random_streams import Stream, mix


def mix_images(
    images: torch.Tensor, config: ClassifierConfig, seed: int, step: int
) -> tuple[torch.Tensor, float]:
    """``images`` (B, 3, H, W) mixed with ``images.flip(0)``, and the share of the first in each.

    1: nothing was mixed.
    """
    alphas = {"mixup": config.mixup_alpha, "cutmix": config.cutmix_alpha}
    kinds = [kind for kind, alpha in alphas.items() if alpha > 0]
    if not kinds:
        return images, 1.0
    generator = np.random.Generator(np.random.Philox(int(mix(seed, step, Stream.MIXUP)[0])))
    kind = kinds[generator.integers(len(kinds))]
    share = float(generator.beta(alphas[kind], alphas[kind]))
    if kind == "mixup":
        return torch.lerp(images.flip(0), images, share), share
    top, left, bottom, right = _patch(share, *images.shape[2:], generator)
    patched = images.clone()
    patched[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    # the patch may have been cut off at the border
    return patched, 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])


def _patch(
    share: float, height: int, width: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of the image's shape, its centre anywhere, as far as it lies inside.

    Whole it would cover 1 - ``share`` of the image.
    """
    side = np.sqrt(1 - share)
    centre, size = generator.random(2) * (height, width), np.array([height, width]) * side
    start = np.clip(np.round(centre - size / 2), 0, (height, width)).astype(int)
    stop = np.clip(np.round(centre + size / 2), 0, (height, width)).astype(int)
    return int(start[0]), int(start[1]), int(stop[0]), int(stop[1])
