"""What the loop asks of a stage."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.metrics import Accuracy, collect_features, gather_rows, knn_scores
from lt_train.schema import Config, labeled_batch
from lt_train.weights import BACKBONE_FILE

Loaders = Callable[[str], Iterable[dict]]  # split -> this rank's share of it, once


class Stage(nn.Module):
    """One method: networks, loss and evaluation. Subclasses read top to bottom next to their paper.

    Attributes: ``backbone``, the network that later stages start from; ``classifier``, features -> class scores, if the stage has
    one; ``num_views``, how many differently augmented views of each image ``forward`` wants; ``headline``, the metric that tells
    runs apart.
    """

    num_views = 1
    headline = "top1"
    backbone: nn.Module
    classifier: nn.Module

    def __init__(self, config: Config, class_counts: torch.Tensor, pseudo_counts: torch.Tensor | None = None):
        """``class_counts`` (C,) int64: labeled training samples of each class; ``pseudo_counts``: pseudo-labeled ones, if there are any."""
        super().__init__()
        self.config, self.class_counts = config, class_counts
        self.pseudo_counts = torch.zeros_like(class_counts) if pseudo_counts is None else pseudo_counts
        self.labeled_samples = int(class_counts.sum())
        joined = int(self.pseudo_counts.sum()) if config.unlabeled.share is None else 0
        self._samples_per_epoch = max(1, self.labeled_samples + joined)

    def epoch(self, step: int) -> float:
        """How many epochs lie before ``step``."""
        return step * labeled_batch(self.config) / self._samples_per_epoch

    def starting_weights(self) -> dict[str, nn.Module]:
        """What ``model.init_from`` fills: the file in a run's folder, and the network that it is for."""
        return {BACKBONE_FILE: self.backbone}

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

    def evaluate_knn(self, loaders: Loaders, split: str) -> dict:
        """Metrics ``knn_*`` of classifying ``split`` by the backbone's features among those of the training split. Collective."""
        device, loader = next(self.parameters()).device, loaders(self.config.data.train_split)
        bank, bank_labels = map(gather_rows, collect_features(self._embed, loader, self.backbone.out_features, device))
        accuracy = Accuracy(self.class_counts, bank.device, logits=False)
        knn, num_classes = self.config.knn, len(self.class_counts)
        for batch in loaders(split):
            accuracy.update(knn_scores(self._embed(batch["views"][0]), bank, bank_labels, num_classes, knn.k, knn.temperature), batch["label"])
        return {f"knn_{name}" if name != "samples" else name: value for name, value in accuracy.compute().items()}

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone(images).float(), dim=1)

    def encoders(self) -> list[nn.Module]:
        """The networks that torch.compile is worth its time for."""
        return [self.backbone]
