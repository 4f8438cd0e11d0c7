"""ProCo against Bessel functions, samples of von Mises-Fisher distributions, and the loss that it
is the expectation of.
"""

import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, hyp0f1, ive
from scipy.stats import vonmises_fisher
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config, ProcoConfig
from lt_train.data.batch import Batch
from lt_train.methods.proco import MAX_CONCENTRATION, Proco, log_normaliser, mean_directions
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    COUNTS,
    FEATURES,
    make_images,
    make_labels,
    make_method,
    progress_of,
)

DIM = 16
KAPPAS = np.concatenate([[0.0], np.geomspace(1e-3, MAX_CONCENTRATION, 300)])


def proco_method(
    temperature: float = 0.5, weight: float = 1.0, global_batch_size: int = 30
) -> Proco:
    proco = ProcoConfig(DIM, temperature, weight)
    method = make_method(Config(method="proco", proco=proco, global_batch_size=global_batch_size))
    method.projector = nn.Linear(FEATURES, DIM)
    return method


def three_views(step: int, size: int = 30) -> Batch:
    views = [make_images(size, 10 * step + view) for view in range(3)]
    return make_batch(views, make_labels(size).roll(step))


def project(method: Proco, views: list[torch.Tensor]) -> torch.Tensor:
    return F.normalize(method.projector(method.backbone(torch.cat(views))), dim=1)


def exact_log_normaliser(kappa: float, v: float) -> float:
    """log kappa^v / I_v(kappa), by whichever function neither overflows nor underflows."""
    scaled = ive(v, kappa)
    if scaled > 1e-280:
        return v * math.log(kappa) - math.log(scaled) - kappa
    return v * math.log(2) + gammaln(v + 1) - math.log(hyp0f1(v + 1, kappa**2 / 4))


@pytest.mark.parametrize(
    ("dim", "error"), [(16, 1e-4), (32, 1e-5), (64, 1e-6), (128, 1e-8), (256, 1e-8), (512, 1e-8)]
)
def test_the_normaliser_is_that_of_bessel_functions(dim, error):
    v = dim / 2 - 1
    expected = [exact_log_normaliser(kappa, v) for kappa in KAPPAS]
    actual = log_normaliser(torch.from_numpy(KAPPAS), dim).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=error)


