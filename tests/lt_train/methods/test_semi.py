"""Semi-supervised training: what pseudo-labeled samples count for."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_train.config.schema import Config, LossConfig, SemiConfig, UnlabeledConfig
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    COUNTS,
    make_images,
    make_labels,
    make_method,
    progress_of,
)

PSEUDO_COUNTS = torch.tensor([5, 5, 90])
POOL = UnlabeledConfig("pool", share=None, label_column="pseudo_label")


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0, 3.0])
def test_a_pseudo_labeled_sample_counts_omega_times(omega):
    config = Config(method="semi", semi=SemiConfig(omega), unlabeled=POOL)
    method = make_method(config, PSEUDO_COUNTS)
    is_labeled = np.array([True, True, False, False, False, True])
    batch = make_batch([make_images(6)], make_labels(6), is_labeled=is_labeled)
    losses = F.cross_entropy(method.predict(batch.views[0]), batch.label, reduction="none")
    weights = torch.tensor([1, 1, omega, omega, omega, 1])
    loss = method(batch, progress_of(method, 0))["loss"]
    torch.testing.assert_close(loss, (losses * weights).sum() / weights.sum())


def test_class_counts_of_semi_supervised_losses_hold_both_sets():
    config = Config(method="semi", loss=LossConfig("balanced_softmax"), unlabeled=POOL)
    method = make_method(config, PSEUDO_COUNTS)
    torch.testing.assert_close(method.criterion.log_prior.exp(), (COUNTS + PSEUDO_COUNTS) / 190)
    assert method.class_counts.equal(COUNTS), "many, medium and few are by labeled samples"
