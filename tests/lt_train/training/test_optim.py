"""The learning-rate schedule against torch's, what an epoch is, and the optimizer."""

import math

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from lt_train.config.schema import (
    METHODS,
    Config,
    ModelConfig,
    OptimConfig,
    SemiConfig,
    UnlabeledConfig,
    code_of,
)
from lt_train.methods.base import Counts
from lt_train.training.optim import Schedule, make_optimizer, set_lr


def make_schedule(epochs: float = 10, **optim) -> Schedule:
    """30 steps an epoch."""
    optim = OptimConfig(**{"lr": 0.4, "scale_lr": False, **optim})
    return Schedule(Config(epochs=epochs, global_batch_size=64, optim=optim), 1920)


def torch_rates(make_scheduler, steps: int) -> list[float]:
    optimizer = SGD([torch.zeros(1)], lr=0.4)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_equals_torch():
    schedule = make_schedule()
    assert schedule.total_steps == 300
    expected = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 300), 300)
    assert [schedule.lr(step) for step in range(300)] == pytest.approx(expected, rel=1e-6)
    assert schedule.lr(150) == pytest.approx(0.2)
    assert schedule.lr(300) == pytest.approx(0.0)


def test_steps_equal_torch():
    schedule = make_schedule(schedule="step", step_epochs=(4, 8), step_factors=(0.1, 0.01))

    def steps(optimizer: SGD) -> lr_scheduler.LRScheduler:
        return lr_scheduler.MultiStepLR(optimizer, [120, 240], 0.1)

    expected = torch_rates(steps, 300)
    assert [schedule.lr(step) for step in range(300)] == pytest.approx(expected, rel=1e-6)


def test_constant_stays():
    assert {make_schedule(schedule="constant").lr(step) for step in range(300)} == {0.4}


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_warm_up_is_linear_and_then_the_schedule_goes_on(name):
    """After 2 of 10 epochs the other 8 follow a schedule of their length, from the full rate."""
    warm = make_schedule(schedule=name, warmup_epochs=2)
    rest = make_schedule(schedule=name, epochs=8)
    rising = [0.4 * (step + 1) / 61 for step in range(60)]
    assert [warm.lr(step) for step in range(60)] == pytest.approx(rising)
    later = [rest.lr(step) for step in range(240)]
    assert [warm.lr(step) for step in range(60, 300)] == pytest.approx(later)


@pytest.mark.parametrize(("batch_size", "expected"), [(256, 0.1), (64, 0.025), (1024, 0.4)])
def test_rate_scales_linearly_with_the_batch(batch_size, expected):
    optim = OptimConfig(lr=0.1, lr_batch_size=256, schedule="constant")
    config = Config(global_batch_size=batch_size, optim=optim)
    assert Schedule(config, 10_000).lr(0) == pytest.approx(expected)


def test_epochs_need_not_be_whole_batches():
    schedule = Schedule(Config(epochs=3, global_batch_size=64), 100)
    assert schedule.total_steps == round(300 / 64)
    assert schedule.epoch(25) == pytest.approx(16.0)


def semi_config(share: float | None, global_batch_size: int) -> Config:
    pool = UnlabeledConfig("pool", share=share, label_column="pseudo_label")
    return Config(
        method="semi", semi=SemiConfig(1.0), unlabeled=pool, global_batch_size=global_batch_size
    )


def test_an_epoch_is_a_pass_over_both_sets_sampled_as_one_or_over_the_labeled_one():
    """90 labeled and 100 pseudo-labeled samples."""
    assert Schedule(semi_config(None, 19), 90 + 100).epoch(30) == pytest.approx(3)
    assert Schedule(semi_config(0.5, 20), 90).epoch(27) == pytest.approx(3)


def test_progress_says_which_steps_start_an_epoch():
    """Steps of 30 of 100 positions: 30, 60, 90 and 120 lie before steps 1 to 4."""
    schedule = Schedule(Config(global_batch_size=30), 100)
    progress = [schedule.progress(step) for step in range(9)]
    assert [each.step for each in progress] == list(range(9))
    assert all(each.epoch == schedule.epoch(each.step) for each in progress)
    assert [each.step for each in progress if each.starts_epoch] == [4, 7]


# optimizer


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("classifier", ("backbone", "classifier")),
        ("crt", ("classifier",)),
        ("moco", ("query_encoder",)),
    ],
)
def test_optimizer_covers_exactly_the_trained_parameters(method, trained):
    config = Config(method=method, model=ModelConfig("resnet32_cifar", "a run"))
    module = code_of(METHODS, method)(config, Counts.of(torch.tensor([3, 2])))
    groups = make_optimizer(OptimConfig(), module).param_groups
    covered = list(map(id, sum((group["params"] for group in groups), [])))
    named = module.named_parameters()
    expected = [id(parameter) for name, parameter in named if name.split(".")[0] in trained]
    assert covered == expected


