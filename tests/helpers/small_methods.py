"""What the tests of the methods share: methods, batches for them, and steps of training."""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import METHODS, Config, ModelConfig, OptimConfig, code_of
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Method, Progress
from lt_train.training.optim import Schedule, make_optimizer
from tests.helpers.batches import make_batch

COUNTS = torch.tensor([60, 25, 5])
FEATURES = 12


class Pooled(nn.Module):
    """A backbone without batch norm, so that no sample depends on its company, and without
    weights.
    """

    out_features = FEATURES

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def make_method(config: Config, pseudo_counts: torch.Tensor | None = None) -> Method:
    """The method on :class:`Pooled`, with a classifier that fits."""
    torch.manual_seed(0)
    config = replace(config, model=ModelConfig("resnet32_cifar"))
    method = code_of(METHODS, config.method)(config, Counts.of(COUNTS, pseudo_counts))
    method.backbone = Pooled()
    if isinstance(getattr(method, "classifier", None), nn.Linear):
        method.classifier = nn.Linear(FEATURES, len(COUNTS))
    if config.method == "fixmatch":
        method.trained = copy.deepcopy(method.average)
        method.average.requires_grad_(False)
    return method


def progress_of(method: Method, step: int) -> Progress:
    """What the loop tells the method at ``step`` of a training set of its class counts."""
    unlabeled = method.config.unlabeled
    sampled_as_one = unlabeled.root and unlabeled.share is None
    counts = method.counts.together if sampled_as_one else method.counts.labeled
    return Schedule(method.config, int(counts.sum())).progress(step)


def make_images(size: int, seed: int = 0, side: int = 8) -> torch.Tensor:
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(seed))


def make_labels(size: int) -> torch.Tensor:
    return torch.arange(size) * 7 % 3


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


# with real backbones


def new_method(config: Config, pseudo_counts: torch.Tensor | None = None, seed: int = 0) -> Method:
    """The method as a run makes it."""
    torch.manual_seed(seed)
    return code_of(METHODS, config.method)(config, Counts.of(COUNTS, pseudo_counts)).train()


def random_batch(step: int, size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(step)
    views = [torch.randn(size, 3, 16, 16, generator=generator)]
    return make_batch(views, torch.randint(0, 3, (size,), generator=generator))


def take_steps(method: Method, steps: int) -> None:
    optimizer = make_optimizer(OptimConfig(), method)
    for step in range(steps):
        method(random_batch(step), progress_of(method, step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all but batch norm's running statistics."""
    return {name: value for name, value in state_of(module).items() if not _is_statistic(name)}


def statistics_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of batch norm's running statistics."""
    return {name: value for name, value in state_of(module).items() if _is_statistic(name)}


def _is_statistic(name: str) -> bool:
    return "running" in name or "num_batches" in name


def unchanged(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[bool]:
    return [value.equal(after[name]) for name, value in before.items()]
