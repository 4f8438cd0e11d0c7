"""Which parameters each ``model.trainable`` trains, to the number, and what checkpoints hold."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import (
    BACKBONES,
    AdapterConfig,
    Config,
    FixmatchConfig,
    LoraConfig,
    MocoConfig,
    ModelConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.models.backbones import make_backbone
from lt_train.models.moving_average import MovingAverage
from lt_train.models.trainable import (
    frozen_digest,
    kept_state,
    load_kept_state,
    plain_state,
    restrict,
)
from lt_train.training.starting import start
from tests.helpers.networks import assert_same_state, randomize
from tests.helpers.ranks import one_thread  # noqa: F401 - a fixture
from tests.helpers.small_methods import new_method, random_batch, state_of
from tests.helpers.tiny_vit import DEPTH, WIDTH, vit  # noqa: F401 - vit is a fixture

RANK, DIM, CLASSES = 2, 5, 3
MLP = 4 * WIDTH
# of resnet10: (in, out, kernel) of its convolutions, and the channels of its norms
STAGES = [(64, 64), (64, 128), (128, 256), (256, 512)]
CONVOLUTIONS = [(3, 64, 7)]
CONVOLUTIONS += [layer for i, o in STAGES for layer in ((i, o, 3), (o, o, 3))]
CONVOLUTIONS += [(i, o, 1) for i, o in STAGES if i != o]
CHANNELS = sum(outputs for _, outputs, _ in CONVOLUTIONS)
LINEARS = DEPTH * [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, MLP), (MLP, WIDTH)]
PATCHES = (3, WIDTH, 8)
EXPECTED = {
    ("resnet10", "head"): 0,
    ("resnet10", "norm"): 2 * CHANNELS,
    ("resnet10", "bias"): CHANNELS,
    ("resnet10", "lora"): sum(RANK * (i * k * k + o) for i, o, k in CONVOLUTIONS),
    ("tiny_vit", "head"): 0,
    ("tiny_vit", "norm"): (2 * DEPTH + 1) * 2 * WIDTH,
    ("tiny_vit", "bias"): sum(o for _, o in LINEARS) + WIDTH + (2 * DEPTH + 1) * WIDTH,
    ("tiny_vit", "lora"): RANK * (sum(map(sum, LINEARS)) + 3 * 8 * 8 + WIDTH),
    ("tiny_vit", "adapter"): DEPTH * (2 * WIDTH * DIM + WIDTH + DIM),
}


def config_of(backbone: str, kind: str, method: str = "classifier", **model: object) -> Config:
    return Config(
        method=method,
        model=ModelConfig(backbone, **{"init_from": "a run", "trainable": kind, **model}),
        lora=LoraConfig(RANK, 4.0),
        adapter=AdapterConfig(DIM),
        view=ViewConfig(size=32),
        moco=MocoConfig(dim=8, queue_size=12, ema_momentum=0.5),
        fixmatch=FixmatchConfig(0.4, ema_momentum=0.5),
        unlabeled=UnlabeledConfig("pool" if method == "fixmatch" else ""),
        global_batch_size=6,
    )


def restricted(config: Config, seed: int = 0) -> Method:
    """The method when its starting weights, ``seed`` says which, are in."""
    method = new_method(config, seed=seed)
    for network in method.encoders():
        randomize(network, seed)
    restrict(method.encoders(), config)
    method.prepare()
    return method.train()


def step(method: Method, seed: int = 1) -> None:
    """One of gradient descent, for which what starts at zero is made to count."""
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "lora_B" in name or ".up." in name:
                parameter.normal_(std=0.02)
    batch = random_batch(seed)
    images = F.interpolate(batch.views[0], 32)
    F.cross_entropy(method.predict(images), batch.label).backward()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)


@pytest.mark.parametrize(("backbone", "kind"), EXPECTED)
def test_exactly_the_part_is_trained(backbone, kind, vit):  # noqa: F811
    method = restricted(config_of(backbone, kind))
    before = state_of(method)
    step(method)
    after, named = method.state_dict(), dict(method.named_parameters())
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    with_gradients = {name for name, each in named.items() if each.grad is not None}
    assert changed == with_gradients == {name for name in named if named[name].requires_grad}
    of_backbone = sum(named[name].numel() for name in changed if name.startswith("backbone."))
    assert of_backbone == EXPECTED[backbone, kind]
    assert {"classifier.weight", "classifier.bias"} <= changed
    assert set(kept_state(method)) == changed


def test_of_all_nothing_is_changed():
    backbone = make_backbone("resnet10")
    before, names = copy.deepcopy(backbone), list(backbone.state_dict())
    restrict([backbone], config_of("resnet10", "all"))
    assert list(backbone.state_dict()) == names == list(kept_state(backbone))
    assert_same_state(backbone.state_dict(), before.state_dict())
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.train().bn1.training and frozen_digest(backbone) is None


@pytest.mark.parametrize("kind", ["norm", "bias", "lora", "adapter"])
def test_statistics_of_batch_norm_stay_and_features_begin_as_they_were(kind, vit):  # noqa: F811
    name = vit if kind == "adapter" else "resnet10"
    plain = randomize(make_backbone(name), 0)
    method, images = restricted(config_of(name, kind)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert method.backbone(images).equal(plain(images)), "also while it trains"
    norms = [each for each in method.modules() if isinstance(each, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    method.eval()
    method.train()
    assert not any(norm.training for norm in norms) and method.backbone.training


def test_only_a_head_on_a_backbone_as_in_evaluation(vit):  # noqa: F811
    method = restricted(config_of(vit, "head"))
    assert not any(module.training for module in method.backbone.modules())
    assert method.training and method.classifier.training


@pytest.mark.parametrize("kind", ["bias", "norm"])
def test_a_backbone_without_such_a_part_is_refused(kind, monkeypatch):
    bare = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bare.out_features = 4
    monkeypatch.setitem(BACKBONES, "bare", lambda: bare)
    with pytest.raises(UserError, match=f"model.trainable={kind}: bare has no "):
        restrict([bare], config_of("bare", kind))


# followers


@pytest.mark.parametrize("method", ["moco", "fixmatch"])
@pytest.mark.parametrize("kind", ["norm", "lora"])
def test_a_network_that_follows_has_the_same_parts_and_moves_in_the_trained_alone(method, kind):
    made = restricted(config_of("resnet10", kind, method))
    first, second = made.encoders()
    assert_same_state(first.state_dict(), second.state_dict())
    assert not any(parameter.requires_grad for parameter in second.parameters())
    before = state_of(second)
    trained = {name for name, each in first.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for each in first.parameters():
            each.add_(1.0)
    MovingAverage(second, first).follow(0.5)
    moved = {name for name, each in second.state_dict().items() if not each.equal(before[name])}
    assert moved == trained
    assert sum(".fc." not in name and "backbone" in name for name in kept_state(made)) >= len(moved)
    assert all("running" not in name for name in kept_state(made))


def test_fixmatch_scores_by_the_average_of_lora_s_updates():
    """After a step from B = 0: the average's updates are half of the trained network's."""
    made = restricted(config_of("resnet10", "lora", "fixmatch"))
    with torch.no_grad():
        for name, each in made.trained.named_parameters():
            if "lora_B" in name:
                each.fill_(0.1)
    made.after_step()
    plain = randomize(make_backbone("resnet10"), 0).state_dict()
    average, trained = plain_state(made.backbone), plain_state(made.trained[0])
    for name, start_value in plain.items():
        moved = average[name] - start_value
        torch.testing.assert_close(2 * moved, trained[name] - start_value, atol=2e-6, rtol=1e-5)
    assert not average["conv1.weight"].equal(plain["conv1.weight"])


# checkpoints


def test_what_is_kept_is_all_that_another_process_needs():
    config = config_of("resnet10", "lora")
    method, other = restricted(config), restricted(config)
    step(method)
    kept, digest = kept_state(method), frozen_digest(method)
    load_kept_state(other, kept, digest)
    assert_same_state(other.state_dict(), method.state_dict())
    size = sum(each.numel() for each in method.state_dict().values())
    assert sum(each.numel() for each in kept.values()) < 0.02 * size


def test_other_frozen_weights_are_refused():
    config = config_of("resnet10", "bias")
    method, other = restricted(config), restricted(config, seed=5)
    before = state_of(other)
    with pytest.raises(UserError, match="weights of model.init_from have changed since"):
        load_kept_state(other, kept_state(method), frozen_digest(method))
    assert_same_state(other.state_dict(), before)


def test_a_changed_statistic_counts_as_well():
    config = config_of("resnet10", "head")
    method, other = new_method(config), new_method(config)
    other.backbone.bn1.running_mean += 1
    for each in (method, other):
        restrict(each.encoders(), config)
    assert frozen_digest(method) != frozen_digest(other)


def test_random_frozen_weights_are_kept():
    """There is nowhere else to have them from."""
    config = config_of("resnet10", "lora", init_from=None)
    method = new_method(config)
    start(method, config)
    assert kept_state(method).keys() == method.state_dict().keys()
    assert frozen_digest(method) is None
    other = new_method(config, seed=1)
    start(other, config)
    load_kept_state(other, kept_state(method), None)
    assert_same_state(other.state_dict(), method.state_dict())


# plain weights


@pytest.mark.parametrize("name", ["resnet10", "tiny_vit"])
def test_merged_weights_are_the_plain_backbone_s(name, vit):  # noqa: F811
    method = restricted(config_of(name, "lora"))
    step(method)
    plain, images = make_backbone(name).eval(), torch.randn(3, 3, 32, 32)
    names = list(plain.state_dict())
    plain.load_state_dict(plain_state(method.backbone))
    assert list(plain_state(method.backbone)) == names
    with torch.no_grad():
        expected, before = method.eval().backbone(images), randomize(make_backbone(name), 0)(images)
        assert not torch.allclose(expected, before, rtol=1e-2, atol=1e-2)
        scale = expected.abs().max()
        torch.testing.assert_close(plain(images) / scale, expected / scale, rtol=1e-5, atol=1e-5)


def test_adapters_stand_beside_the_plain_names(vit):  # noqa: F811
    method = restricted(config_of(vit, "adapter"))
    names, plain = set(plain_state(method.backbone)), set(make_backbone(vit).state_dict())
    assert plain < names and all(".mlp.adapter." in name for name in names - plain)


def test_a_method_that_freezes_its_backbone_itself_takes_no_part():
    from lt_train.config.checks import check

    config = config_of("resnet10", "lora", "crt")
    with pytest.raises(UserError, match="the method crt freezes the backbone itself"):
        check(config)
    check(replace(config, model=replace(config.model, trainable="all")))
