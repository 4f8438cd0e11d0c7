"""Rotation prediction (Gidaris et al. 2018), the self-supervised pre-training of Yang and Xu 2020 for small images."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.data.order import batch_slice, mix
from lt_train.distributed import rank_and_size
from lt_train.metrics import Accuracy
from lt_train.models.backbones import make_backbone
from lt_train.schema import Config
from lt_train.stages.base import Loaders, Stage


class Rotation(Stage):
    """Backbone and linear classifier that tells by how many quarter turns an image was rotated."""

    headline = "knn_top1"

    def __init__(self, config: Config, class_counts: torch.Tensor, pseudo_counts: torch.Tensor | None = None):
        super().__init__(config, class_counts, pseudo_counts)
        self.backbone = make_backbone(config.model.backbone)
        self.rotation_head = nn.Linear(self.backbone.out_features, 4)

    def forward(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        images = batch["views"][0]
        rotated = four_rotations(images)  # (4, B, 3, H, W)
        if self.config.rotation.all_four:
            images, turns = rotated.flatten(0, 1), torch.arange(4, device=images.device).repeat_interleave(len(images))
        else:
            turns = self._turns(step).to(images.device, non_blocking=True)
            images = rotated[turns, torch.arange(len(images), device=images.device)]
        logits = self.rotation_head(self.backbone(images.contiguous(memory_format=torch.channels_last))).float()
        return {"loss": F.cross_entropy(logits, turns), "rotation_top1": (logits.detach().argmax(1) == turns).float().mean() * 100}

    def _turns(self, step: int) -> torch.Tensor:
        """Quarter turns (B,) of this rank's images; by their place in the global batch, so that ranks do not matter."""
        places = batch_slice(0, self.config.global_batch_size, *rank_and_size())
        return torch.from_numpy((mix(self.config.seed, step, places, 11) >> np.uint64(62)).astype(np.int64))

    def evaluate(self, loaders: Loaders, split: str) -> dict:
        """k-NN metrics of the backbone, and ``rotation_top1`` over all four rotations of each image."""
        accuracy = Accuracy(torch.ones(4, dtype=torch.int64), self.rotation_head.weight.device)
        for batch in loaders(split):
            for turn, images in enumerate(four_rotations(batch["views"][0])):
                accuracy.update(self.rotation_head(self.backbone(images)).float(), torch.full_like(batch["label"], turn))
        return self.evaluate_knn(loaders, split) | {"rotation_top1": accuracy.compute()["top1"]}


def four_rotations(images: torch.Tensor) -> torch.Tensor:
    """``images`` (B, 3, S, S) by 0, 1, 2 and 3 quarter turns counter-clockwise: (4, B, 3, S, S)."""
    return torch.stack([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
