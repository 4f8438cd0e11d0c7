"""FixMatch (Sohn et al. 2020): what is sure in a weak view is the target of a strong view.

``view`` is the weak and ``second_view`` the strong one; ``unlabeled.share`` of each batch is
unlabeled (7/8 in the paper).
"""

import torch
from torch.nn import functional as F

from lt_train.config.schema import labeled_batch
from lt_train.data.batch import Batch
from lt_train.methods.base import Progress, train_top1
from lt_train.methods.classifier import Classifier


class Fixmatch(Classifier):
    """A classifier with a consistency loss on unlabeled samples.

    Class counts are the labeled set's.
    """

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        (weak, strong), labels = batch.views, batch.label
        labeled = int(batch.is_labeled.sum())  # they come first
        # all in one pass, so that batch norm sees one distribution
        logits = self.predict(torch.cat([weak, strong[labeled:]])).float()
        unlabeled = len(weak) - labeled
        of_labeled, of_weak, of_strong = logits.split([labeled, unlabeled, unlabeled])
        confidence, pseudo_labels = of_weak.detach().softmax(1).max(1)
        sure = (confidence >= self.config.fixmatch.threshold).float()
        consistency = (F.cross_entropy(of_strong, pseudo_labels, reduction="none") * sure).mean()
        # the loop weights a rank by its samples, of which not every rank has the same share of
        # labeled ones
        own = labeled / len(weak)
        everywhere = labeled_batch(self.config) / self.config.global_batch_size
        supervised = own / everywhere * self.criterion(of_labeled, labels[:labeled], progress.epoch)
        weight = self.config.fixmatch.weight * (1 - own) / (1 - everywhere)
        return {
            "loss": supervised + weight * consistency,
            "train_top1": train_top1(of_labeled, labels[:labeled]),
            "sure": sure.mean() * 100,
        }
