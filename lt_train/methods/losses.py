"""Losses for long-tailed classification, and the weights of classes in them.

A loss is ``loss(logits (B, C), labels (B,), criterion) -> (B,)``: one value a sample. To add one: a
function and its line in LOSSES (lt_train/config/schema.py). A :class:`Criterion` holds what losses
derive from the numbers of training samples; calling it gives the (weighted) mean.
"""

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.collectives import all_reduce_
from lt_train.config.schema import LOSSES, LossConfig, code_of


class Criterion(nn.Module):
    """The loss ``config.name`` with weights of classes, from the start or deferred.

    ``class_counts`` (C,): training samples. ``scale``: what a cosine classifier multiplies its
    cosines by, which LDAM's margins, given for cosines, are multiplied by too.

    Attributes, beside what losses derive: ``class_weights`` (C,); ``epoch``, see :meth:`set_epoch`.
    """

    def __init__(self, config: LossConfig, class_counts: torch.Tensor, scale: float = 1.0):
        super().__init__()
        self.config, self.loss, self.epoch = config, code_of(LOSSES, config.name), 0.0
        counts = class_counts.double()
        seen = counts.clamp(min=1)  # a class without samples must not make a logit infinite
        derived = {
            "log_prior": (seen / seen.sum()).log(),
            "margins": scale * ldam_margins(counts, config.max_margin),
            "smoothing": class_smoothing(counts, *(config.label_aware_smoothing or (0.0, 0.0))),
            "class_weights": class_weights(counts, config),
        }
        for name, value in derived.items():
            self.register_buffer(name, value.float(), persistent=False)

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        epoch: float | None = None,
        weights: torch.Tensor | None = None,
        among: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Mean loss of ``logits`` (B, C) at ``epoch``, by default that of :meth:`set_epoch`.

        ``weights`` (B,): what samples count for, if they differ. ``among``: labels and weights of
        all of this rank's batch, of which these samples are a part; None: they are all.
        """
        epoch = self.epoch if epoch is None else epoch
        losses = self.loss(logits.float(), labels, self)
        own = self._weights(labels, weights, epoch)
        if own is None:
            return losses.mean()
        return weighted_mean(losses, own, own if among is None else self._weights(*among, epoch))

    def set_epoch(self, epoch: float) -> None:
        """How many epochs of training lie behind, by which weights of classes are deferred."""
        self.epoch = epoch

    def weights_classes(self, epoch: float) -> bool:
        """Whether classes have weights of their own at ``epoch``."""
        config = self.config
        return config.class_weights != "none" and epoch >= config.weights_from_epoch

    def _weights(
        self, labels: torch.Tensor, weights: torch.Tensor | None, epoch: float
    ) -> torch.Tensor | None:
        """``weights`` (B,) times those of classes; None: all the same."""
        if not self.weights_classes(epoch):
            return weights
        by_class = self.class_weights[labels]
        return by_class if weights is None else weights * by_class


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, criterion: Criterion) -> torch.Tensor:
    """Softmax cross-entropy, whose target may be smoothed in one of two ways.

    label_smoothing s: every class gets s / C, the true one 1 - s more (Szegedy et al. 2016).
    label_aware_smoothing: the true class keeps 1 - s, s being ``criterion.smoothing`` (C,) of it,
    and each of the others gets s / (C - 1) (Zhong et al. 2021).
    """
    config = criterion.config
    if config.label_aware_smoothing is None:
        return F.cross_entropy(
            logits, labels, reduction="none", label_smoothing=config.label_smoothing
        )
    log_probability = logits.log_softmax(1)
    true = log_probability.gather(1, labels[:, None])[:, 0]
    others = (log_probability.sum(1) - true) / max(1, logits.shape[1] - 1)
    smoothing = criterion.smoothing[labels]
    return -(1 - smoothing) * true - smoothing * others


def focal(logits: torch.Tensor, labels: torch.Tensor, criterion: Criterion) -> torch.Tensor:
    """(1 - p)^gamma times cross-entropy, p the true class's probability (Lin et al. 2017)."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    wrong = -torch.expm1(-losses)  # 1 - p
    # the power of an exact 0 has no finite gradient for gamma < 1
    wrong = wrong.clamp(min=torch.finfo(losses.dtype).tiny)
    return wrong**criterion.config.gamma * losses


def ldam(logits: torch.Tensor, labels: torch.Tensor, criterion: Criterion) -> torch.Tensor:
    """Cross-entropy with the true class's logit lowered by its margin (Cao et al. 2019).

    Margins grow as classes get rarer.
    """
    lowered = logits.scatter_add(1, labels[:, None], -criterion.margins[labels, None])
    return cross_entropy(lowered, labels, criterion)


def balanced_softmax(
    logits: torch.Tensor, labels: torch.Tensor, criterion: Criterion
) -> torch.Tensor:
    """Cross-entropy of a softmax in which a class counts by its size (Ren et al. 2020)."""
    return cross_entropy(logits + criterion.log_prior, labels, criterion)


def logit_adjustment(
    logits: torch.Tensor, labels: torch.Tensor, criterion: Criterion
) -> torch.Tensor:
    """Cross-entropy of logits plus tau times the log prior (Menon et al. 2021).

    tau 1 is the balanced softmax.
    """
    return cross_entropy(logits + criterion.config.tau * criterion.log_prior, labels, criterion)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """This rank's part of the mean of ``losses`` (B,) by ``weights`` (B,) over the global batch.

    The weights are divided by their mean over all ranks, of each of which ``among`` holds all, not
    over these alone: else what a sample counts for would depend on its company. Collective.
    """
    own = among.detach().double()
    weight, samples = all_reduce_(torch.stack([own.sum(), own.new_full((), len(own))]))
    return (losses * weights).mean() * (samples / weight.clamp(min=1e-12)).to(losses.dtype)


def class_weights(counts: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Weights (C,) of mean 1 over the classes that have samples, 0 for others; ones for "none".

    effective_number: (1 - beta) / (1 - beta^n) (Cui et al. 2019); inverse: 1 / n, its limit for
    beta -> 1.
    """
    present = counts > 0
    if config.class_weights == "none":
        return torch.ones_like(counts)
    effective = counts
    if config.class_weights == "effective_number":
        effective = (1 - config.beta**counts) / (1 - config.beta)
    weights = torch.where(present, 1 / effective.clamp(min=1e-12), 0.0)
    return weights * present.sum() / weights.sum().clamp(min=1e-12)


def ldam_margins(counts: torch.Tensor, max_margin: float) -> torch.Tensor:
    """Margins (C,) proportional to n^(-1/4), ``max_margin`` for the rarest class (Cao et al. 2019).

    A class without samples has the rarest one's.
    """
    rarest = torch.where(counts > 0, counts, counts.max().clamp(min=1)).min()
    return max_margin * (counts.clamp(min=rarest) / rarest) ** -0.25


def class_smoothing(counts: torch.Tensor, head: float, tail: float) -> torch.Tensor:
    """How much of the target the true class gives away, by class (C,).

    From ``tail`` for the rarest to ``head`` for the most frequent class along a quarter of a sine
    (Zhong et al. 2021, "concave").
    """
    place = (counts - counts.min()) / (counts.max() - counts.min()).clamp(min=1)
    return tail + (head - tail) * torch.sin(place * torch.pi / 2)
