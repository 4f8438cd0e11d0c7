"""What a loader yields."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """This rank's part of a batch, B samples.

    ``views``, ``label`` and ``sample_id`` lie on the device. ``place`` and ``is_labeled`` are known
    where batches are planned and stay on the host, so that a method can count or draw by them
    without waiting for the device.
    """

    # (B, 3, size, size) float32 in channels_last memory, one a view; or, for a method that says so,
    # one with the features (B, D) float32 of a frozen backbone
    views: list[torch.Tensor]
    label: torch.Tensor  # (B,) int64; UNLABELED (-1) where there is none
    sample_id: torch.Tensor  # (B,) int64; of a second set, counted on from the first one's
    place: np.ndarray  # (B,) int64: positions within the global batch; of a split, when evaluating
    is_labeled: np.ndarray  # (B,) bool: the label is the set's own, no pseudo-label
    of: "Batch | None" = None  # what it is a part of, if it is one

    def __len__(self) -> int:
        return len(self.label)

    def rows(self, rows: slice | np.ndarray) -> "Batch":
        """Some of its samples."""
        return Batch(
            views=[view[rows] for view in self.views],
            label=self.label[rows],
            sample_id=self.sample_id[rows],
            place=self.place[rows],
            is_labeled=self.is_labeled[rows],
        )

    def parts(self, count: int) -> list["Batch"]:
        """Cut in so many, which have every ``count``-th sample: of two sets, both in each."""
        if count == 1:
            return [self]
        return [replace(self.rows(slice(first, None, count)), of=self) for first in range(count)]


Loader = Iterable[Batch]
