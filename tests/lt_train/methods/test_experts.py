"""Several experts: each one's loss, and their mean."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config, ExpertsConfig, ModelConfig
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    COUNTS,
    FEATURES,
    make_images,
    make_labels,
    make_method,
    new_method,
    progress_of,
)


def test_experts_learn_with_their_own_adjustment_and_predict_their_mean():
    method = make_method(Config(method="experts", experts=ExpertsConfig((0.0, 1.5))))
    method.classifier = type(method.classifier)(nn.Linear(FEATURES, 3) for _ in range(2))
    images, labels = make_images(6), make_labels(6)
    first, second = (expert(method.backbone(images)) for expert in method.classifier)
    log_prior = (COUNTS / COUNTS.sum()).log()
    adjusted = second + 1.5 * log_prior
    expected = F.cross_entropy(first, labels) + F.cross_entropy(adjusted, labels)
    outputs = method(make_batch([images], labels), progress_of(method, 0))
    torch.testing.assert_close(outputs["loss"], expected)
    mean = (first + second) / 2
    torch.testing.assert_close(method.predict(images), mean)
    right = (mean.argmax(1) == labels).float().mean().item()
    assert float(outputs["train_top1"]) == pytest.approx(100 * right)


def test_there_is_an_expert_for_each_tau():
    model, experts = ModelConfig("resnet32_cifar"), ExpertsConfig((0.0, 1.0, 2.0, 3.0))
    method = new_method(Config(method="experts", model=model, experts=experts))
    assert len(method.classifier) == 4 and method.predict(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert not method.classifier[0][0].weight.equal(method.classifier[1][0].weight)
