"""Which layers get LoRA's updates, and that peft reads what we write."""

import logging

import pytest
import timm
import torch
from torch import nn

from lt_train.config.schema import BACKBONES, Config, LoraConfig, ModelConfig, ViewConfig
from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.lora import add_lora
from tests.helpers.tiny_vit import vit  # noqa: F401 - a fixture


class Odd(nn.Module):
    """Layers of all kinds; of ``weight_only`` the weight alone is read, ``idle`` is not called."""

    out_features = 8

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2)
        self.reflecting = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.weight_only, self.idle, self.linear = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.reflecting(self.dilated(self.grouped(self.plain(images))))
        return self.linear(features.mean((2, 3)) @ self.weight_only.weight)


def config_of(backbone: str, *targets: str) -> Config:
    model, view = ModelConfig(backbone, trainable="lora"), ViewConfig(size=32)
    return Config(model=model, view=view, lora=LoraConfig(2, 4.0, targets))


def updated(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if hasattr(module, "lora_A")}


def test_all_layers_that_peft_can_merge_and_the_network_calls_get_updates(monkeypatch, caplog):
    monkeypatch.setitem(BACKBONES, "odd", Odd)
    caplog.set_level(logging.INFO, "lt_train")
    network = Odd()
    add_lora(network, config_of("odd"))
    assert updated(network) == {"plain", "linear"}
    assert "lora: 2 layers; without updates: grouped (convolves in 4 groups" in caplog.text
    assert network.training


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("grouped", "grouped of odd convolves in 4 groups, whose updates peft cannot merge"),
        ("dilated", "dilated of odd is dilated or padded"),
        ("reflecting", "reflecting of odd is dilated or padded"),
        ("idle", "idle of odd has weights that the network reads without calling it"),
        ("weight_only", "weight_only of odd has weights that the network reads"),
        ("qkv", "odd has no linear layer or convolution qkv; names of its layers end in linear"),
        ("lain", "odd has no linear layer or convolution lain"),
    ],
)
def test_a_target_that_cannot_have_updates_is_refused(target, why):
    with pytest.raises(UserError, match=f"^lora.targets: {why}"):
        add_lora(Odd(), config_of("odd", "linear", target))


def test_targets_are_names_or_ends_of_names(vit):  # noqa: F811
    network = make_backbone(vit)
    add_lora(network, config_of(vit, "attn.qkv", "blocks.1.mlp.fc1"))
    assert updated(network) == {"blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"}
    resnet = make_backbone("resnet10")
    add_lora(resnet, config_of("resnet10", "layer1.0.conv1"))
    assert updated(resnet) == {"layer1.0.conv1"}


def test_an_attention_that_reads_a_layer_s_weight_keeps_it():
    """As BEiT's does: updates would be trained by nothing, and DDP wait for their gradients."""
    network = timm.create_model(
        "beit_base_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=0,
    )
    add_lora(network, config_of("beit"))
    names = updated(network)
    assert "blocks.0.attn.qkv" not in names and "blocks.0.attn.proj" in names


def test_a_backbone_without_such_layers_is_refused():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="model.trainable=lora: pool has no layers that peft can"):
        add_lora(network, config_of("pool"))
