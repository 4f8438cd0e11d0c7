"""Losses and class weights against the papers' formulas, written out a sample at a time; and their
means over several ranks.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from lt_train.config.schema import LOSSES, LossConfig
from lt_train.methods.losses import (
    Criterion,
    class_smoothing,
    class_weights,
    ldam_margins,
    weighted_mean,
)

COUNTS = torch.tensor([900, 120, 30, 4])
SCALE = 7.0  # of a cosine classifier


def make_batch(size: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(size, classes, generator=generator)
    return logits, torch.randint(0, classes, (size,), generator=generator)


def loss_of(
    config: LossConfig, logits: torch.Tensor, labels: torch.Tensor, epoch: float = 0.0, **options
) -> float:
    return float(Criterion(config, **{"class_counts": COUNTS, **options})(logits, labels, epoch))


def softmax_loss(logits: list[float], label: int) -> float:
    return math.log(sum(map(math.exp, logits))) - logits[label]


def mean_over(logits: torch.Tensor, labels: torch.Tensor, loss) -> float:
    """Mean of ``loss(logits of a sample, its label)``."""
    rows = [loss(row, label) for row, label in zip(logits.double().tolist(), labels.tolist())]
    return sum(rows) / len(rows)


def test_cross_entropy_is_torchs():
    logits, labels = make_batch()
    expected = float(F.cross_entropy(logits, labels))
    assert loss_of(LossConfig(), logits, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_weights_a_sample_by_how_wrong_it_is(gamma):
    def focal(row: list[float], label: int) -> float:
        loss = softmax_loss(row, label)
        return (1 - math.exp(-loss)) ** gamma * loss

    logits, labels = make_batch()
    expected = mean_over(logits, labels, focal)
    actual = loss_of(LossConfig("focal", gamma=gamma), logits, labels)
    assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_a_finite_gradient_where_the_network_is_certain(gamma):
    logits = torch.tensor([[60.0, 0.0, 0.0, 0.0], [0.0, 0.0, 60.0, 0.0]], requires_grad=True)
    criterion = Criterion(LossConfig("focal", gamma=gamma), COUNTS)
    criterion(logits, torch.tensor([0, 1]), 0.0).backward()
    assert logits.grad.isfinite().all() and logits.grad[0].abs().max() < 1e-6
    torch.testing.assert_close(logits.grad[1], torch.tensor([0.0, -0.5, 0.5, 0.0]))


def test_ldam_lowers_the_true_cosine_by_the_classs_margin():
    """Cao et al. 2019, equation 12, with s = 7 and margins 0.5 * (n / 4)^(-1/4)."""

    def ldam(cosines: list[float], label: int) -> float:
        lowered = list(cosines)
        lowered[label] -= 0.5 * (COUNTS[label].item() / 4) ** -0.25
        return softmax_loss([SCALE * cosine for cosine in lowered], label)

    logits, labels = make_batch()
    cosines = logits.tanh()
    actual = loss_of(LossConfig("ldam"), SCALE * cosines, labels, scale=SCALE)
    assert actual == pytest.approx(mean_over(cosines, labels, ldam), rel=1e-5)


def test_the_rarest_class_that_has_samples_gets_the_largest_margin():
    margins = ldam_margins(torch.tensor([0.0, 10000.0, 16.0, 1296.0]), 0.3)
    assert margins.tolist() == pytest.approx([0.3, 0.06, 0.3, 0.1])


def test_balanced_softmax_counts_a_class_by_its_samples():
    def balanced(row: list[float], label: int) -> float:
        parts = [count * math.exp(logit) for count, logit in zip(COUNTS.tolist(), row)]
        return -math.log(parts[label] / sum(parts))

    logits, labels = make_batch()
    actual = loss_of(LossConfig("balanced_softmax"), logits, labels)
    assert actual == pytest.approx(mean_over(logits, labels, balanced), rel=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_logit_adjustment_adds_tau_times_the_log_prior(tau):
    log_prior = [math.log(count / COUNTS.sum()) for count in COUNTS]

    def adjusted(row: list[float], label: int) -> float:
        return softmax_loss([logit + tau * log for logit, log in zip(row, log_prior)], label)

    logits, labels = make_batch()
    actual = loss_of(LossConfig("logit_adjustment", tau=tau), logits, labels)
    assert actual == pytest.approx(mean_over(logits, labels, adjusted), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
@pytest.mark.parametrize("name", ["cross_entropy", "balanced_softmax"])
def test_label_smoothing_gives_every_class_alike_the_true_one_too(name, smoothing):
    """Szegedy et al. 2016, and torch's own."""
    logits, labels = make_batch()
    prior = (COUNTS / COUNTS.sum()).log() if name == "balanced_softmax" else torch.zeros(4)

    def smoothed(row: list[float], label: int) -> float:
        losses = [softmax_loss(row, index) for index in range(len(row))]
        return (1 - smoothing) * losses[label] + smoothing * sum(losses) / len(row)

    actual = loss_of(LossConfig(name, label_smoothing=smoothing), logits, labels)
    expected = mean_over(logits + prior, labels, smoothed)
    assert actual == pytest.approx(expected, rel=1e-5)
    torchs = F.cross_entropy(logits + prior, labels, label_smoothing=smoothing)
    assert actual == pytest.approx(float(torchs), rel=1e-6)


def among_the_others(row: list[float], label: int, smoothing: float) -> float:
    losses = [softmax_loss(row, index) for index in range(len(row))]
    of_others = (sum(losses) - losses[label]) / (len(row) - 1)
    return (1 - smoothing) * losses[label] + smoothing * of_others


