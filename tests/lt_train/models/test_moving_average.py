"""A network that follows another one."""

import pytest
import torch
from torch import nn

from lt_train.models.moving_average import MovingAverage


def network(seed: int) -> nn.Module:
    """With batch norm, whose statistics have seen a batch."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    made(torch.randn(5, 3, 4, 4))
    return made


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.999])
def test_weights_move_by_the_momentum_and_statistics_not_at_all(momentum):
    average, other, before = network(0), network(1), network(0)
    average.requires_grad_(False)
    MovingAverage(average, other).follow(momentum)
    pairs = zip(average.parameters(), before.parameters(), other.parameters())
    for value, old, new in pairs:
        torch.testing.assert_close(value, momentum * old.detach() + (1 - momentum) * new.detach())
        assert momentum or value.equal(new), "bit for bit"
    kept = zip(average.buffers(), before.buffers(), strict=True)
    assert all(value.equal(old) for value, old in kept)


def test_buffers_are_copied_and_weights_are_not():
    average, other, before = network(0), network(1), network(0)
    other[1].num_batches_tracked += 3
    MovingAverage(average, other).copy_buffers()
    assert all(value.equal(new) for value, new in zip(average.buffers(), other.buffers()))
    other[1].running_mean += 1
    assert not average[1].running_mean.equal(other[1].running_mean), "a copy"
    assert all(value.equal(old) for value, old in zip(average.parameters(), before.parameters()))


def test_what_is_frozen_in_the_network_does_not_move():
    average, other, before = network(0), network(1), network(0)
    other[0].requires_grad_(False)
    MovingAverage(average, other).follow(0.5)
    assert all(
        value.equal(old) for value, old in zip(average[0].parameters(), before[0].parameters())
    )
    assert not average[3].weight.equal(before[3].weight)
    other.requires_grad_(False)
    MovingAverage(average, other).follow(0.5)  # nothing at all is trained
