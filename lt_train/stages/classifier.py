"""Classifier training from scratch or from a pre-trained backbone, with any sampler and loss."""

import torch
from torch import nn

from lt_train.schema import Config
from lt_train.losses import LOSSES
from lt_train.models.backbones import make_backbone
from lt_train.stages.base import Stage


class Classifier(Stage):
    """Backbone and linear classifier, trained together."""

    def __init__(self, config: Config, class_counts: torch.Tensor):
        super().__init__(config, class_counts)
        self.backbone = make_backbone(config.model.backbone)
        self.classifier = nn.Linear(self.backbone.out_features, len(class_counts))
        self.loss = LOSSES[config.classifier.loss]

    def forward(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        logits = self.predict(batch["views"][0]).float()
        accuracy = (logits.detach().argmax(1) == batch["label"]).float().mean() * 100
        return {"loss": self.loss(logits, batch["label"]), "train_top1": accuracy}

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))
