"""Batches and images that a backbone cannot take: told before training, not deep inside torch."""

import torch
from torch import nn
from torch.func import functional_call

from lt_train.config.schema import METHODS, Config, labeled_batch, training_views
from lt_train.distributed import rank_share
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.models.split_batch_norm import SplitBatchNorm2d

# of torch's batch norm: there is no variance of one value
ONE_VALUE = "Expected more than 1 value per channel when training"
LARGER = "use a larger global_batch_size, fewer ranks or larger images (view.size)"


def check_shapes(method: Method, config: Config, ranks: int) -> None:
    """A :class:`UserError` for images that are too small (or of another size than the backbone is
    for), and for batches too small for its batch norms. ``method`` is on the CPU, and is left to
    train.
    """
    views = {**training_views(config), "eval_view": config.eval_view}
    sizes = {f"{key}.size": view.size for key, view in views.items()}
    method.eval()
    for key, size in sizes.items():
        _check_size(method.backbone, config.model.backbone, key, size)
    method.train()
    samples = smallest_share(config, ranks) // config.engine.accumulate
    traits = METHODS[config.method]
    together = samples * (traits.num_views if traits.views_together else 1)
    groups = _groups(method, samples, ranks)
    for key, view in training_views(config).items():
        if not _has_variances(method.backbone, together, view.size):
            split = f" in moco.bn_splits={groups} groups" if groups > 1 else ""
            if config.engine.accumulate > 1:  # not MoCo, which alone has groups
                split = f" in engine.accumulate={config.engine.accumulate} parts"
            raise UserError(
                f"global_batch_size={config.global_batch_size} on {ranks} rank(s) leaves {samples} "
                f"sample(s) a rank{split}, and of {key}.size={view.size} batch norm would see one "
                f"value a channel, which has no variance; {LARGER}"
            )


def smallest_share(config: Config, ranks: int) -> int:
    """The fewest samples that a rank has of a global batch, of both sets together."""
    first = labeled_batch(config)
    second = config.global_batch_size - first
    return min(
        len(rank_share(first, rank, ranks)) + len(rank_share(second, ranks - 1 - rank, ranks))
        for rank in range(ranks)
    )


def _groups(method: Method, samples: int, ranks: int) -> int:
    """Into how many groups batch norms split a rank's batch; each must have a sample."""
    norms = [module for module in method.modules() if isinstance(module, SplitBatchNorm2d)]
    splits = max((norm.splits for norm in norms), default=1)
    if splits > samples:
        raise UserError(
            f"moco.bn_splits={splits} groups of a rank's batch need a sample each, but a rank of "
            f"{ranks} has {samples}; lower it, or use a larger global_batch_size"
        )
    return splits


@torch.no_grad()
def _check_size(backbone: nn.Module, name: str, key: str, size: int) -> None:
    """One image of ``size`` pixels must go through, and give ``out_features`` numbers."""
    try:
        features = backbone(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{key}={size}: images of this size do not go through {name} ({reason}); "
            "choose another size, or another model.backbone"
        ) from error
    if features.shape != (1, backbone.out_features):
        raise UserError(
            f"{key}={size}: {name} gives features of shape {tuple(features.shape)} for an image of "
            f"this size, not (1, {backbone.out_features}), its out_features; choose another size"
        )


def _has_variances(backbone: nn.Module, samples: int, size: int) -> bool:
    """Whether batch norm can train on so many images; tried on shapes alone, without numbers."""
    state = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    try:
        functional_call(backbone, shapes, torch.zeros(samples, 3, size, size, device="meta"))
    except (RuntimeError, ValueError) as error:
        return ONE_VALUE not in str(error)  # what else fails may be for want of numbers
    return True