@pytest.mark.parametrize("nesterov", [False, True])
def test_step_is_sgd_with_momentum_and_weight_decay(nesterov):
    """Written out: d = g + wd * w; v = m * v + d; w -= lr * (d + m * v if Nesterov else v)."""
    layer = torch.nn.Linear(3, 2)
    config = OptimConfig(lr=0.3, momentum=0.8, weight_decay=0.05, nesterov=nesterov)
    optimizer = make_optimizer(config, layer)
    expected, velocity = layer.weight.detach().clone(), torch.zeros(2, 3)
    for step in range(4):
        gradient = torch.full((2, 3), math.sin(step + 1))
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(2)
        optimizer.step()
        direction = gradient + 0.05 * expected
        velocity = 0.8 * velocity + direction
        expected = expected - 0.3 * (direction + 0.8 * velocity if nesterov else velocity)
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_step_is_adam_with_decoupled_weight_decay():
    """Written out (Loshchilov and Hutter 2019), with weight decay times the learning rate."""
    layer = torch.nn.Linear(3, 2)
    config = OptimConfig("adamw", betas=(0.8, 0.9), weight_decay=0.05)
    optimizer = make_optimizer(config, layer)
    expected, first, second = layer.weight.detach().clone(), torch.zeros(2, 3), torch.zeros(2, 3)
    for step in range(1, 5):
        gradient = torch.full((2, 3), math.sin(step)) + expected
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(2)
        set_lr(optimizer, 0.3)
        optimizer.step()
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        direction = first / (1 - 0.8**step) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
        expected = expected - 0.3 * 0.05 * expected - 0.3 * direction
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_step_is_lars():
    """Written out (You et al. 2017, section 4): v = m * v + lr * trust * |w| / (|g| + wd * |w|) *
    (g + wd * w); w -= v.
    """
    layer = torch.nn.Linear(3, 2)
    config = OptimConfig("lars", momentum=0.8, weight_decay=0.05, trust=0.01)
    optimizer = make_optimizer(config, layer)
    expected, velocity = layer.weight.detach().clone(), torch.zeros(2, 3)
    for step in range(1, 5):
        gradient = torch.full((2, 3), math.sin(step)) + expected
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(2)
        set_lr(optimizer, 0.3)
        optimizer.step()
        length = expected.norm()
        scale = 0.01 * length / (gradient.norm() + 0.05 * length)
        velocity = 0.8 * velocity + scale * (gradient + 0.05 * expected)
        expected = expected - 0.3 * velocity
    torch.testing.assert_close(layer.weight.detach(), expected)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_norms_and_biases_decay_unless_told_otherwise(name):
    """And keep rates of their own where the head has another."""
    config = Config(model=ModelConfig("resnet32_cifar"))
    module = code_of(METHODS, "classifier")(config, Counts.of(torch.tensor([3, 2])))
    optim = OptimConfig(name, decay_norms=False, weight_decay=0.1, head_lr_factor=10)
    groups = make_optimizer(optim, module).param_groups
    found = {
        id(p): (group["weight_decay"], group["lr_factor"])
        for group in groups
        for p in group["params"]
    }
    for path, parameter in module.named_parameters():
        decay = 0.1 if parameter.ndim > 1 else 0.0
        assert found.pop(id(parameter)) == (decay, 10 if path.startswith("classifier") else 1), path
    assert not found
    (group,) = make_optimizer(OptimConfig(name, weight_decay=0.1), module).param_groups
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("method", "of_backbone"), [("classifier", "backbone"), ("moco", "query_encoder.backbone")]
)
def test_all_but_the_backbone_learns_at_a_rate_of_its_own(method, of_backbone):
    config = Config(method=method, model=ModelConfig("resnet32_cifar"))
    module = code_of(METHODS, method)(config, Counts.of(torch.tensor([3, 2])))
    optimizer = make_optimizer(OptimConfig(head_lr_factor=10), module)
    set_lr(optimizer, 0.2)
    rates = {}
    for group in optimizer.param_groups:
        rates |= dict.fromkeys(group["params"], group["lr"])
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert rates.pop(parameter) == (0.2 if name.startswith(of_backbone) else 2.0), name
    assert not rates, "each once"


def test_no_group_is_empty_where_only_the_head_is_trained():
    config = Config(method="crt", model=ModelConfig("resnet32_cifar", "a run"))
    module = code_of(METHODS, "crt")(config, Counts.of(torch.tensor([3, 2])))
    (group,) = make_optimizer(OptimConfig(head_lr_factor=10), module).param_groups
    assert len(group["params"]) == 2 and group["lr_factor"] == 10
