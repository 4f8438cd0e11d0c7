"""A transformer of timm's that is small enough for tests."""

import pytest
import timm
from torch import nn

from lt_train.config.schema import BACKBONES

WIDTH, DEPTH, SIZE = 32, 2, 32  # of tokens, in blocks, of images in pixels


def tiny_vit() -> nn.Module:
    """Images (B, 3, 32, 32) -> features (B, 32)."""
    network = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=2,
        num_classes=0,
    )
    network.out_features = WIDTH
    return network


@pytest.fixture
def vit(monkeypatch) -> str:
    """Its name as a ``model.backbone``."""
    monkeypatch.setitem(BACKBONES, "tiny_vit", tiny_vit)
    return "tiny_vit"
