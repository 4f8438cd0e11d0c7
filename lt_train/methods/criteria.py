"""The losses of training (:mod:`losses`) for loops of your own: made from the numbers of training
samples of the classes, called with logits and labels.
"""

from typing import Any, Literal, TypedDict, Unpack, get_args

import torch

from lt_train.config.checks import check
from lt_train.config.schema import ClassifierConfig, Config, LossConfig
from lt_train.errors import UserError
from lt_train.methods.losses import Criterion

ENDLESS = 1e9  # epochs, of a training of unknown length
ClassWeights = Literal["none", "inverse", "effective_number"]


class Weighting(TypedDict, total=False):
    """Weights of classes, which every loss takes: see :class:`LossConfig`.

    ``weights_from_epoch``: they count from this epoch of :meth:`Criterion.set_epoch` on (deferred
    re-weighting, DRW).
    """

    class_weights: ClassWeights
    beta: float
    weights_from_epoch: float


class Smoothing(Weighting, total=False):
    """And smoothed labels."""

    label_smoothing: float
    label_aware_smoothing: tuple[float, float] | None


class _Loss(Criterion):
    """Called with ``logits`` (B, C) and ``labels`` (B,) int64, it gives their mean loss.

    ``class_counts`` (C,): training samples of each class, as numbers, an array or a tensor; a class
    may have none. Where classes have weights, the mean is by weight over the batches of all ranks
    of torch.distributed: then the call is collective. A :class:`UserError` for what makes no sense.
    """

    def __init__(self, name: str, class_counts: Any, scale: float, keys: dict[str, Any]):
        config = LossConfig(name, **keys)
        head = ClassifierConfig(head="cosine", scale=scale)
        check(Config(loss=config, classifier=head, epochs=ENDLESS))
        if config.class_weights not in get_args(ClassWeights):
            known = ", ".join(get_args(ClassWeights))
            raise UserError(f"class_weights: there is no '{config.class_weights}'; known: {known}")
        counts = torch.as_tensor(class_counts).detach().cpu()
        if counts.ndim != 1 or not len(counts) or bool((counts < 0).any()) or not counts.any():
            raise UserError("class_counts must be a number of samples for each class, not all 0")
        super().__init__(config, counts, scale)


class CrossEntropyLoss(_Loss):
    """Softmax cross-entropy; with ``class_weights="effective_number"`` that of Cui et al. 2019."""

    def __init__(self, class_counts: Any, **keys: Unpack[Smoothing]):
        super().__init__("cross_entropy", class_counts, 1.0, {**keys})


class FocalLoss(_Loss):
    """(1 - p)^gamma times cross-entropy, p the true class's probability (Lin et al. 2017)."""

    def __init__(self, class_counts: Any, gamma: float = 1.0, **keys: Unpack[Weighting]):
        super().__init__("focal", class_counts, 1.0, {"gamma": gamma, **keys})


class LDAMLoss(_Loss):
    """Cross-entropy with margins, larger for rarer classes (Cao et al. 2019).

    Logits are ``scale`` times cosines, as :class:`CosineClassifier` gives them; ``max_margin`` is
    the rarest class's, of cosines.
    """

    def __init__(
        self,
        class_counts: Any,
        max_margin: float = 0.5,
        scale: float = 30.0,
        **keys: Unpack[Smoothing],
    ):
        super().__init__("ldam", class_counts, scale, {"max_margin": max_margin, **keys})


class BalancedSoftmaxLoss(_Loss):
    """Cross-entropy of a softmax in which a class counts by its size (Ren et al. 2020)."""

    def __init__(self, class_counts: Any, **keys: Unpack[Smoothing]):
        super().__init__("balanced_softmax", class_counts, 1.0, {**keys})


class LogitAdjustmentLoss(_Loss):
    """Cross-entropy of logits plus ``tau`` times the log prior (Menon et al. 2021)."""

    def __init__(self, class_counts: Any, tau: float = 1.0, **keys: Unpack[Smoothing]):
        super().__init__("logit_adjustment", class_counts, 1.0, {"tau": tau, **keys})
