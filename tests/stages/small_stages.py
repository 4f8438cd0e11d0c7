"""What the tests of the methods share: stages on a backbone that is a fixed function, and batches for them."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.schema import Config, ModelConfig
from lt_train.stages import STAGES, Stage

COUNTS = torch.tensor([60, 25, 5])
FEATURES = 12


class Pooled(nn.Module):
    """A backbone without batch norm, so that no sample depends on its company, and without weights."""

    out_features = FEATURES

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def make_stage(config: Config, pseudo_counts: torch.Tensor | None = None) -> Stage:
    """The stage on :class:`Pooled`, with a classifier that fits."""
    torch.manual_seed(0)
    stage = STAGES[config.stage](replace(config, model=ModelConfig("resnet32_cifar")), COUNTS, pseudo_counts)
    stage.backbone = Pooled()
    if isinstance(getattr(stage, "classifier", None), nn.Linear):
        stage.classifier = nn.Linear(FEATURES, len(COUNTS))
    return stage


def make_images(size: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(seed))


def make_labels(size: int) -> torch.Tensor:
    return torch.arange(size) * 7 % 3
