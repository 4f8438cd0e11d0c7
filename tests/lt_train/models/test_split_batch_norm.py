"""Split batch norm against a batch norm per group."""

import pytest
import torch
from torch import nn

from lt_train.models.split_batch_norm import split_batch_norms


@pytest.mark.parametrize(("batch_size", "splits"), [(8, 2), (8, 4), (11, 4), (3, 3)])
def test_split_batch_norm_equals_a_batch_norm_per_group(batch_size, splits):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch_size, 5, 4, 4, generator=generator).requires_grad_()
    weights = torch.randn(batch_size, 5, 4, 4, generator=generator)
    split, plain = nn.Sequential(nn.BatchNorm2d(5)), nn.BatchNorm2d(5)
    split_batch_norms(split, splits)
    sizes = [batch_size // splits + (group < batch_size % splits) for group in range(splits)]
    expected = torch.cat([plain(group) for group in features.split(sizes)])
    actual = split(features)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad((output * weights).sum(), features)[0] for output in (actual, expected)
    ]
    torch.testing.assert_close(*gradients)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(split[0], name), getattr(plain, name))
    torch.testing.assert_close(split.eval()(features), plain.eval()(features))
