"""Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

Of each block only what goes into it is kept for the backward pass, which computes the block again:
memory for a third more arithmetic, and the same gradients.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lt_train.errors import UserError
from lt_train.models.split_batch_norm import batch_norms

CONTAINERS = (nn.Sequential, nn.ModuleList)


def checkpoint_blocks(network: nn.Module) -> list[nn.Module]:
    """Have every block of ``network`` computed again in the backward pass, in place.

    Returns the blocks; a :class:`UserError` if there are none.
    """
    found = blocks(network)
    if not found:
        raise UserError(
            f"engine.activation_checkpointing: {type(network).__name__} has no blocks of layers "
            "that could be computed again; unset it, or use engine.accumulate"
        )
    for block in found:
        contexts = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    return found


def blocks(network: nn.Module) -> list[nn.Module]:
    """What is repeated in ``network``: the innermost of the modules in its lists that are made of
    several with parameters, such as residual and transformer blocks.
    """
    listed: dict[nn.Module, None] = {}
    for container in network.modules():
        if not isinstance(container, CONTAINERS):
            continue
        for child in container.children():
            if not isinstance(child, CONTAINERS) and _is_made_of_several(child):
                listed[child] = None
    return [block for block in listed if listed.keys().isdisjoint(list(block.modules())[1:])]


def _is_made_of_several(module: nn.Module) -> bool:
    owners = (next(part.parameters(recurse=False), None) for part in module.modules())
    return sum(first is not None for first in owners) > 1


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, ...]:
    """Those of the first and the second time a block is computed."""
    return contextlib.nullcontext(), _without_statistics(block)


@contextlib.contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms follow into tensors that are thrown away, since they have followed before, and
    ranks may be exchanging the statistics at that time.
    """
    norms = batch_norms(block).values()
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept):
        for name, buffer in buffers.items():
            setattr(norm, name, torch.zeros_like(buffer))
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
