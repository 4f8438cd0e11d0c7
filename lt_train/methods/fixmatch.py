"""FixMatch (Sohn et al. 2020): what is sure in a weak view is the target of a strong view.

``view`` is the weak and ``second_view`` the strong one; ``unlabeled.share`` of each batch is
unlabeled (7/8 in the paper). What is evaluated, exported and labels other images is the moving
average of the network that is trained. As in the paper's code it averages weights, and takes batch
norm's running statistics, which are averages already, as they are.
"""

import copy
from collections.abc import Hashable
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config, labeled_batch
from lt_train.data.batch import Batch
from lt_train.methods.base import Counts, Outputs, Progress, train_top1
from lt_train.methods.classifier import Classifier
from lt_train.models.moving_average import MovingAverage
from lt_train.models.weights import BACKBONE_FILE


class Fixmatch(Classifier):
    """A classifier with a consistency loss on unlabeled samples.

    ``backbone`` and ``classifier`` are the moving average of ``trained``, which has one each. Class
    counts are the labeled set's.
    """

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        self.trained = copy.deepcopy(self.average)
        self.average.requires_grad_(False)

    @property
    def average(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.classifier)

    @cached_property
    def _averaging(self) -> MovingAverage:
        return MovingAverage(self.average, self.trained)

    def starting_weights(self) -> dict[str, nn.Module]:
        return {BACKBONE_FILE: self.trained[0]}

    def starting_classifiers(self) -> list[nn.Module]:
        return [self.classifier, self.trained[1]]

    def prepare(self) -> None:
        """The average starts as a copy of what is trained."""
        self.average.load_state_dict(self.trained.state_dict())

    def encoders(self) -> list[nn.Module]:
        return [self.trained[0], self.backbone]

    def train(self, mode: bool = True) -> "Fixmatch":
        super().train(mode)
        self.average.eval()  # it takes its running statistics, and sees no training batch
        return self

    def after_step(self) -> None:
        self._averaging.follow(self.config.fixmatch.ema_momentum)
        self._averaging.copy_buffers()

    def phase(self, progress: Progress) -> Hashable:
        # which samples are labeled, a single rank's batches agree on
        return self.criterion.weights_classes(progress.epoch)

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        (weak, strong), labels = batch.views, batch.label
        labeled = int(batch.is_labeled.sum())  # they come first
        # all in one pass, so that batch norm sees one distribution
        logits = self.trained(torch.cat([weak, strong[labeled:]])).float()
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
