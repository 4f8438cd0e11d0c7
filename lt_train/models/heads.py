"""Heads: features (B, out_features) -> what a loss or a contrastive comparison wants."""

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import ClassifierConfig


def make_classifier(config: ClassifierConfig, features: int, classes: int) -> nn.Module:
    """The head ``config.head``: features (B, ``features``) -> logits (B, ``classes``)."""
    return (
        CosineClassifier(features, classes, config.scale)
        if config.head == "cosine"
        else nn.Linear(features, classes)
    )


class CosineClassifier(nn.Module):
    """``scale`` times the cosine of features and each class's weights, no bias; float32."""

    def __init__(self, features: int, classes: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(
            F.normalize(torch.empty(classes, features).uniform_(-1, 1), dim=1)
        )
        self.scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(
            features.device.type, enabled=False
        ):  # bf16's 3 digits, times the scale, would be coarse logits
            return self.scale * F.linear(
                F.normalize(features.float(), dim=1), F.normalize(self.weight, dim=1)
            )


@torch.no_grad()
def start_from_prototypes(
    classifier: nn.Module, prototypes: torch.Tensor, known: torch.Tensor
) -> None:
    """Let a classifier of :func:`make_classifier` answer with the class of the nearest prototype.

    ``prototypes`` (C, D): a feature a class; ``known`` (C,) bool: classes that have one, the others
    keep the weights that they have. A cosine classifier's weights are the prototypes on the unit
    sphere. A linear one's are w = prototype and b = -|prototype|^2 / 2, whose logits differ as
    half the squared Euclidean distances do (nearest class mean).
    """
    known = known[:, None]
    if isinstance(classifier, CosineClassifier):
        prototypes = F.normalize(prototypes, dim=1)
    else:
        bias = -prototypes.square().sum(1) / 2
        classifier.bias.copy_(torch.where(known[:, 0], bias, classifier.bias))
    classifier.weight.copy_(torch.where(known, prototypes, classifier.weight))


class ScaledClassifier(nn.Module):
    """A finished linear classifier whose logits are multiplied by one learnt number a class."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features) * self.scale


def make_projector(features: int, dim: int, kind: str = "mlp") -> nn.Module:
    """MoCo v2's two-layer MLP (Chen et al. 2020), or v1's single layer."""
    if kind == "linear":
        return nn.Linear(features, dim)
    return nn.Sequential(
        nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim)
    )


class Encoder(nn.Module):
    """Backbone and projector: images -> unit vectors (B, dim), float32."""

    def __init__(self, backbone: nn.Module, dim: int, projector: str = "mlp"):
        super().__init__()
        self.backbone = backbone
        self.projector = make_projector(backbone.out_features, dim, projector)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projector(self.backbone(images)).float(), dim=1)
