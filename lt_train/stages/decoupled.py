"""Two-stage classifiers on a finished backbone (Kang et al. 2020, "Decoupling Representation and Classifier")."""

import torch

from lt_train.schema import Config
from lt_train.stages.classifier import Classifier


class Decoupled(Classifier):
    """cRT: the backbone is frozen, the classifier starts anew and is trained with class-balanced sampling.

    ``decoupled.freeze_bn_stats`` decides whether batch norm uses the finished statistics (true) or keeps following the
    re-sampled batches while its weights stay frozen (false: what the reference code of Yang and Xu does).
    """

    def __init__(self, config: Config, class_counts: torch.Tensor):
        super().__init__(config, class_counts)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Decoupled":
        super().train(mode)
        if self.config.decoupled.freeze_bn_stats:
            self.backbone.eval()
        return self

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.backbone(images)
        return self.classifier(features)
