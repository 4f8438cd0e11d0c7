"""Backbones against their definitions and torchvision."""

import pytest
import torch
import torchvision
from torch import nn

from lt_train.config.schema import BACKBONES
from lt_train.models.backbones import make_backbone

TORCHVISION = ["resnet18", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"]

WIDTHS = {  # of features; of all others 2048
    "resnet10": 512,
    "resnet18": 512,
    "resnet14_cifar": 64,
    "resnet32_cifar": 64,
    "wrn_28_10": 640,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cifar_resnet_parameters(blocks: int) -> int:
    """He et al. 2016, section 4.2, option A: 3x3 convolutions without bias, each with a scale and a
    shift a channel.
    """
    widths = [3, 16] + [16] * 2 * blocks + [32] * 2 * blocks + [64] * 2 * blocks
    return sum(9 * width_in * width + 2 * width for width_in, width in zip(widths, widths[1:]))


def test_resnet32_for_cifar_has_the_published_size():
    backbone = make_backbone("resnet32_cifar")
    assert count(backbone) == cifar_resnet_parameters(5)
    assert count(backbone) + count(nn.Linear(backbone.out_features, 10)) == 464_154
    weighted = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert len(weighted) + 1 == 32


def test_resnet14_for_cifar_is_the_same_with_two_blocks_a_stage():
    assert count(make_backbone("resnet14_cifar")) == cifar_resnet_parameters(2)


def test_wrn_28_10_has_the_published_size():
    """36.5 million (Zagoruyko and Komodakis 2016, table 4), counted exactly: with a classifier of
    10 classes.
    """
    backbone = make_backbone("wrn_28_10")
    assert count(backbone) + count(nn.Linear(backbone.out_features, 10)) == 36_479_194
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 28, "25 on the way and 3 shortcuts"


def test_shortcuts_of_resnet32_have_no_parameters_and_keep_what_came_in():
    """Option A: where the blocks add nothing, a stage halves the image by striding and pads
    channels with zeros.
    """
    backbone = make_backbone("resnet32_cifar").eval()
    for block in [*backbone.layer1, *backbone.layer2, *backbone.layer3]:
        nn.init.zeros_(block.bn2.weight)
    images = torch.rand(2, 3, 32, 32)
    stem = torch.relu(backbone.bn1(backbone.conv1(images)))
    features = backbone(images)
    kept = features[:, 24:40]
    torch.testing.assert_close(kept, stem[:, :, ::4, ::4].mean((2, 3)))
    assert not features[:, :24].any() and not features[:, 40:].any()


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_those_of_torchvision_without_its_classifier(name):
    original = getattr(torchvision.models, name)()
    backbone = make_backbone(name)
    assert count(backbone) == count(original) - count(original.fc)
    state = original.state_dict()
    wanted = {key: value for key, value in state.items() if not key.startswith("fc.")}
    assert list(backbone.state_dict()) == list(wanted)
    backbone.load_state_dict(wanted)
    original.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert backbone.eval()(images).equal(original.eval()(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_stated_width(name):
    backbone = make_backbone(name).eval()
    width = WIDTHS.get(name, 2048)
    assert backbone.out_features == width
    for side in (32, 48):
        assert backbone(torch.randn(2, 3, side, side)).shape == (2, width)
