"""Adapters against AdaptFormer's formula (Chen et al. 2022), and where they go."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from lt_train.config.schema import AdapterConfig
from lt_train.errors import UserError
from lt_train.models.adapters import Adapted, add_adapters
from lt_train.models.backbones import make_backbone
from tests.helpers.tiny_vit import DEPTH, WIDTH, tiny_vit

CONFIG = AdapterConfig(dim=5, scale=0.3)


def test_a_block_adds_the_scaled_bottleneck_to_its_mlp():
    torch.manual_seed(0)
    network = tiny_vit().eval()
    block, tokens = network.blocks[0], torch.randn(2, 7, WIDTH)
    mlp = block.mlp
    parameters = add_adapters(network, CONFIG, "tiny_vit")
    for parameter in parameters:
        nn.init.normal_(parameter)
    down, up = block.mlp.adapter.down, block.mlp.adapter.up
    with torch.no_grad():
        attended = tokens + block.attn(block.norm1(tokens))
        x = block.norm2(attended)
        hidden = (x @ down.weight.T + down.bias).clamp(min=0)
        expected = attended + mlp(x) + 0.3 * (hidden @ up.weight.T + up.bias)
        torch.testing.assert_close(block(tokens), expected)
    assert len(parameters) == 4 * DEPTH


TRANSFORMERS = {
    "torchvision's ViT": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 8, 16),
    "torchvision's Swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1], [2, 2], [4, 4]
    ),
    "timm's EVA": lambda: timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, embed_dim=24, depth=2, num_heads=2
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_of_either_library_get_one_a_block(name):
    network = TRANSFORMERS[name]().eval()
    images = torch.randn(2, 3, 28 if "EVA" in name else 32, 28 if "EVA" in name else 32)
    with torch.no_grad():
        before = network(images)
        add_adapters(network, CONFIG, name)
        assert network(images).equal(before), "until the first step"
    assert sum(isinstance(module, Adapted) for module in network.modules()) == 2


def test_a_network_without_such_blocks_is_refused():
    with pytest.raises(UserError, match="model.trainable=adapter: resnet10 has no transformer"):
        add_adapters(make_backbone("resnet10"), CONFIG, "resnet10")
