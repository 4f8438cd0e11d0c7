"""Arrays that were made on the host, on the device that wants them."""

import numpy as np
import torch

ALIGNMENT = 16  # bytes; of every array within a copy


def upload(device: torch.device, *arrays: np.ndarray | None) -> tuple[torch.Tensor | None, ...]:
    """The arrays as tensors on ``device``, None for None; on the CPU they share the memory.

    Elsewhere they are parts of one copy, out of page-locked memory, for which the host does not
    wait: a copy for each, of ordinary memory, would hold up whoever feeds the device.
    """
    tensors = [
        torch.from_numpy(np.ascontiguousarray(array)) for array in arrays if array is not None
    ]
    there = iter(tensors if device.type == "cpu" else in_one_copy(tensors, device))
    return tuple(None if array is None else next(there) for array in arrays)


def in_one_copy(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Contiguous tensors of the host on ``device``."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    pinned = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, room in zip(tensors, pinned.split(sizes)):
        room[: tensor.nbytes].copy_(tensor.flatten().view(torch.uint8))
    parts = pinned.to(device, non_blocking=True).split(sizes)
    return [
        part[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, part in zip(tensors, parts)
    ]
