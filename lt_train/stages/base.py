"""What the loop asks of a stage."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from lt_train.schema import Config
from lt_train.metrics import Accuracy

Loaders = Callable[[str], Iterable[dict]]  # split -> this rank's share of it, once


class Stage(nn.Module):
    """One method: networks, loss and evaluation. Subclasses read top to bottom next to their paper.

    Attributes: ``backbone``, the network that later stages start from; ``classifier``, features -> class scores, if the stage has
    one; ``num_views``, how many differently augmented views
    of each image ``forward`` wants; ``headline``, the metric that tells runs apart.
    """

    num_views = 1
    headline = "top1"
    backbone: nn.Module
    classifier: nn.Module

    def __init__(self, config: Config, class_counts: torch.Tensor):
        """``class_counts`` (C,) int64: training samples of each class."""
        super().__init__()
        self.config, self.class_counts = config, class_counts

    def prepare(self) -> None:
        """Called once, when the backbone holds its starting weights and before anything is resumed."""

    def forward(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        """``{"loss": scalar, ...}`` for this rank's part of global step ``step``; every other entry is a scalar to log."""
        raise NotImplementedError

    def evaluate(self, loaders: Loaders, split: str) -> dict:
        """Metrics on ``split``, the same on every rank. Collective. The default scores ``self.predict``."""
        accuracy = Accuracy(self.class_counts, next(self.parameters()).device)
        for batch in loaders(split):
            accuracy.update(self.predict(batch["views"][0]).float(), batch["label"])
        return accuracy.compute()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (B, C) of images (B, 3, H, W)."""
        raise NotImplementedError

    def encoders(self) -> list[nn.Module]:
        """The networks that torch.compile is worth its time for."""
        return [self.backbone]
