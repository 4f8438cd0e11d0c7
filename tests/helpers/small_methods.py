"""What the tests of the methods share: methods on a backbone that is a fixed function, and batches
for them.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config, ModelConfig
from lt_train.methods import METHODS
from lt_train.methods.base import Method

COUNTS = torch.tensor([60, 25, 5])
FEATURES = 12


class Pooled(nn.Module):
    """A backbone without batch norm, so that no sample depends on its company, and without weights."""

    out_features = FEATURES

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def make_method(config: Config, pseudo_counts: torch.Tensor | None = None) -> Method:
    """The method on :class:`Pooled`, with a classifier that fits."""
    torch.manual_seed(0)
    method = METHODS[config.method](
        replace(config, model=ModelConfig("resnet32_cifar")), COUNTS, pseudo_counts
    )
    method.backbone = Pooled()
    if isinstance(getattr(method, "classifier", None), nn.Linear):
        method.classifier = nn.Linear(FEATURES, len(COUNTS))
    return method


def make_images(size: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(seed))


def make_labels(size: int) -> torch.Tensor:
    return torch.arange(size) * 7 % 3
