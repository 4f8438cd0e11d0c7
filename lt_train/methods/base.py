"""What the loop asks of a method."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.collectives import all_reduce_
from lt_train.config.schema import METHODS, Config
from lt_train.data.batch import Batch, Loader
from lt_train.methods.metrics import Accuracy, collect_features
from lt_train.methods.neighbours import knn_votes
from lt_train.models.trainable import hold_still
from lt_train.models.weights import BACKBONE_FILE

Outputs = dict[str, torch.Tensor]  # what forward returns: "loss", and scalars to log
Loaders = Callable[[str], Loader]  # split -> this rank's share of it, once


@dataclass(frozen=True)
class Counts:
    """Training samples of each class, (C,) int64.

    ``images``: how many data.root has, labeled or not; 0 where a run is only opened again.
    """

    labeled: torch.Tensor
    pseudo_labeled: torch.Tensor
    images: int = 0

    @classmethod
    def of(
        cls, labeled: torch.Tensor, pseudo_labeled: torch.Tensor | None = None, images: int = 0
    ) -> "Counts":
        none = torch.zeros_like(labeled)
        return cls(labeled, none if pseudo_labeled is None else pseudo_labeled, images)

    @property
    def together(self) -> torch.Tensor:
        return self.labeled + self.pseudo_labeled


@dataclass(frozen=True)
class Progress:
    """How far a training is: before global step ``step`` lie ``epoch`` epochs."""

    step: int
    epoch: float
    starts_epoch: bool = False  # the first step of an epoch other than the first


class Method(nn.Module):
    """One method: networks, loss and evaluation. Subclasses read top to bottom next to their paper.

    Attributes: ``backbone``, the network that later stages start from; ``classifier``, features ->
    class scores, if the method has one. What others must know of it before it is loaded is in
    METHODS (lt_train/config/schema.py).
    """

    backbone: nn.Module
    classifier: nn.Module
    # metrics for which backbone and classifier alone do not suffice
    needs_whole_state: tuple[str, ...] = ()

    def __init__(self, config: Config, counts: Counts):
        super().__init__()
        self.config, self.counts = config, counts

    @property
    def headline(self) -> str:
        """The metric that tells runs apart."""
        return METHODS[self.config.method].headline

    @property
    def class_counts(self) -> torch.Tensor:
        """Labeled training samples of each class (C,), by which classes are many-, ... few-shot."""
        return self.counts.labeled

    def starting_weights(self) -> dict[str, nn.Module]:
        """What ``model.init_from`` fills: the file in a run's folder, and the network it is for."""
        return {BACKBONE_FILE: self.backbone}

    def starting_classifiers(self) -> list[nn.Module]:
        """What ``classifier.init`` fills: classifiers of the features of ``backbone``."""
        return [self.classifier]

    def prepare(self) -> None:
        """Called once, when starting weights are in and before anything is resumed.

        Where ``model.trainable`` adds to the backbone, it has done so.
        """

    def train(self, mode: bool = True) -> "Method":
        super().train(mode)
        hold_still(self)
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The backbone's features (B, D) of images (B, 3, H, W); what is features stays as it is.

        See :func:`of_features`.
        """
        return images if images.ndim == 2 else self.backbone(images)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        """``{"loss": scalar, ...}`` for this rank's part of a batch; the others are logged."""
        raise NotImplementedError

    def phase(self, progress: Progress) -> Hashable | None:
        """All that :meth:`forward` and :meth:`after_step` take from ``progress``, if that rarely
        changes and they look at no more than the tensors of a batch beside: such steps can be
        captured. None: they cannot. A subclass with a ``forward`` of its own says it anew.
        """
        return None

    def seen(self, batch: Batch, progress: Progress) -> list[torch.Tensor]:
        """The views of a batch as :meth:`forward` gives them to networks, to be looked at."""
        return batch.views

    def gauges(self, progress: Progress) -> dict[str, float]:
        """Scalars to log that follow from ``progress``, the steps done, alone."""
        return {}

    def class_weights(self, progress: Progress) -> torch.Tensor | None:
        """What a sample of each class (C,) counts for in the loss; None: all the same."""
        return None

    def after_step(self) -> None:
        """Called after every step of the optimizer, on every rank with the same weights."""

    def evaluate(self, loaders: Loaders, split: str) -> dict:
        """Metrics on ``split``, the same on every rank. Collective.

        By default those of :meth:`predict`; of several views of an image, of their mean.
        """
        accuracy = Accuracy(self.class_counts, next(self.parameters()).device)
        for batch in loaders(split):
            scores = torch.stack([self.predict(view).float() for view in batch.views])
            accuracy.update(scores.mean(0), batch.label, batch.sample_id)
        return accuracy.compute()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Class scores (B, C) of images (B, 3, H, W)."""
        raise NotImplementedError

    def evaluate_knn(self, loaders: Loaders, split: str) -> dict:
        """Metrics ``knn_*`` of ``split`` by its neighbours in the training split. Collective.

        Neighbours are those of the backbone's features on the unit sphere. In ``knn_cb_*`` a vote
        is divided by the number of training samples of its class: else the frequent classes, whose
        samples are most of any crowd of neighbours, outvote the rare ones whatever the features.
        """
        device, knn = next(self.parameters()).device, self.config.knn
        (bank, bank_labels), (queries, labels) = (
            collect_features(self._embed, loaders(name), self.backbone.out_features, device)
            for name in (self.config.data.train_split, split)
        )
        classes = len(self.class_counts)
        voters = all_reduce_(bank_labels.bincount(minlength=classes)).clamp(min=1)
        plain, balanced = (
            Accuracy(self.class_counts, device, logits=False) for _ in ("plain", "balanced")
        )
        turns = knn_votes(queries, bank, bank_labels, classes, knn.k, knn.temperature)
        for votes in turns:
            own, labels = labels.split([len(votes), len(labels) - len(votes)])
            plain.update(votes, own)
            balanced.update(votes / voters, own)
        metrics: dict = {}
        for prefix, accuracy in (("knn_", plain), ("knn_cb_", balanced)):
            found = accuracy.compute()
            metrics["samples"] = found.pop("samples")
            metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        return metrics

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone(images).float(), dim=1)

    def encoders(self) -> list[nn.Module]:
        """The backbone, and others that follow it: what torch.compile is worth its time for, and
        ``model.trainable`` restricts.
        """
        return [self.backbone]


def of_features(forward: Callable) -> Callable:
    """Marks a ``forward`` that sees the images of a batch by :meth:`Method.features` alone.

    Where the backbone is frozen it is then given features in their place. The mark is this
    function's own: a subclass with another ``forward`` gets images.
    """
    forward.of_features = True
    return forward


def train_top1(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many of a training batch are right, in %: a scalar to log."""
    return (logits.detach().argmax(1) == labels).float().mean() * 100
