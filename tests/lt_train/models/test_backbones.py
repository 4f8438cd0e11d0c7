"""Backbones against their definitions and torchvision, and their export and import."""

import copy

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import nn

from lt_train.errors import UserError
from lt_train.models.backbones import BACKBONES, make_backbone
from lt_train.models.weights import BACKBONE_FILE, export_weights, load_weights

TORCHVISION = ["resnet18", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cifar_resnet_parameters(blocks: int) -> int:
    """He et al. 2016, section 4.2, option A: 3x3 convolutions without bias, each with a scale and a
    shift a channel.
    """
    widths = [3, 16] + [16] * 2 * blocks + [32] * 2 * blocks + [64] * 2 * blocks
    return sum(9 * width_in * width + 2 * width for width_in, width in zip(widths, widths[1:]))


@pytest.fixture
def trained() -> nn.Module:
    """A backbone whose weights and statistics are all random."""
    backbone = make_backbone("resnet32_cifar")
    generator = torch.Generator().manual_seed(0)
    for tensor in backbone.state_dict().values():
        tensor.copy_(100 * torch.rand(tensor.shape, generator=generator))
    return backbone


@pytest.fixture
def exported(trained, tmp_path):
    path = tmp_path / BACKBONE_FILE
    export_weights(trained, path, {"method": "moco", "steps": "12"})
    return path


def assert_same_state(actual: nn.Module, expected: nn.Module) -> None:
    states = actual.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert tensor.equal(states[1][name]), name


def test_resnet32_for_cifar_has_the_published_size():
    backbone = make_backbone("resnet32_cifar")
    assert count(backbone) == cifar_resnet_parameters(5)
    assert count(backbone) + count(nn.Linear(backbone.out_features, 10)) == 464_154
    weighted = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert len(weighted) + 1 == 32


def test_wrn_28_10_has_the_published_size():
    """36.5 million (Zagoruyko and Komodakis 2016, table 4), counted exactly: with a classifier of
    10 classes.
    """
    backbone = make_backbone("wrn_28_10")
    assert count(backbone) + count(nn.Linear(backbone.out_features, 10)) == 36_479_194
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == 28, (
        "25 on the way and 3 shortcuts"
    )


def test_shortcuts_of_resnet32_have_no_parameters_and_keep_what_came_in():
    """Option A: where the blocks add nothing, a method halves the image by striding and pads
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
    wanted = {
        key: value for key, value in original.state_dict().items() if not key.startswith("fc.")
    }
    assert list(backbone.state_dict()) == list(wanted)
    backbone.load_state_dict(wanted)
    original.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert backbone.eval()(images).equal(original.eval()(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_stated_width(name):
    backbone = make_backbone(name).eval()
    width = {"resnet10": 512, "resnet18": 512, "resnet32_cifar": 64, "wrn_28_10": 640}.get(
        name, 2048
    )
    assert backbone.out_features == width
    for side in (32, 48):
        assert backbone(torch.randn(2, 3, side, side)).shape == (2, width)


def test_export_and_load_keep_every_bit(trained, exported):
    for source in (exported, exported.parent):
        loaded = make_backbone("resnet32_cifar")
        assert load_weights(loaded, str(source)) == len(trained.state_dict())
        assert_same_state(loaded, trained)


def test_export_says_where_it_comes_from(exported):
    with safe_open(exported, "pt") as file:
        assert file.metadata() == {"format": "pt", "method": "moco", "steps": "12"}


def test_compiled_backbone_exports_plain_names(trained, exported, tmp_path):
    compiled = copy.deepcopy(trained)
    compiled.compile()
    export_weights(compiled, tmp_path / "compiled.safetensors", {})
    loaded = make_backbone("resnet32_cifar")
    load_weights(loaded, str(tmp_path / "compiled.safetensors"))
    assert_same_state(loaded, trained)


def test_another_backbone_is_refused_with_counts(exported):
    own, theirs = make_backbone("resnet18"), make_backbone("resnet32_cifar")
    shared = own.state_dict().keys() & theirs.state_dict().keys()
    fitting = sum(
        own.state_dict()[name].shape == theirs.state_dict()[name].shape for name in shared
    )
    missing, unexpected = (
        len(own.state_dict()) - len(shared),
        len(theirs.state_dict()) - len(shared),
    )
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    with pytest.raises(UserError) as refusal:
        load_weights(own, str(exported))
    for part in (f"{fitting} keys match", f"{missing} are missing", f"{unexpected} unexpected"):
        assert part in str(refusal.value)
    assert f"{len(shared) - fitting} of another shape" in str(refusal.value)
    assert all(tensor.equal(before[name]) for name, tensor in own.state_dict().items())


def test_missing_file_is_refused(tmp_path):
    for source in (tmp_path, tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match="there is no .*safetensors"):
            load_weights(make_backbone("resnet32_cifar"), str(source))


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_cut_off_file_is_refused(exported, size):
    exported.write_bytes(exported.read_bytes()[:size])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(make_backbone("resnet32_cifar"), str(exported))