def test_label_aware_smoothing_goes_from_the_tails_to_the_heads_along_a_sine():
    counts = torch.tensor([4.0, 400.0, 30.0, 120.0, 202.0, 30.0])
    config = LossConfig(label_aware_smoothing=(0.4, 0.1))
    smoothing = class_smoothing(counts.double(), 0.4, 0.1)
    assert smoothing[:2].tolist() == pytest.approx([0.1, 0.4])
    assert smoothing[4].item() == pytest.approx(0.1 + 0.3 * math.sin(math.pi / 4))
    assert (smoothing[counts.argsort()].diff() >= 0).all() and smoothing[2] == smoothing[5]
    logits, labels = make_batch(classes=6)
    own = smoothing.tolist()
    expected = mean_over(
        logits, labels, lambda row, label: among_the_others(row, label, own[label])
    )
    assert loss_of(config, logits, labels, class_counts=counts) == pytest.approx(expected, rel=1e-5)


def test_classes_of_one_size_are_smoothed_alike():
    smoothing = class_smoothing(torch.full((3,), 7.0), 0.4, 0.1)
    assert smoothing.tolist() == pytest.approx([0.1] * 3)


# weights


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_class_weights_follow_the_effective_number_and_sum_to_the_classes(beta):
    config = LossConfig(class_weights="effective_number", beta=beta)
    weights = class_weights(COUNTS.double(), config)
    raw = [(1 - beta) / (1 - beta**count) for count in COUNTS.tolist()]
    assert weights.tolist() == pytest.approx([len(raw) * value / sum(raw) for value in raw])


def test_inverse_weights_are_the_limit_of_the_effective_number():
    inverse = class_weights(COUNTS.double(), LossConfig(class_weights="inverse"))
    assert (inverse * COUNTS).tolist() == pytest.approx([inverse[0].item() * 900] * 4)
    config = LossConfig(class_weights="effective_number", beta=1 - 1e-9)
    limit = class_weights(COUNTS.double(), config)
    assert inverse.tolist() == pytest.approx(limit.tolist(), rel=1e-5)


def test_classes_without_samples_have_no_part_in_the_weights():
    config = LossConfig(class_weights="effective_number")
    without = class_weights(torch.tensor([50.0, 5.0]), config)
    weights = class_weights(torch.tensor([50.0, 0.0, 5.0]), config)
    assert weights.tolist() == pytest.approx([without[0].item(), 0, without[1].item()])
    assert without.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("name", ["inverse", "effective_number"])
def test_the_weighted_loss_is_torchs(name):
    logits, labels = make_batch()
    config = LossConfig(class_weights=name)
    weights = class_weights(COUNTS.double(), config).float()
    expected = float(F.cross_entropy(logits, labels, weights))
    assert loss_of(config, logits, labels) == pytest.approx(expected, rel=1e-5)


def test_weights_of_samples_and_of_classes_multiply():
    logits, labels = make_batch()
    config = LossConfig(class_weights="inverse")
    of_samples = torch.linspace(0.5, 2, len(labels))
    weights = of_samples * class_weights(COUNTS.double(), config).float()[labels]
    expected = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    actual = Criterion(config, COUNTS)(logits, labels, 0.0, of_samples)
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_deferred_weights_start_at_their_epoch(name):
    logits, labels = make_batch()
    plain = LossConfig(name)
    deferred = LossConfig(name, class_weights="effective_number", weights_from_epoch=160)
    weighted = LossConfig(name, class_weights="effective_number")
    before, at_once = loss_of(plain, logits, labels), loss_of(weighted, logits, labels)
    assert loss_of(deferred, logits, labels, 159.99) == before != at_once
    for epoch in (160.0, 199.9):
        assert loss_of(deferred, logits, labels, epoch) == at_once


@pytest.mark.parametrize("weights", ["none", "inverse", "effective_number"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_class_without_samples_leaves_loss_and_gradient_finite(name, weights):
    logits, labels = make_batch()
    labels = labels.where(labels != 2, 0)
    smoothing = {} if name == "focal" else {"label_aware_smoothing": (0.3, 0.1)}
    config = LossConfig(name, class_weights=weights, **smoothing)
    criterion = Criterion(config, torch.tensor([900, 120, 0, 4]), 5.0)
    loss = criterion(logits.requires_grad_(), labels, 0.0)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert logits.grad.isfinite().all() and (logits.grad.abs().sum(1) > 0).all()


def test_a_weighted_mean_does_not_depend_on_the_weights_unit():
    losses, weights = torch.rand(5), torch.rand(5)
    expected = float((losses * weights).sum() / weights.sum())
    for unit in (weights, 1000 * weights):
        assert float(weighted_mean(losses, unit, unit)) == pytest.approx(expected, rel=1e-6)


def test_weighted_means_of_parts_add_up_to_that_of_all():
    losses, weights = torch.rand(5), torch.rand(5)
    parts = [weighted_mean(losses[at], weights[at], weights) for at in (slice(0, 2), slice(2, 5))]
    whole = weighted_mean(losses, weights, weights)
    assert float(2 / 5 * parts[0] + 3 / 5 * parts[1]) == pytest.approx(float(whole), rel=1e-6)


def test_the_tables_of_a_criterion_are_no_part_of_a_checkpoint():
    assert not Criterion(LossConfig("ldam"), COUNTS).state_dict()
