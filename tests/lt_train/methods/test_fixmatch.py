"""FixMatch against Sohn et al. 2020, on one rank and on several."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import (
    Config,
    DataConfig,
    FixmatchConfig,
    LossConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data.batch import Batch
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods.base import Method
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    COUNTS,
    FEATURES,
    make_images,
    make_method,
    progress_of,
)


def fixmatch_method(threshold: float = 0.6, **changes) -> Method:
    fixmatch, pool = FixmatchConfig(threshold, 0.5), UnlabeledConfig("pool", share=0.6)
    config = Config(method="fixmatch", fixmatch=fixmatch, unlabeled=pool, global_batch_size=5)
    return make_method(replace(config, **changes))


def fixmatch_batch() -> Batch:
    """Two labeled and three unlabeled samples."""
    contrast = torch.tensor([3, 3, 20, 0.1, 20])  # without any, no class is likely
    weak = contrast[:, None, None, None] * make_images(5, seed=1)
    return make_batch([weak, 3 * make_images(5, seed=2)], torch.tensor([2, 0, -1, -1, -1]))


def test_fixmatch_teaches_strong_views_what_weak_ones_are_sure_of():
    """Sohn et al. 2020, equations 3 and 4."""
    method, batch = fixmatch_method(loss=LossConfig("balanced_softmax")), fixmatch_batch()
    weak, strong = (method.predict(view).double() for view in batch.views)
    log_prior = (COUNTS / COUNTS.sum()).log()
    supervised = F.cross_entropy(weak[:2] + log_prior, batch.label[:2])
    sure, losses = [], []
    for of_weak, of_strong in zip(weak[2:], strong[2:]):
        probabilities = of_weak.softmax(0)
        sure.append(probabilities.max().item() >= 0.6)
        losses.append(-of_strong.log_softmax(0)[probabilities.argmax()] * sure[-1])
    assert 0 < sum(sure) < 3
    outputs = method(batch, progress_of(method, 0))
    expected = float((supervised + 0.5 * sum(losses) / 3).detach())
    assert float(outputs["loss"].detach()) == pytest.approx(expected, rel=1e-5)
    assert float(outputs["sure"]) == pytest.approx(100 * sum(sure) / 3)


def test_fixmatch_has_no_gradient_through_the_weak_views_target():
    method, batch = fixmatch_method(threshold=0.0), fixmatch_batch()
    for view in batch.views:
        view.requires_grad_()
    method(batch, progress_of(method, 0))["loss"].backward()
    moved = [(view.grad.flatten(1).abs().sum(1) > 0).tolist() for view in batch.views]
    assert moved == [[True, True, False, False, False], [False, False, True, True, True]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_fixmatch_finds_labeled_samples_where_the_loaders_put_them(small, size):
    """On every rank; the ranks' losses, by their samples, make that of one process."""
    view = ViewConfig(size=32, crop="center", resize=32)
    method = fixmatch_method(
        threshold=0.0,
        data=DataConfig(root=str(small.root), loader="resident"),
        unlabeled=UnlabeledConfig(str(small.root), share=0.6),
        view=view,
        eval_view=view,
        global_batch_size=11,
    )
    method.classifier, supervised, consistency = nn.Linear(FEATURES, 4), [], []
    total = 0.0
    for rank in range(size):
        (batch,) = RunData(method.config, World(rank, size)).train(0, 1)
        weak, strong = (method.predict(images) for images in batch.views)
        known = batch.label >= 0
        supervised.append(F.cross_entropy(weak[known], batch.label[known], reduction="none"))
        targets = weak[~known].argmax(1)
        consistency.append(F.cross_entropy(strong[~known], targets, reduction="none"))
        total += method(batch, progress_of(method, 0))["loss"] * len(batch) / 11
    assert sum(map(len, supervised)) == 4 and sum(map(len, consistency)) == 7
    expected = torch.cat(supervised).mean() + 0.5 * torch.cat(consistency).mean()
    torch.testing.assert_close(total, expected)
