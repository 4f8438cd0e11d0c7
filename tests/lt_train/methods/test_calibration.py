"""The temperature is that of the least negative log-likelihood, as a search by SciPy finds it."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from lt_train.errors import UserError
from lt_train.methods.calibration import Temperature

CPU = torch.device("cpu")


def drawn(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (300, 5) that are ``scale`` times what labels (300,) are drawn by."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return scale * logits, labels


def fitted(scores: torch.Tensor, labels: torch.Tensor) -> float:
    temperature = Temperature(CPU)
    for part in zip(scores.split(64), labels.split(64)):
        temperature.update(*part)
    return temperature.compute()


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 7.0, 40.0])
def test_it_is_the_one_that_a_search_finds(scale):
    scores, labels = drawn(scale)

    def likelihood(logarithm: float) -> float:
        return F.cross_entropy(scores.double() / np.exp(logarithm), labels).item()

    best = minimize_scalar(likelihood, (np.log(scale), np.log(scale) + 0.1), tol=1e-9).x
    assert fitted(scores, labels) == pytest.approx(np.exp(best), rel=2e-3, abs=6e-4)


def test_scores_that_are_always_right_end_at_the_least_that_is_tried():
    labels = torch.arange(5)
    assert fitted(10 * torch.eye(5), labels) == 0.001


def test_images_of_a_class_without_a_score_are_passed_over():
    scores, labels = drawn(1.0)
    scores = torch.cat([scores, torch.full((300, 1), -torch.inf)], 1)
    more = torch.cat([labels, torch.tensor([5, 5])])
    assert fitted(torch.cat([scores, scores[:2]]), more) == fitted(scores, labels)


def test_there_must_be_an_image():
    with pytest.raises(UserError, match="no image"):
        Temperature(CPU).compute()
