"""A network that follows another one, by an exponential moving average of its weights."""

import torch
from torch import nn


class MovingAverage:
    """``average``, which follows ``network``; both must be of one make.

    What there is to follow is looked up the first time, when it is known what is trained.
    """

    def __init__(self, average: nn.Module, network: nn.Module):
        self._networks = average, network
        self._weights: tuple[list[torch.Tensor], ...] | None = None

    def follow(self, momentum: float) -> None:
        """``average`` <- momentum * average + (1 - momentum) * network, of parameters alone.

        One fused operation. What is frozen in the network is left out. With momentum 0 they are
        equal, bit for bit.
        """
        if self._weights is None:
            pairs = zip(*(each.parameters() for each in self._networks), strict=True)
            trained = [pair for pair in pairs if pair[1].requires_grad]
            self._weights = tuple(map(list, zip(*trained)))
        if self._weights:
            with torch.no_grad():
                torch._foreach_lerp_(*self._weights, 1 - momentum)

    def copy_buffers(self) -> None:
        """Give ``average`` the network's buffers, such as batch norm's running statistics."""
        own, others = (list(each.buffers()) for each in self._networks)
        if own:
            torch._foreach_copy_(own, others)
