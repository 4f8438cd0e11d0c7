"""Heads: features (B, out_features) -> what a loss or a contrastive comparison wants."""

import torch
from torch import nn
from torch.nn import functional as F


def make_projector(features: int, dim: int) -> nn.Module:
    """MoCo v2's two-layer MLP (Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning")."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))


class Encoder(nn.Module):
    """Backbone and projector: images -> unit vectors (B, dim), float32."""

    def __init__(self, backbone: nn.Module, dim: int):
        super().__init__()
        self.backbone = backbone
        self.projector = make_projector(backbone.out_features, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projector(self.backbone(images)).float(), dim=1)
