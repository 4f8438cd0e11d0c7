"""Batch norm by groups of a rank's batch, as if each group were a rank of its own."""

import torch
from torch import nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Normalises ``splits`` groups of the batch each by its own statistics.

    Running statistics see every group. MoCo needs it on a single rank: there, the query and its key
    would else share the statistics of the same batch and could recognise each other by them (He et
    al. 2020, section 3.3). With uneven groups, the first ones are larger by one.
    """

    splits = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or self.splits == 1:
            return super().forward(features)
        return torch.cat(
            [
                super(SplitBatchNorm2d, self).forward(group)
                for group in features.tensor_split(self.splits)
            ]
        )


def split_batch_norms(module: nn.Module, splits: int) -> None:
    """Turn every BatchNorm2d inside ``module`` into a :class:`SplitBatchNorm2d`, in place.

    Parameters stay the same objects.
    """
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SplitBatchNorm2d
        if isinstance(child, SplitBatchNorm2d):
            child.splits = splits
