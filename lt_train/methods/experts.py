"""Several experts on one backbone, each trained for another distribution of classes, after SADE
(Zhang et al. 2022).

Expert e learns with logits adjusted by tau_e times the log prior: 0 suits a test set as long-tailed
as the training set, 1 a balanced one, more an inverted one. Their mean is the prediction. In the
paper (and in RIDE) experts have a copy of the network's last stage each; here they share the
backbone whole and have a hidden layer and a classifier each, so that backbones stay one module.
"""

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Progress
from lt_train.methods.classifier import Classifier
from lt_train.models.heads import make_classifier


class Experts(Classifier):
    """A classifier whose head is the mean of ``experts.taus`` heads."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        width = self.backbone.out_features
        self.classifier = MeanOfExperts(
            nn.Sequential(
                nn.Linear(width, width),
                nn.ReLU(),
                make_classifier(config.classifier, width, len(counts.labeled)),
            )
            for _ in config.experts.taus
        )

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        features, labels = self.backbone(batch.views[0]), batch.label
        logits = self.classifier.each(features)
        adjusted = [
            own + tau * self.criterion.log_prior
            for own, tau in zip(logits, self.config.experts.taus)
        ]
        loss = torch.stack([F.cross_entropy(own, labels) for own in adjusted]).sum()
        return {
            "loss": loss,
            "train_top1": (logits.detach().mean(0).argmax(1) == labels).float().mean() * 100,
        }


class MeanOfExperts(nn.ModuleList):
    """Features (B, D) -> the mean of the experts' logits (B, C)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.each(features).mean(0)

    def each(self, features: torch.Tensor) -> torch.Tensor:
        """Every expert's logits (E, B, C)."""
        return torch.stack([expert(features).float() for expert in self])