@pytest.mark.parametrize("dim", [16, 128, 512])
def test_the_normalisers_gradient_is_the_mean_length(dim):
    """d/dkappa log kappa^v / I_v(kappa) = - I_(v+1) / I_v, and 0 at 0."""
    v = dim / 2 - 1
    kappas = torch.from_numpy(KAPPAS).requires_grad_()
    log_normaliser(kappas, dim).sum().backward()
    assert kappas.grad.isfinite().all() and kappas.grad[0] == 0
    exact = ive(v, KAPPAS) > 1e-280
    ratio = ive(v + 1, KAPPAS[exact]) / ive(v, KAPPAS[exact])
    np.testing.assert_allclose(kappas.grad.numpy()[exact], -ratio, rtol=1e-4)
    some = torch.tensor([0.5, 30.0, 3000.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda kappa: log_normaliser(kappa, dim), some)


@pytest.mark.parametrize("kappa", [5.0, 50.0, 500.0])
def test_a_distribution_is_found_again_from_its_samples(kappa):
    direction = F.normalize(torch.arange(1.0, DIM + 1), dim=0)
    samples = torch.from_numpy(vonmises_fisher(direction.numpy(), kappa, seed=0).rvs(20_000))
    sums = samples.float().sum(0, keepdim=True)
    directions, concentrations = mean_directions(sums, torch.tensor([20_000.0]))
    assert concentrations.item() == pytest.approx(kappa, rel=0.03)
    assert float(directions[0] @ direction) > 0.999


def test_no_samples_are_uniform_and_equal_ones_as_concentrated_as_allowed():
    sums = torch.stack([torch.zeros(DIM), 3 * F.one_hot(torch.tensor(2), DIM)])
    directions, concentrations = mean_directions(sums, torch.tensor([0.0, 3.0]))
    assert directions.equal(torch.stack([torch.zeros(DIM), sums[1] / 3]))
    assert concentrations.tolist() == [0, MAX_CONCENTRATION]


def set_distributions(method: Proco) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of 40 samples a class; the directions and concentrations that they mean."""
    generator = torch.Generator().manual_seed(1)
    directions = F.normalize(torch.randn(3, 1, DIM, generator=generator), dim=2)
    centres = 2 * directions * torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    samples = F.normalize(centres + torch.randn(3, 40, DIM, generator=generator), dim=2)
    method.feature_sums[0], method.feature_counts[0] = samples[:, :10].sum(1), 10
    method.feature_sums[1], method.feature_counts[1] = samples[:, 10:].sum(1), 30
    return mean_directions(samples.sum(1), torch.full((3,), 40.0))


def test_the_loss_is_the_expectation_of_supervised_contrastive_learning():
    """Khosla et al. 2020's loss (the mean over positives inside the logarithm) against 60,000
    samples, classes by their prior.
    """

    def sample(direction: torch.Tensor, kappa: torch.Tensor, number: int) -> torch.Tensor:
        unit = direction.double().numpy() / np.linalg.norm(direction.double().numpy())
        return torch.from_numpy(vonmises_fisher(unit, kappa.item(), seed=0).rvs(number))

    method = proco_method(temperature=0.5)
    distributions = zip(*set_distributions(method))
    anchors = F.normalize(torch.randn(4, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
    labels = torch.tensor([0, 1, 2, 2])
    prior = (COUNTS / COUNTS.sum()).double()
    numbers = (60_000 * prior).round().int().tolist()
    others = [sample(*of_class, number) for of_class, number in zip(distributions, numbers)]
    # (4, n) a class
    similarities = [(anchors.double() @ samples.T / 0.5).exp() for samples in others]
    everything = sum(part.sum(1) for part in similarities)
    positives = torch.stack([similarities[label][row].mean() for row, label in enumerate(labels)])
    sampled = -(positives / everything).log() - math.log(sum(numbers)) - prior[labels].log()
    expected = F.cross_entropy(method.contrastive_logits(anchors), labels, reduction="none")
    torch.testing.assert_close(expected.double(), sampled, atol=0.02, rtol=0)


def test_logits_are_finite_and_differentiable_whatever_the_statistics():
    method = proco_method(temperature=0.05)
    # class 1: one sample; 0 and 2: none
    method.feature_sums[0, 1] = F.one_hot(torch.tensor(3), DIM)
    method.feature_counts[0, 1] = 1
    features = torch.cat([torch.eye(DIM)[3:5], -torch.eye(DIM)[3:4]]).requires_grad_()
    logits = method.contrastive_logits(features)
    F.cross_entropy(logits, torch.tensor([1, 0, 1])).backward()
    assert logits.isfinite().all() and features.grad.isfinite().all()
    assert logits[0].argmax() == 1 and logits[2].argmax() != 1


def test_the_methods_loss_is_the_classifiers_and_the_contrastive_ones():
    method, batch = proco_method(weight=0.3), three_views(0)
    outputs = method(batch, progress_of(method, 0))
    classified = F.cross_entropy(method.predict(batch.views[0]), batch.label)
    logits = method.contrastive_logits(project(method, batch.views[1:]))
    contrast = F.cross_entropy(logits, batch.label.repeat(2))
    torch.testing.assert_close(outputs["contrastive_loss"], contrast)
    torch.testing.assert_close(outputs["loss"], classified + 0.3 * contrast)
    method.zero_grad()
    outputs["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())


def test_statistics_are_those_of_the_last_epoch_and_of_this_one_and_part_of_a_checkpoint():
    """90 samples, 40 a step: epochs begin at steps 0, 3, 5, 7 (after 120, 200 and 280 samples)."""
    method = proco_method(global_batch_size=40)
    epoch_of = [0, 0, 0, 1, 1, 2, 2, 3]
    sums, counts = [], []
    for step in range(8):
        batch = three_views(step, 40)
        method(batch, progress_of(method, step))
        projected = project(method, batch.views[1:]).detach()
        members = F.one_hot(batch.label.repeat(2), 3).float()
        sums.append(members.T @ projected)
        counts.append(members.sum(0))
        for row, epoch in enumerate((epoch_of[step] - 1, epoch_of[step])):
            steps = [index for index in range(step + 1) if epoch_of[index] == epoch]
            expected_sums = sum((sums[index] for index in steps), torch.zeros(3, DIM))
            expected_counts = sum((counts[index] for index in steps), torch.zeros(3))
            torch.testing.assert_close(method.feature_sums[row], expected_sums)
            assert method.feature_counts[row].equal(expected_counts)
    other = proco_method()
    other.load_state_dict(method.state_dict())
    assert other.feature_sums.equal(method.feature_sums)
    assert other.feature_counts.equal(method.feature_counts)
