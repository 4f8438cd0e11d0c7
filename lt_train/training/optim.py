"""Optimizer and learning-rate schedule."""

import bisect
import math
from collections import defaultdict

import torch
from torch import nn

from lt_train.config.schema import Config, OptimConfig, labeled_batch
from lt_train.methods.base import Progress

FACTOR = "lr_factor"  # the entry of a group of parameters that the schedule's rate is multiplied by
# what an optimizer keeps of a parameter, by optim.name
STATE = {
    "sgd": {"momentum_buffer"},
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "lars": {"momentum_buffer"},
}


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that are not frozen, in the module's order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def make_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the parameters that are trained; :func:`set_lr` goes before every step."""
    groups = _groups(config, module)
    if config.name == "lars":
        from timm.optim import Lars  # which takes a second to import

        return Lars(groups, config.lr, config.momentum, trust_coeff=config.trust)
    common = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, betas=config.betas, **common)
    return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **common)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """``lr`` for the backbone, and ``optim.head_lr_factor`` times that for all else."""
    for group in optimizer.param_groups:
        rate = lr * group[FACTOR]
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def hold_lr_on(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Have captured steps read the learning rate from the device; theirs would be fixed else."""
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), device=device)
        if "capturable" in group:
            group["capturable"] = True


def _groups(config: OptimConfig, module: nn.Module) -> list[dict]:
    """The trained parameters by the factor of their learning rates and their weight decay."""
    of_backbone = set()
    if config.head_lr_factor != 1:
        of_backbone.update(nn.ModuleList(module.encoders()).parameters())
    groups: defaultdict[tuple[float, float], list] = defaultdict(list)
    for parameter in trained_parameters(module):
        factor = 1.0 if parameter in of_backbone else config.head_lr_factor
        decays = config.decay_norms or parameter.ndim > 1
        groups[factor, config.weight_decay if decays else 0.0].append(parameter)
    return [
        {"params": part, FACTOR: factor, "weight_decay": decay}
        for (factor, decay), part in groups.items()
    ]


class Schedule:
    """Learning rate as a function of the step: linear warm-up, then cosine, steps or constant.

    The base rate is ``optim.lr`` times ``global_batch_size / optim.lr_batch_size`` unless
    ``optim.scale_lr`` is false (Goyal et al. 2017). Cosine goes from the base rate, after the
    warm-up, to zero at ``epochs``.
    """

    def __init__(self, config: Config, positions_per_epoch: int):
        """An epoch is one pass over the ``positions_per_epoch`` of the labeled set (or of both)."""
        self.optim = config.optim
        self.batch_size = labeled_batch(config)
        self.positions_per_epoch = positions_per_epoch
        self.steps_per_epoch = positions_per_epoch / self.batch_size
        self.total_steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.epochs = config.epochs
        scale = config.global_batch_size / self.optim.lr_batch_size
        self.base_lr = self.optim.lr * (scale if self.optim.scale_lr else 1.0)

    def epoch(self, step: int) -> float:
        """How many epochs lie before ``step``."""
        return step * self.batch_size / self.positions_per_epoch

    def progress(self, step: int) -> Progress:
        """What a method is told at ``step``."""
        epoch = self.epoch(step)
        return Progress(step, epoch, step > 0 and int(epoch) > int(self.epoch(step - 1)))

    def lr(self, step: int) -> float:
        epoch, optim = self.epoch(step), self.optim
        if epoch < optim.warmup_epochs:
            # the first step is not wasted on a rate of zero
            return self.base_lr * (step + 1) / (optim.warmup_epochs * self.steps_per_epoch + 1)
        if optim.schedule == "cosine":
            warmup = optim.warmup_epochs * self.steps_per_epoch
            share = (step - warmup) / max(1.0, self.total_steps - warmup)
            return self.base_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        if optim.schedule == "step":
            passed = bisect.bisect_right(optim.step_epochs, epoch)
            return self.base_lr * (optim.step_factors[passed - 1] if passed else 1.0)
        return self.base_lr
