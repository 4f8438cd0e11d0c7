"""Adapters beside the MLPs of transformer blocks: AdaptFormer (Chen et al. 2022).

An MLP's output becomes mlp(x) + scale * up(relu(down(x))), x being what the MLP gets, with a narrow
layer in between. The up-projection starts at zero, and the network as it was.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import AdapterConfig
from lt_train.errors import UserError

MLP = "mlp"
ATTENTIONS = ("attn", "attention", "self_attention")  # timm's, Hugging Face's, torchvision's


class Adapter(nn.Module):
    """Tokens (..., ``width``) -> what is added to the MLP's output for them, of the same shape."""

    def __init__(self, width: int, config: AdapterConfig):
        super().__init__()
        self.down, self.up = nn.Linear(width, config.dim), nn.Linear(config.dim, width)
        self.scale = config.scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.scale * self.up(F.relu(self.down(tokens)))


class Adapted(nn.Module):
    """An MLP (``base_layer``, as peft says) and the adapter beside it."""

    def __init__(self, mlp: nn.Module, adapter: Adapter):
        super().__init__()
        self.base_layer, self.adapter = mlp, adapter

    def forward(self, tokens: torch.Tensor, *more: object, **named: object) -> torch.Tensor:
        return self.base_layer(tokens, *more, **named) + self.adapter(tokens)


def add_adapters(network: nn.Module, config: AdapterConfig, name: str) -> list[nn.Parameter]:
    """Put an adapter beside the MLP of every transformer block, in place; returns their parameters.

    ``name``: the network's, for the :class:`UserError` if it has no such block.
    """
    adapters = []
    for block in [each for each in network.modules() if _is_block(each)]:
        adapter = Adapter(_width(block.mlp), config)
        block.mlp = Adapted(block.mlp, adapter)
        adapters.append(adapter)
    if not adapters:
        raise UserError(
            f"model.trainable=adapter: {name} has no transformer blocks with an MLP of linear "
            "layers, beside which adapters go; use model.trainable=lora"
        )
    return list(nn.ModuleList(adapters).parameters())


def _is_block(module: nn.Module) -> bool:
    children = dict(module.named_children())
    attends = any(name in children for name in ATTENTIONS)
    return attends and MLP in children and _width(children[MLP]) > 0


def _width(mlp: nn.Module) -> int:
    """Of the tokens that an MLP takes and gives; 0 where it is none of linear layers."""
    layers = [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]
    alike = bool(layers) and layers[0].in_features == layers[-1].out_features
    return layers[0].in_features if alike else 0
