"""Classifier training, from scratch or from a pre-trained backbone.

With any sampler, loss and head, mixup and CutMix.
"""

from collections.abc import Hashable

import torch

from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Method, Outputs, Progress, of_features, train_top1
from lt_train.methods.losses import Criterion
from lt_train.methods.mixup import mix_images
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import make_classifier


class Classifier(Method):
    """Backbone and classifier, trained together."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        self.backbone = make_backbone(config.model.backbone, config.eval_view.size)
        width, classes = self.backbone.out_features, len(counts.labeled)
        self.classifier = make_classifier(config.classifier, width, classes)
        scale = config.classifier.scale if config.classifier.head == "cosine" else 1.0
        self.criterion = Criterion(config.loss, counts.together, scale)

    @of_features
    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        config, epoch = self.config, progress.epoch
        images, share = mix_images(batch.views[0], config.classifier, config.seed, progress.step)
        logits = self.predict(images).float()
        labels, weights = batch.label, self.sample_weights(batch)
        whole = batch.of
        among = None if whole is None else (whole.label, self.sample_weights(whole))
        loss = self.criterion(logits, labels, epoch, weights, among)
        if share < 1:  # the loss of either image of a pair, by its share
            other_weights = None if weights is None else weights.flip(0)
            other_loss = self.criterion(logits, labels.flip(0), epoch, other_weights, among)
            loss = share * loss + (1 - share) * other_loss
        return {"loss": loss, "train_top1": train_top1(logits, labels)}

    def phase(self, progress: Progress) -> Hashable | None:
        mixes = self.config.classifier.mixup_alpha > 0 or self.config.classifier.cutmix_alpha > 0
        return None if mixes else self.criterion.weights_classes(progress.epoch)

    def seen(self, batch: Batch, progress: Progress) -> list[torch.Tensor]:
        first, *others = batch.views
        mixed, _ = mix_images(first, self.config.classifier, self.config.seed, progress.step)
        return [mixed, *others]

    def class_weights(self, progress: Progress) -> torch.Tensor | None:
        criterion = self.criterion
        return criterion.class_weights if criterion.weights_classes(progress.epoch) else None

    def sample_weights(self, batch: Batch) -> torch.Tensor | None:
        """What each sample counts for in the loss (B,); None: all the same."""
        return None

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images))
