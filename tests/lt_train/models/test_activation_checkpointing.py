"""Activation checkpointing: the same gradients and statistics, of fewer activations."""

import copy

import pytest
import torch
from torch import nn

from lt_train.errors import UserError
from lt_train.models.activation_checkpointing import blocks, checkpoint_blocks
from lt_train.models.backbones import make_backbone
from lt_train.models.split_batch_norm import split_batch_norms
from tests.helpers.ranks import one_thread  # noqa: F401
from tests.helpers.tiny_vit import tiny_vit

NETWORKS = {
    "resnet32_cifar": lambda: make_backbone("resnet32_cifar"),
    "resnet18": lambda: make_backbone("resnet18"),
    "split batch norm": lambda: split(make_backbone("resnet18")),
    "ViT": tiny_vit,
    "EfficientNet": lambda: make_backbone("timm/tf_efficientnet_lite0"),
}
BLOCKS = {
    "resnet50": 16,
    "wrn_28_10": 12,
    "timm/vit_tiny_patch16_224": 12,
    "timm/tf_efficientnet_lite0": 16,
    "timm/swin_tiny_patch4_window7_224": 12,
    "timm/convnext_atto": 12,
}


def split(network: nn.Module) -> nn.Module:
    split_batch_norms(network, 2)
    return network


def trained_once(network: nn.Module) -> dict[str, torch.Tensor]:
    """Features, gradients and buffers after a step on four images."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # of what is dropped
    features = network.train()(images)
    features.square().sum().backward()
    gradients = {name: value.grad for name, value in network.named_parameters()}
    return {"features": features.detach(), **gradients, **dict(network.named_buffers())}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_same_bit_for_bit(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    other = copy.deepcopy(network)
    assert checkpoint_blocks(other)
    expected, found = trained_once(network), trained_once(other)
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not found[key].equal(value)] == []


def test_dropped_units_are_the_same_in_the_second_pass():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3), nn.ModuleList([Residual(block)])[0])
    other = copy.deepcopy(network)
    assert len(checkpoint_blocks(other)) == 1
    expected, found = trained_once(network), trained_once(other)
    assert all(found[key].equal(value) for key, value in expected.items())


class Residual(nn.Module):
    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers, self.last = layers, nn.Linear(8, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.last(self.layers(features))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_what_a_network_repeats(name):
    with torch.device("meta"):
        found = blocks(make_backbone(name))
    assert len(found) == BLOCKS[name]
    assert len({type(block) for block in found}) <= 2


def kept_bytes(network: nn.Module) -> int:
    """What a forward pass leaves for the backward pass, beside the weights."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train()(torch.randn(4, 3, 32, 32))
    return sum(kept.values())


@pytest.mark.parametrize("name", ["resnet32_cifar", "ViT"])
def test_less_is_kept(name):
    network = NETWORKS[name]()
    before = kept_bytes(network)
    checkpoint_blocks(network)
    assert kept_bytes(network) < before / 2


def test_a_network_without_blocks_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"Sequential has no blocks .* unset it"):
        checkpoint_blocks(network)
