"""FixMatch against Sohn et al. 2020, on one rank and on several."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    FixmatchConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data.batch import Batch
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods.base import Method
from lt_train.models.backbones import make_backbone
from lt_train.models.weights import BACKBONE_FILE, export_weights, load_weights
from lt_train.training.engine import Engine, make_engine
from lt_train.training.loop import training_steps
from lt_train.training.optim import Schedule
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    COUNTS,
    FEATURES,
    make_images,
    make_method,
    new_method,
    progress_of,
    state_of,
    statistics_of,
    weights_of,
)

MOMENTUM = 0.6


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
    method.trained[1], supervised, consistency = nn.Linear(FEATURES, 4), [], []
    total = 0.0
    for rank in range(size):
        (batch,) = RunData(method.config, World(rank, size)).train(0, 1)
        weak, strong = (method.trained(images) for images in batch.views)
        known = batch.label >= 0
        supervised.append(F.cross_entropy(weak[known], batch.label[known], reduction="none"))
        targets = weak[~known].argmax(1)
        consistency.append(F.cross_entropy(strong[~known], targets, reduction="none"))
        total += method(batch, progress_of(method, 0))["loss"] * len(batch) / 11
    assert sum(map(len, supervised)) == 4 and sum(map(len, consistency)) == 7
    expected = torch.cat(supervised).mean() + 0.5 * torch.cat(consistency).mean()
    torch.testing.assert_close(total, expected)


# the moving average


def averaging_config(momentum: float = MOMENTUM) -> Config:
    return Config(
        method="fixmatch",
        fixmatch=FixmatchConfig(0.4, ema_momentum=momentum),
        unlabeled=UnlabeledConfig("pool", share=0.6),
        global_batch_size=5,
        model=ModelConfig("resnet32_cifar"),
        engine=EngineConfig(precision="fp32"),
        optim=OptimConfig(lr=0.05, scale_lr=False),
    )


def started(config: Config, seed: int = 0) -> Engine:
    method = new_method(config, seed=seed)
    method.prepare()
    return make_engine(config, method, World())


def steps_of(engine: Engine, steps: range) -> Iterator:
    """THE loop's steps over batches that differ."""
    views = [[make_images(5, 10 * step + view, 16) for view in (0, 1)] for step in steps]
    labels = torch.tensor([2, 0, -1, -1, -1])
    batches = [make_batch(pair, labels) for pair in views]
    return training_steps(engine, batches, Schedule(engine.config, 100), steps.start)


def test_the_average_follows_the_trained_weights_and_has_their_running_statistics():
    """Sohn et al. 2020: evaluated is the exponential moving average of the weights."""
    engine = started(averaging_config())
    method = engine.method
    expected = weights_of(method.trained)
    assert expected.keys() == weights_of(method.average).keys()
    for _ in steps_of(engine, range(3)):
        for name, trained in weights_of(method.trained).items():
            expected[name] = MOMENTUM * expected[name] + (1 - MOMENTUM) * trained
        for name, value in weights_of(method.average).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        trained, averaged = statistics_of(method.trained), statistics_of(method.average)
        assert all(value.equal(averaged[name]) for name, value in trained.items())
        assert (averaged["0.bn1.running_mean"] != 0).any()
    apart = (method.average[1].weight - method.trained[1].weight.detach()).abs().max()
    assert float(apart) > 1e-4
    assert all(parameter.grad is None for parameter in method.average.parameters())


def test_the_average_is_what_is_evaluated_and_exported(tmp_path):
    engine = started(averaging_config())
    list(steps_of(engine, range(3)))
    method, images = engine.method.eval(), make_images(6, side=16)
    with torch.no_grad():
        expected = method.classifier(method.backbone(images))
        assert method.predict(images).equal(expected)
        assert not method.trained(images).allclose(expected, rtol=1e-3)
    export_weights(method.backbone, tmp_path / BACKBONE_FILE, {})
    backbone = make_backbone("resnet32_cifar").eval()
    load_weights(backbone, tmp_path)
    torch.testing.assert_close(method.classifier(backbone(images)), expected)


def test_with_momentum_0_the_average_is_the_trained_network_itself():
    engine = started(averaging_config(0.0))
    for _ in steps_of(engine, range(2)):
        trained, averaged = (state_of(n) for n in (engine.method.trained, engine.method.average))
        assert all(value.equal(averaged[name]) for name, value in trained.items())


def test_starting_weights_go_into_the_trained_network_and_its_average_alike():
    method = new_method(averaging_config())
    other = make_backbone("resnet32_cifar")
    method.starting_weights()[BACKBONE_FILE].load_state_dict(other.state_dict())
    method.prepare()
    for backbone in (method.backbone, method.trained[0]):
        assert all(
            value.equal(backbone.state_dict()[name]) for name, value in state_of(other).items()
        )


def test_an_interrupted_run_has_the_same_average_bit_for_bit(tmp_path):
    whole, first, second = (started(averaging_config(), seed) for seed in (0, 0, 1))
    list(steps_of(whole, range(4)))
    list(steps_of(first, range(2)))
    first.save(tmp_path)
    second.load(tmp_path)
    list(steps_of(second, range(2, 4)))
    expected, actual = state_of(whole.method), state_of(second.method)
    assert all(value.equal(actual[name]) for name, value in expected.items())
