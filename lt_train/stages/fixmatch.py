"""FixMatch (Sohn et al. 2020): what the network is sure of in a weak view of an unlabeled image, it should say of a strong view.

``view`` is the weak and ``second_view`` the strong one; ``unlabeled.share`` of each batch is unlabeled (7/8 in the paper).
"""

import torch
from torch.nn import functional as F

from lt_train.data.order import batch_slice
from lt_train.distributed import rank_and_size
from lt_train.schema import labeled_batch
from lt_train.stages.classifier import Classifier


class Fixmatch(Classifier):
    """A classifier with a consistency loss on unlabeled samples. Class counts are the labeled set's."""

    num_views = 2

    def forward(self, batch: dict, step: int) -> dict[str, torch.Tensor]:
        (weak, strong), labels = batch["views"], batch["label"]
        labeled = len(batch_slice(step, labeled_batch(self.config), *rank_and_size()))  # they come first
        # all in one pass, so that batch norm sees one distribution
        logits = self.predict(torch.cat([weak, strong[labeled:]])).float()
        of_labeled, of_weak, of_strong = logits.split([labeled, len(weak) - labeled, len(strong) - labeled])
        confidence, pseudo_labels = of_weak.detach().softmax(1).max(1)
        sure = (confidence >= self.config.fixmatch.threshold).float()
        consistency = (F.cross_entropy(of_strong, pseudo_labels, reduction="none") * sure).mean()
        # the loop weights a rank by its samples, of which not every rank has the same share of labeled ones
        own, everywhere = labeled / len(weak), labeled_batch(self.config) / self.config.global_batch_size
        supervised = own / everywhere * self.rule(of_labeled, labels[:labeled], self.epoch(step))
        return {
            "loss": supervised + self.config.fixmatch.weight * (1 - own) / (1 - everywhere) * consistency,
            "train_top1": (of_labeled.detach().argmax(1) == labels[:labeled]).float().mean() * 100,
            "sure": sure.mean() * 100,
        }
