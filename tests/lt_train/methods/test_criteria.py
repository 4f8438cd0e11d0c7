"""Losses for loops of one's own, against torch's and the papers' formulas; what else they compute
is in test_losses.py.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_train.config.schema import LossConfig
from lt_train.errors import UserError
from lt_train.methods.criteria import (
    BalancedSoftmaxLoss,
    CrossEntropyLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
)
from lt_train.methods.losses import Criterion
from lt_train.models.heads import CosineClassifier

COUNTS = [900, 120, 30, 4]
EVERY = [CrossEntropyLoss, FocalLoss, LDAMLoss, BalancedSoftmaxLoss, LogitAdjustmentLoss]
BETA = 0.999
EFFECTIVE = torch.tensor([(1 - BETA) / (1 - BETA**count) for count in COUNTS])


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, 4, generator=generator)
    return logits, torch.randint(0, 4, (12,), generator=generator)


def prior() -> torch.Tensor:
    counts = torch.tensor(COUNTS, dtype=torch.float)
    return (counts / counts.sum()).log()


def margins() -> torch.Tensor:
    """n^(-1/4), 0.4 for the rarest class."""
    powers = torch.tensor(COUNTS, dtype=torch.float) ** -0.25
    return 0.4 * powers / powers.max()


def test_each_is_its_papers_formula(batch):
    logits, labels = batch
    probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    true = F.one_hot(labels, 4)
    expected = {
        CrossEntropyLoss(COUNTS): F.cross_entropy(logits, labels),
        CrossEntropyLoss(COUNTS, label_smoothing=0.1): F.cross_entropy(
            logits, labels, label_smoothing=0.1
        ),
        FocalLoss(COUNTS, 2.0): (-((1 - probability) ** 2) * probability.log()).mean(),
        LDAMLoss(COUNTS, 0.4, 10.0): F.cross_entropy(logits - 10 * margins() * true, labels),
        BalancedSoftmaxLoss(COUNTS): F.cross_entropy(logits + prior(), labels),
        LogitAdjustmentLoss(COUNTS, 0.7): F.cross_entropy(logits + 0.7 * prior(), labels),
    }
    for criterion, value in expected.items():
        torch.testing.assert_close(criterion(logits, labels), value, msg=str(criterion))


@pytest.mark.parametrize("made", EVERY)
def test_class_weights_are_deferred_to_their_epoch(made, batch):
    logits, labels = batch
    keys = {"class_weights": "effective_number", "beta": BETA}
    plain, weighted = made(COUNTS), made(COUNTS, **keys)
    deferred = made(COUNTS, **keys, weights_from_epoch=160)
    assert not weighted(logits, labels).equal(plain(logits, labels))
    torch.testing.assert_close(weighted.class_weights, EFFECTIVE * 4 / EFFECTIVE.sum())
    for epoch, same in ((0, plain), (159, plain), (160, weighted), (199, weighted)):
        deferred.set_epoch(epoch)
        assert deferred(logits, labels).equal(same(logits, labels)), epoch


def test_weighted_cross_entropy_is_torchs(batch):
    ours = CrossEntropyLoss(COUNTS, class_weights="effective_number", beta=BETA)
    torch.testing.assert_close(ours(*batch), F.cross_entropy(*batch, weight=EFFECTIVE))


def test_counts_may_be_any_numbers_and_logits_of_half_precision(batch):
    logits, labels = batch
    kinds = (COUNTS, tuple(COUNTS), np.array(COUNTS, np.int64), torch.tensor(COUNTS))
    values = {float(BalancedSoftmaxLoss(counts)(logits, labels)) for counts in kinds}
    assert len(values) == 1
    half = BalancedSoftmaxLoss(COUNTS)(logits.bfloat16(), labels)
    assert half.dtype == torch.float32 and abs(float(half) - values.pop()) < 0.05


def test_a_class_without_samples_costs_nothing_finite(batch):
    logits, labels = batch
    for made in EVERY:
        criterion = made([900, 120, 0, 4], class_weights="inverse")
        assert criterion(logits, labels).isfinite()


def test_they_are_the_losses_of_training(batch):
    config = LossConfig("ldam", max_margin=0.3, class_weights="inverse")
    theirs = Criterion(config, torch.tensor(COUNTS), 20.0)
    ours = LDAMLoss(COUNTS, 0.3, 20.0, class_weights="inverse")
    assert ours(*batch).equal(theirs(*batch)) and ours.config == config
    assert not ours.state_dict(), "a checkpoint has no more to hold than the network's"


def test_gradients_flow_to_a_cosine_head(batch):
    head, features = CosineClassifier(8, 4, scale=30.0), torch.randn(12, 8)
    LDAMLoss(COUNTS)(head(features), batch[1]).backward()
    assert head.weight.grad.isfinite().all() and head.weight.grad.any()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: LDAMLoss([]), "class_counts must be a number of samples for each class"),
        (lambda: LDAMLoss([[1, 2]]), "class_counts must be a number of samples for each class"),
        (lambda: LDAMLoss([3, -1]), "class_counts must be a number of samples for each class"),
        (lambda: LDAMLoss([0, 0]), "class_counts must be .* not all 0"),
        (lambda: LDAMLoss(COUNTS, -0.5), "loss.max_margin must be 0 or more"),
        (lambda: LDAMLoss(COUNTS, scale=0.0), "classifier.scale must be more than 0"),
        (lambda: FocalLoss(COUNTS, -1.0), "loss.gamma must be 0 or more"),
        (lambda: FocalLoss(COUNTS, label_smoothing=0.1), "focal is not defined for smoothed"),
        (lambda: CrossEntropyLoss(COUNTS, beta=1.0), "loss.beta must be from 0 to below 1"),
        (
            lambda: CrossEntropyLoss(COUNTS, label_smoothing=0.1, label_aware_smoothing=(0.1, 0.3)),
            "exclude each other",
        ),
        (
            lambda: CrossEntropyLoss(COUNTS, class_weights="cb"),
            "class_weights: there is no 'cb'; known: none",
        ),
    ],
)
def test_a_mistake_is_one_line(made, message):
    with pytest.raises(UserError, match=message):
        made()
