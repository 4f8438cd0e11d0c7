"""Batches as loaders yield them, from what a test says of them."""

import numpy as np
import torch

from lt_train.data.batch import Batch
from lt_train.data.tables import UNLABELED


def make_batch(
    views: list[torch.Tensor],
    label: torch.Tensor,
    *,
    sample_id: torch.Tensor | None = None,
    place: np.ndarray | None = None,
    is_labeled: np.ndarray | None = None,
) -> Batch:
    """By default samples 0, 1, ... at places 0, 1, ..., and every label is the set's own."""
    size = len(label)
    return Batch(
        views=views,
        label=label,
        sample_id=torch.arange(size) if sample_id is None else sample_id,
        place=np.arange(size) if place is None else place,
        is_labeled=(label != UNLABELED).numpy() if is_labeled is None else is_labeled,
    )


def rows_of(batch: Batch, rows: np.ndarray | range | slice) -> Batch:
    """Some of a batch's samples, which keep their places in it."""
    return batch.rows(np.asarray(rows) if isinstance(rows, range) else rows)
