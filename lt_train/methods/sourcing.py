"""The sourcing classifier of Carmon et al. 2019 (appendix B.6).

It tells the labeled set's classes, and images of a large pool as one class more, "other"; half of
each batch comes from either side. Scoring the whole pool with it (``python -m lt_train score``)
then finds the pool's images that look most like a known class.
"""

from collections.abc import Hashable

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.data.tables import UNLABELED
from lt_train.methods.base import Counts, Method, Outputs, Progress, train_top1
from lt_train.models.backbones import make_backbone


class Sourcing(Method):
    """Backbone and linear classifier of C known classes and "other", which has the label C here."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        self.backbone = make_backbone(config.model.backbone, config.eval_view.size)
        self.known = len(counts.labeled)
        self.classifier = nn.Linear(self.backbone.out_features, self.known + 1)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        logits = self.predict(batch.views[0]).float()
        # the pool's images have no label
        labels = torch.where(batch.label == UNLABELED, self.known, batch.label)
        return {"loss": F.cross_entropy(logits, labels), "train_top1": train_top1(logits, labels)}

    def phase(self, progress: Progress) -> Hashable:
        return ()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))

    def score(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest known class (B,) int64 of images (B, 3, H, W), and its probability (B,)."""
        probabilities = self.predict(images).float().softmax(1)
        scores, labels = probabilities[:, : self.known].max(1)
        return labels, scores
