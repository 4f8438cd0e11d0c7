"""The sourcing method against its definition."""

import math

import numpy as np
import pytest
import torch

from lt_train.config.schema import Config, ModelConfig
from lt_train.methods.base import Counts, Progress
from lt_train.methods.sourcing import Sourcing
from tests.helpers.batches import make_batch


def test_the_loss_is_cross_entropy_with_the_pool_as_one_class_more():
    torch.manual_seed(0)
    config = Config(method="sourcing", model=ModelConfig("resnet32_cifar"))
    method = Sourcing(config, Counts.of(torch.full((3,), 10))).train()
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = make_batch([images], torch.tensor([0, 2, -1, 1, -1, -1]))
    outputs = method(batch, Progress(step=0, epoch=0.0))
    logits = method.predict(images).double().tolist()
    labels = [0, 2, 3, 1, 3, 3]
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels)]
    assert float(outputs["loss"].detach()) == pytest.approx(sum(losses) / 6, rel=1e-5)
    right = [int(np.argmax(row)) == label for row, label in zip(logits, labels)]
    assert float(outputs["train_top1"]) == pytest.approx(100 * np.mean(right))
