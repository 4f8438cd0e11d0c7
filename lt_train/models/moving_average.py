"""A network that follows another one, by an exponential moving average of its weights."""

import torch
from torch import nn


def follow(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """``average`` <- momentum * average + (1 - momentum) * ``network``, of parameters alone.

    One fused operation; both must be of one make. With momentum 0 they are equal, bit for bit.
    """
    weights = [parameter.detach() for parameter in network.parameters()]
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), weights, 1 - momentum)


def copy_buffers(average: nn.Module, network: nn.Module) -> None:
    """Give ``average`` the buffers of ``network``, such as batch norm's running statistics."""
    for own, other in zip(average.buffers(), network.buffers()):
        own.copy_(other)
