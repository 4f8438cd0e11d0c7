"""Feature loader: batches as they are planned, of features that were computed before."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from lt_train.data.batch import Batch
from lt_train.data.batch_plan import TrainPlan
from lt_train.data.upload import upload

# small batches are read several at a time, which spreads the cost of calls into NumPy
SAMPLES_AT_ONCE = 4096

# sample ids (B,) -> features (B, D) float32, and the samples (B,) int64 that they are of: others
# stand in for damaged ones
ReadFeatures = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class FeatureLoader:
    """Iterates the batches of ``plan`` once; the one view of a batch is its features (B, D)."""

    def __init__(self, plan: TrainPlan, read: ReadFeatures, device: torch.device):
        self.plan, self.read, self.device = plan, read, device

    def __iter__(self) -> Iterator[Batch]:
        every = self.plan.batches
        together = max(1, SAMPLES_AT_ONCE // self.plan.max_batch)
        for start in range(every.start, every.stop, together):
            yield from self._make(range(start, min(start + together, every.stop)))

    def _make(self, batches: range) -> Iterator[Batch]:
        features, used = self.read(self.plan.sample_ids(batches))
        manifest, places = self.plan.manifest, self.plan.places(batches)
        is_labeled = manifest.is_labeled(used)
        labels = manifest.labels[used].astype(np.int64)
        on_device = upload(self.device, features, labels, used)
        stop = 0
        for size in self.plan.batch_sizes(batches):
            rows, stop = slice(stop, stop + size), stop + size
            view, label, sample_id = (tensor[rows] for tensor in on_device)
            yield Batch([view], label, sample_id, places[rows], is_labeled[rows])
