"""Experts on one backbone, each for another distribution of classes (SADE; Zhang et al. 2022).

Expert e learns with logits adjusted by tau_e times the log prior: 0 suits a test set as long-tailed
as the training set, 1 a balanced one, more an inverted one. Their mean is the prediction. In the
paper (and in RIDE) experts have a copy of the network's last stage each; here they share the
backbone whole and have a hidden layer and a classifier each, so that backbones stay one module.
"""

from collections.abc import Hashable

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Outputs, Progress, of_features, train_top1
from lt_train.methods.classifier import Classifier
from lt_train.models.heads import make_classifier


class Experts(Classifier):
    """A classifier whose head is the mean of ``experts.taus`` heads."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        width, classes = self.backbone.out_features, len(counts.labeled)

        def expert() -> nn.Module:
            hidden = nn.Linear(width, width)
            classifier = make_classifier(config.classifier, width, classes)
            return nn.Sequential(hidden, nn.ReLU(), classifier)

        self.classifier = MeanOfExperts(expert() for _ in config.experts.taus)

    @of_features
    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        features, labels = self.features(batch.views[0]), batch.label
        logits = self.classifier.each(features)
        losses = []
        for own, tau in zip(logits, self.config.experts.taus):
            losses.append(F.cross_entropy(own + tau * self.criterion.log_prior, labels))
        top1 = train_top1(logits.mean(0), labels)
        return {"loss": torch.stack(losses).sum(), "train_top1": top1}

    def phase(self, progress: Progress) -> Hashable:
        return ()


class MeanOfExperts(nn.ModuleList):
    """Features (B, D) -> the mean of the experts' logits (B, C)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.each(features).mean(0)

    def each(self, features: torch.Tensor) -> torch.Tensor:
        """Every expert's logits (E, B, C)."""
        return torch.stack([expert(features).float() for expert in self])
