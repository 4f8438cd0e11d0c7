"""The networks of torchvision and timm, head and all, that a finished network fits: their state
dicts, by which a program without lt_train computes the same logits.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from lt_train.config.schema import ModelConfig, ViewConfig

Tensors = dict[str, torch.Tensor]
TOLERANCE = 1e-4  # of logits, of the largest of them where that is above 1


class Misfit(Exception):
    """A library has no network that computes the same; the message is the end of a sentence."""


def torchvision_network(backbone: str, size: int, classes: int) -> nn.Module:
    """torchvision's network of the name, for any ``size`` of images; a :class:`Misfit` without."""
    name = plain_name(backbone)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise Misfit(f"torchvision has no {name}")
    return torchvision.models.get_model(name, weights=None, num_classes=classes)


def timm_network(backbone: str, size: int, classes: int) -> nn.Module:
    """timm's network of the name for images of ``size`` pixels; a :class:`Misfit` without."""
    from lt_train.models import timm_backbones

    name = plain_name(backbone)
    if not timm_backbones.timm.is_model(name):
        raise Misfit(f"timm has no {name}")
    return timm_backbones.create(name, size, classes)


LIBRARIES: dict[str, Callable[[str, int, int], nn.Module]] = {
    "torchvision": torchvision_network,
    "timm": timm_network,
}


def plain_name(backbone: str) -> str:
    """What libraries call it: without a family, and the tag of published weights."""
    return backbone.rpartition("/")[2].partition(".")[0]


def fill(
    theirs: nn.Module, backbone: Tensors, linear: Tensors, scores: nn.Module, size: int
) -> None:
    """Load a backbone's tensors and a linear layer into a library's network, in place.

    ``scores``: images (B, 3, size, size) -> logits, what the two together compute. A
    :class:`Misfit` if they do not fit, or if the library's network computes something else.
    """
    own = theirs.state_dict()
    missing, unexpected = sorted(own.keys() - backbone), sorted(backbone.keys() - own)
    heads = {name.rpartition(".")[0] for name in missing}
    if unexpected:
        raise Misfit(f"its network of that name has no {unexpected[0]}")
    if len(heads) != 1 or len(missing) != len(linear):
        raise Misfit(f"its head is more than one linear layer ({', '.join(missing[:4])})")
    (head,) = heads
    try:
        theirs.load_state_dict(
            backbone | {f"{head}.{name}": tensor for name, tensor in linear.items()}
        )
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2].strip()
        raise Misfit(f"its network has tensors of other shapes ({reason})") from error
    if not same_logits(theirs.eval(), scores, size):
        raise Misfit("its network of that name computes other logits")


@torch.no_grad()
def same_logits(network: Callable, scores: nn.Module, size: int) -> bool:
    """Whether two networks in evaluation mode agree on some images, three at once."""
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected, found = scores(images), network(images)
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False
    bound = TOLERANCE * max(1.0, expected.abs().max().item())
    return (found - expected).abs().max().item() <= bound


def timm_config(
    theirs: nn.Module, model: ModelConfig, view: ViewConfig, classes: list[str]
) -> dict[str, Any]:
    """What timm's own config.json says of a network and of how it sees images."""
    from lt_train.models import timm_backbones

    name = plain_name(model.backbone)
    published = {key: theirs.pretrained_cfg.get(key) for key in ("first_conv", "classifier")}
    return {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": theirs.num_features,
        "label_names": classes,
        "model_args": timm_backbones.size_options(name, view.size),
        "pretrained_cfg": {
            **published,
            "num_classes": len(classes),
            "input_size": [3, view.size, view.size],
            "fixed_input_size": theirs.pretrained_cfg.get("fixed_input_size", False),
            "interpolation": view.interpolation,
            "crop_pct": _crop_share(view),
            "crop_mode": "center",
            "mean": list(model.mean),
            "std": list(model.std),
        },
    }


def _crop_share(view: ViewConfig) -> float:
    """size / resize, such that timm's floor(size / share) is ``resize`` again."""
    share = view.size / view.resize
    while math.floor(view.size / share) < view.resize:
        share = math.nextafter(share, 0)
    return share
