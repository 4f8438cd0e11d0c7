"""A network that follows another one, by an exponential moving average of its weights."""

import torch
from torch import nn


def follow(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """``average`` <- momentum * average + (1 - momentum) * ``network``, of parameters alone.

    One fused operation; both must be of one make. What is frozen in ``network`` is left out.
    With momentum 0 they are equal, bit for bit.
    """
    pairs = zip(average.parameters(), network.parameters(), strict=True)
    trained = [(own, other.detach()) for own, other in pairs if other.requires_grad]
    if trained:
        own, others = map(list, zip(*trained))
        with torch.no_grad():
            torch._foreach_lerp_(own, others, 1 - momentum)


def copy_buffers(average: nn.Module, network: nn.Module) -> None:
    """Give ``average`` the buffers of ``network``, such as batch norm's running statistics."""
    for own, other in zip(average.buffers(), network.buffers()):
        own.copy_(other)
