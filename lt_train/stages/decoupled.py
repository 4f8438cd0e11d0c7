"""Two-stage classifiers on a finished backbone (Kang et al. 2020, "Decoupling Representation and Classifier").

Those that need no training (tau-normalisation, nearest class mean) are in lt_train/heads.py.
"""

import torch
from torch import nn

from lt_train.models.heads import ScaledClassifier
from lt_train.schema import Config
from lt_train.stages.classifier import Classifier
from lt_train.weights import CLASSIFIER_FILE


class Decoupled(Classifier):
    """The backbone is frozen, and what is trained is a new classifier (cRT), or one number a class that scales the old one's logits (LWS).

    Both with class-balanced sampling; cRT with instance-balanced sampling is the linear probe. ``decoupled.freeze_bn_stats`` decides
    whether batch norm uses the finished statistics (true) or keeps following the re-sampled batches while its weights stay frozen
    (false: what the reference code of Yang and Xu does).
    """

    def __init__(self, config: Config, class_counts: torch.Tensor, pseudo_counts: torch.Tensor | None = None):
        super().__init__(config, class_counts, pseudo_counts)
        self.backbone.requires_grad_(False)
        if config.decoupled.method == "lws":
            self.classifier = ScaledClassifier(self.backbone.out_features, len(class_counts))
            self.classifier.linear.requires_grad_(False)

    def starting_weights(self) -> dict[str, nn.Module]:
        old = {CLASSIFIER_FILE: self.classifier.linear} if self.config.decoupled.method == "lws" else {}
        return super().starting_weights() | old

    def train(self, mode: bool = True) -> "Decoupled":
        super().train(mode)
        if self.config.decoupled.freeze_bn_stats:
            self.backbone.eval()
        return self

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.backbone(images)
        return self.classifier(features)
