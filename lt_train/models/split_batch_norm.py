"""Batch norm by groups of a rank's batch, as if each group were a rank of its own."""

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.errors import UserError


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Normalises ``splits`` groups of the batch each by its own statistics.

    MoCo needs it on a single rank: there, the query and its key would else share the statistics of
    the same batch and could recognise each other by them (He et al. 2020, section 3.3). With uneven
    groups, the first ones are larger by one. Running statistics move once a step, towards the mean
    of the groups' means and that of their (unbiased) variances, as those of several ranks do.
    """

    splits = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or self.splits == 1:
            return super().forward(features)
        smaller, larger = divmod(len(features), self.splits)
        sizes = [smaller + 1] * larger + [smaller] * (self.splits - larger)
        # with a momentum of 1, batch_norm leaves a group's own statistics in these
        means, variances = torch.zeros(2, self.splits, self.num_features, device=features.device)
        # not tensor_split, whose backward writes a zero-filled tensor of full size for each group
        normalised = [
            F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            for group, mean, variance in zip(features.split(sizes), means, variances)
        ]
        self._follow(means.mean(0), variances.mean(0))
        return torch.cat(normalised)

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics, if there are any, as batch norm does in a step."""
        if self.running_mean is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # no momentum: the mean of all steps
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """The batch norms of every kind inside ``module``, by their paths."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    return {path: each for path, each in module.named_modules() if isinstance(each, batch_norm)}


def split_batch_norms(module: nn.Module, splits: int) -> None:
    """Turn every BatchNorm2d inside ``module`` into a :class:`SplitBatchNorm2d`, in place.

    Parameters stay the same objects. A :class:`UserError` if there is batch norm of another kind to
    split; a network without any has nothing to split.
    """
    for child in batch_norms(module).values():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SplitBatchNorm2d
        if isinstance(child, SplitBatchNorm2d):
            child.splits = splits
        elif splits > 1:
            raise UserError(
                f"MoCo on one rank splits batch norm in {splits} groups, without which a key would "
                f"be known by its batch's statistics, and {type(child).__name__} of this backbone "
                "cannot be split: train on several ranks, or choose another model.backbone"
            )
