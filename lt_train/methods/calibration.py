"""Temperature scaling (Guo et al. 2017): scores divided by one number, so that on held-out images
the softmax of them is as sure as it is right.
"""

import math

import torch
from torch.nn import functional as F

from lt_train.collectives import all_reduce_
from lt_train.errors import UserError

LEAST, MOST = 0.001, 100.0
TRIED = 185  # temperatures, each 6 % more than the one before


class Temperature:
    """Of all temperatures, the one of the least negative log-likelihood.

    In one pass, as no scores are kept: the likelihood is summed at temperatures that lie close to
    each other, and between them it is a parabola.
    """

    def __init__(self, device: torch.device):
        self.log_tried = torch.linspace(math.log(LEAST), math.log(MOST), TRIED, dtype=torch.float64)
        self._sums = torch.zeros(TRIED + 1, dtype=torch.float64, device=device)  # and the images

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: ``scores`` (B, C) float32, ``labels`` (B,)."""
        sums = []
        for temperature in self.log_tried.exp().tolist():
            losses = F.cross_entropy(scores / temperature, labels, reduction="none")
            # of a class without training images a nearest mean gives no score at all
            sums.append(losses.nan_to_num(posinf=0.0).double().sum())
        self._sums += torch.stack([*sums, sums[0].new_tensor(len(labels))])

    def compute(self) -> float:
        """The temperature, in thousandths. Collective."""
        *sums, images = all_reduce_(self._sums.clone()).tolist()
        if not images:
            raise UserError("no image that the temperature could be fitted on can be read")
        best = min(range(TRIED), key=sums.__getitem__)
        logarithm = float(self.log_tried[best])
        if 0 < best < TRIED - 1:
            before, here, after = (value / images for value in sums[best - 1 : best + 2])
            curvature = before - 2 * here + after
            step = float(self.log_tried[1] - self.log_tried[0])
            logarithm += step * (before - after) / (2 * curvature) if curvature > 0 else 0.0
        return round(math.exp(logarithm), 3)
