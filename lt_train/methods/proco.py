"""Probabilistic contrastive learning for long-tailed recognition (ProCo; Du et al. 2024).

Every class's contrastive features are taken for a von Mises-Fisher distribution on the unit sphere.
The expected supervised contrastive loss over infinitely many samples of all classes then has a
closed form, so that tail classes need no large batch to be contrasted with. One view trains the
classifier, two more the projector; all share the backbone.
"""

import math
from collections.abc import Hashable

import torch
from torch.nn import functional as F

from lt_train.collectives import all_reduce_
from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Outputs, Progress, train_top1
from lt_train.methods.classifier import Classifier
from lt_train.models.heads import make_projector

MAX_CONCENTRATION = 1e4  # of a class with hardly any samples, whose features may all be the same


class Proco(Classifier):
    """A classifier and a contrastive branch, whose class statistics are those of all ranks."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        classes, dim = len(counts.labeled), config.proco.dim
        self.projector = make_projector(self.backbone.out_features, dim)
        # of the epoch before, and of this one so far: estimates follow the network, and yet no
        # class is ever without any
        self.register_buffer("feature_sums", torch.zeros(2, classes, dim))
        self.register_buffer("feature_counts", torch.zeros(2, classes))

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        labels = batch.label
        features = self.backbone(torch.cat(batch.views))
        of_classifier, of_projector = features.split([len(labels), 2 * len(labels)])
        logits = self.classifier(of_classifier).float()
        projected = F.normalize(self.projector(of_projector).float(), dim=1)  # (2B, dim)
        both = labels.repeat(2)
        with torch.no_grad():
            self._update_statistics(projected, both, progress)
        contrast = F.cross_entropy(self.contrastive_logits(projected), both)
        supervised = self.criterion(logits, labels, progress.epoch)
        return {
            "loss": supervised + self.config.proco.weight * contrast,
            "contrastive_loss": contrast,
            "train_top1": train_top1(logits, labels),
        }

    def phase(self, progress: Progress) -> Hashable | None:
        weights = super().phase(progress)
        return None if weights is None else (weights, progress.starts_epoch)

    def _update_statistics(
        self, features: torch.Tensor, labels: torch.Tensor, progress: Progress
    ) -> None:
        if progress.starts_epoch:
            for statistic in (self.feature_sums, self.feature_counts):
                statistic.copy_(torch.stack([statistic[1], torch.zeros_like(statistic[1])]))
        with torch.autocast(features.device.type, enabled=False):
            classes = torch.arange(len(self.class_counts), device=labels.device)
            members = (labels[:, None] == classes).float()  # (2B, C)
            sums, counts = members.T @ features, members.sum(0)
        together = all_reduce_(torch.cat([sums, counts[:, None]], 1))
        self.feature_sums[1] += together[:, :-1]
        self.feature_counts[1] += together[:, -1]

    def contrastive_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of unit ``features`` (B, dim) whose cross-entropy is the paper's loss.

        log prior + log C_p(kappa_c) - log C_p(|kappa_c mu_c + z / temperature|), C_p the density's
        normaliser.
        """
        with torch.autocast(features.device.type, enabled=False):
            sums, counts = self.feature_sums.sum(0), self.feature_counts.sum(0)
            directions, kappa = mean_directions(sums, counts)
            scaled = features / self.config.proco.temperature
            # |kappa mu + s|^2; in double precision, since large and nearly equal numbers are
            # subtracted
            cosines = (scaled @ directions.T).double()
            squared = kappa**2 + 2 * kappa * cosines + scaled.double().pow(2).sum(1, keepdim=True)
            length = squared.clamp(min=1e-12).sqrt()
            dim = features.shape[1]
            ratio = log_normaliser(kappa, dim) - log_normaliser(length, dim)
            return self.criterion.log_prior + ratio.float()


def mean_directions(sums: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (C, p) and concentrations (C,) of von Mises-Fisher distributions.

    Estimated from ``sums`` (C, p) of ``counts`` (C,) unit vectors: kappa = R (p - R^2) / (1 - R^2),
    R the length of the mean (Banerjee et al. 2005; float64); 0, the uniform distribution, without
    samples.
    """
    mean = sums / counts.clamp(min=1)[:, None]
    length = mean.norm(dim=1).double().clamp(max=1 - 1e-9)
    concentrations = length * (sums.shape[1] - length**2) / (1 - length**2)
    return F.normalize(mean, dim=1), concentrations.clamp(max=MAX_CONCENTRATION)


def log_normaliser(concentrations: torch.Tensor, dim: int) -> torch.Tensor:
    """log of kappa^v / I_v(kappa) for v = dim / 2 - 1.

    The normaliser of the von Mises-Fisher density, but for a constant. By the uniform expansion of
    I_v for large v (Abramowitz and Stegun 9.7.7) with three terms: for dim >= 16 the error is below
    1e-4, for 128 below 1e-8. Finite at 0 and differentiable everywhere, unlike a recurrence.
    """
    v = dim / 2 - 1
    root = (1 + (concentrations / v) ** 2).sqrt()
    t = 1 / root
    u1 = (3 * t - 5 * t**3) / 24
    u2 = (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152
    u3 = (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720
    series = torch.log1p(u1 / v + u2 / v**2 + u3 / v**3)
    return (
        v * math.log(v)
        + v * (torch.log1p(root) - root)
        + 0.5 * math.log(2 * math.pi * v)
        + 0.5 * root.log()
        - series
    )
