"""Classifier training from scratch or from a pre-trained backbone, with any sampler, loss, head, mixup and CutMix."""

import torch

from lt_train.losses import Rule
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import make_classifier
from lt_train.schema import Config
from lt_train.stages.base import Stage
from lt_train.stages.mixing import mixed


class Classifier(Stage):
    """Backbone and classifier, trained together."""

    def __init__(self, config: Config, class_counts: torch.Tensor, pseudo_counts: torch.Tensor | None = None):
        super().__init__(config, class_counts, pseudo_counts)
        self.backbone = make_backbone(config.model.backbone)
        self.classifier = make_classifier(config.classifier, self.backbone.out_features, len(class_counts))
        scale = config.classifier.scale if config.classifier.head == "cosine" else 1.0
        self.rule = Rule(config.loss, class_counts + self.pseudo_counts, scale)

    def forward(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        images, share = mixed(batch["views"][0], self.config.classifier, self.config.seed, step)
        logits, labels, weights = self.predict(images).float(), batch["label"], self.sample_weights(batch)
        loss = self.rule(logits, labels, self.epoch(step), weights)
        if share < 1:  # the loss of either image of a pair, by its share
            other_weights = None if weights is None else weights.flip(0)
            loss = share * loss + (1 - share) * self.rule(logits, labels.flip(0), self.epoch(step), other_weights)
        return {"loss": loss, "train_top1": (logits.detach().argmax(1) == labels).float().mean() * 100}

    def sample_weights(self, batch: dict) -> torch.Tensor | None:
        """What each sample counts for in the loss (B,); None: all the same."""
        return None

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))
