"""Semi-supervised training of Yang and Xu 2020, section 3: L(labeled) + omega L(pseudo-labeled).

The pseudo-labels are a column of the unlabeled set's manifest (``unlabeled.label_column``), written
by ``python -m lt_train pseudo_label`` or taken from a published file by data_prep. With
``unlabeled.share`` null both sets are sampled as one and epochs count their union, which is what
the authors' code does; else every batch has that share of pseudo-labeled samples. Numbers of
samples that losses and class weights go by count both kinds.
"""

from collections.abc import Hashable

import torch

from lt_train.data.batch import Batch
from lt_train.methods.base import Progress
from lt_train.methods.classifier import Classifier


class Semi(Classifier):
    """A classifier in whose loss a pseudo-labeled sample counts ``semi.weight`` (omega) times."""

    def phase(self, progress: Progress) -> Hashable | None:
        return super().phase(progress) if self.config.semi.weight == 1 else None

    def sample_weights(self, batch: Batch) -> torch.Tensor | None:
        if self.config.semi.weight == 1:
            return None
        is_labeled = torch.from_numpy(batch.is_labeled).to(batch.label.device, non_blocking=True)
        return torch.where(is_labeled, 1.0, self.config.semi.weight)
