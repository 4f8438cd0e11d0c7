"""Rotation prediction (Gidaris et al. 2018): Yang and Xu's pre-training for small images."""

from collections.abc import Hashable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Loaders, Method, Outputs, Progress, train_top1
from lt_train.methods.metrics import Accuracy, feature_std
from lt_train.models.backbones import make_backbone
from lt_train.random_streams import Stream, mix


class Rotation(Method):
    """Backbone and linear classifier that tells by how many quarter turns an image was rotated."""

    needs_whole_state = ("rotation_top1",)

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        self.backbone = make_backbone(config.model.backbone, config.eval_view.size)
        self.rotation_head = nn.Linear(self.backbone.out_features, 4)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        images, turns = self._rotated(batch, progress)
        features = self.backbone(images)
        logits = self.rotation_head(features).float()
        return {
            "loss": F.cross_entropy(logits, turns),
            "rotation_top1": train_top1(logits, turns),
            "feature_std": feature_std(features),
        }

    def seen(self, batch: Batch, progress: Progress) -> list[torch.Tensor]:
        return [self._rotated(batch, progress)[0]]

    def _rotated(self, batch: Batch, progress: Progress) -> tuple[torch.Tensor, torch.Tensor]:
        """The images that a step rotates, and by how many quarter turns."""
        images = batch.views[0]
        rotated = four_rotations(images)  # (4, B, 3, H, W)
        if self.config.rotation.all_four:
            turns = torch.arange(4, device=images.device).repeat_interleave(len(images))
            images = rotated.flatten(0, 1)
        else:
            turns = self._turns(batch.place, progress.step).to(images.device, non_blocking=True)
            images = rotated[turns, torch.arange(len(images), device=images.device)]
        return images.contiguous(memory_format=torch.channels_last), turns

    def phase(self, progress: Progress) -> Hashable | None:
        return () if self.config.rotation.all_four else None

    def _turns(self, place: np.ndarray, step: int) -> torch.Tensor:
        """Quarter turns (B,) of images by their place in the global batch; ranks do not matter."""
        drawn = mix(self.config.seed, step, place, Stream.ROTATION) >> np.uint64(62)
        return torch.from_numpy(drawn.astype(np.int64))

    def evaluate(self, loaders: Loaders, split: str) -> dict:
        """k-NN metrics of the backbone, and ``rotation_top1`` over all rotations of each image."""
        accuracy = Accuracy(torch.ones(4, dtype=torch.int64), self.rotation_head.weight.device)
        for batch in loaders(split):
            for turn, images in enumerate(four_rotations(batch.views[0])):
                logits = self.rotation_head(self.backbone(images)).float()
                accuracy.update(logits, torch.full_like(batch.label, turn))
        return self.evaluate_knn(loaders, split) | {"rotation_top1": accuracy.compute()["top1"]}


def four_rotations(images: torch.Tensor) -> torch.Tensor:
    """``images`` (B, 3, S, S) by 0, 1, 2 and 3 quarter turns counter-clockwise: (4, B, 3, S, S)."""
    return torch.stack([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
