"""Classification losses: ``loss(logits (B, C), labels (B,)) -> scalar``. To add one: a function and its line in LOSSES."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy, mean over the batch."""
    return F.cross_entropy(logits, labels)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}
