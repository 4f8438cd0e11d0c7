"""cRT and LWS on a finished backbone: Kang et al. 2020, "Decoupling Representation and Classifier".

What needs no training (tau-normalisation, nearest class mean) is in lt_train/commands/posthoc.py.
"""

import torch
from torch import nn

from lt_train.config.schema import Config
from lt_train.methods.base import Counts
from lt_train.methods.classifier import Classifier
from lt_train.models.heads import ScaledClassifier
from lt_train.models.weights import CLASSIFIER_FILE


class Decoupled(Classifier):
    """A classifier on a frozen backbone, usually with class-balanced sampling.

    ``decoupled.freeze_bn_stats`` decides whether batch norm uses the finished statistics (true) or
    keeps following the re-sampled batches while its weights stay frozen (false: what the reference
    code of Yang and Xu does).
    """

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Decoupled":
        super().train(mode)
        if self.config.decoupled.freeze_bn_stats:
            self.backbone.eval()
        return self

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.features(images)
        return self.classifier(features)


class Crt(Decoupled):
    """cRT trains a new classifier; with instance-balanced sampling it is the linear probe."""


class Lws(Decoupled):
    """LWS trains one number a class, which scales the old classifier's logits."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        self.classifier = ScaledClassifier(self.backbone.out_features, len(counts.labeled))
        self.classifier.linear.requires_grad_(False)

    def starting_weights(self) -> dict[str, nn.Module]:
        return super().starting_weights() | {CLASSIFIER_FILE: self.classifier.linear}
