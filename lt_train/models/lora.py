"""Low-rank updates of a network's layers: LoRA (Hu et al. 2022), by the peft library.

A layer's weight becomes W + alpha / rank * B A, of which A and B are trained; B starts at zero, and
the network as it was. peft is imported where it is needed only: that takes seconds.
"""

import json
import logging
import re

import torch
from torch import nn

from lt_train.config.schema import Config
from lt_train.errors import UserError

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

LORA_FILE = "lora.safetensors"  # of a finished run: the updates alone, by peft's names
PEFT_CONFIG = "peft_config"  # the entry of its metadata with peft's description of them
NAME = "default"  # peft's, of the one set of updates
UPDATES = ".lora_"  # in the names of their tensors


def add_lora(network: nn.Module, config: Config) -> list[nn.Parameter]:
    """Give ``lora.targets`` (or all layers that can have them) updates, in place.

    Returns the parameters of these. A :class:`UserError` if a target is not there or cannot have
    any.
    """
    layers = _chosen(network, config)
    from peft import LoraConfig, inject_adapter_in_model

    # exact names: peft takes those of a list for the ends of names as well
    pattern = "|".join(re.escape(name) for name in layers)
    rank, alpha = config.lora.rank, config.lora.alpha
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), network)
    return [each for name, each in network.named_parameters() if UPDATES in name]


def merged_weights(network: nn.Module) -> Tensors:
    """The weights of all layers with updates, which are merged into them, by plain names."""
    merged = {}
    for path, layer in network.named_modules():
        if hasattr(layer, "lora_A"):
            merged[f"{path}.weight"] = _merged(layer)
    return merged


@torch.no_grad()
def _merged(layer: nn.Module) -> torch.Tensor:
    return layer.base_layer.weight + layer.get_delta_weight(NAME)


def updates_of(network: nn.Module) -> tuple[Tensors, str]:
    """The updates of a network by the names in peft's files, and peft's description, as JSON.

    Without updates the first is empty.
    """
    state = network.state_dict()
    updates = {_peft_name(name): state[name] for name in state if UPDATES in name}
    if not updates:
        return {}, ""
    described = network.peft_config[NAME].to_dict() | {"inference_mode": True}
    return updates, json.dumps(described, indent=2, sort_keys=True, default=sorted)


def _peft_name(name: str) -> str:
    return f"base_model.model.{name.replace(f'.{NAME}.', '.')}"


def _chosen(network: nn.Module, config: Config) -> list[str]:
    """The names of the layers that get updates."""
    kinds = (nn.Linear, nn.Conv2d)
    layers = {name: each for name, each in network.named_modules() if isinstance(each, kinds)}
    called, backbone = _called(network, config.view.size), config.model.backbone
    reasons = {name: _obstacle(layer, called) for name, layer in layers.items()}
    suited = [name for name, reason in reasons.items() if not reason]
    if not suited:
        raise UserError(
            f"model.trainable=lora: {backbone} has no layers that peft can update (linear ones, "
            "and convolutions in one group); use model.trainable=norm, bias or head"
        )
    for target in config.lora.targets:
        if not _ending(layers, target):
            ends = sorted({name.rpartition(".")[2] for name in suited})
            raise UserError(
                f"lora.targets: {backbone} has no linear layer or convolution {target}; names of "
                f"its layers end in {', '.join(ends)}"
            )
        for name in _ending(layers, target):
            if reasons[name]:
                raise UserError(f"lora.targets: {name} of {backbone} {reasons[name]}")
    if config.lora.targets:
        wanted = [set(_ending(layers, target)) for target in config.lora.targets]
        return [name for name in suited if name in set().union(*wanted)]
    left = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
    if left:
        log.info("lora: %d layers; without updates: %s", len(suited), _shortened(left))
    return suited


def _ending(names: list[str] | dict, target: str) -> list[str]:
    """Those that are ``target`` or end in it, by whole parts."""
    return [name for name in names if f".{name}".endswith(f".{target}")]


def _obstacle(layer: nn.Module, called: set[nn.Module]) -> str:
    """Why a layer can have no updates that are merged later on; empty if it can."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"is a {type(layer).__name__}, which peft does not know"
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return f"convolves in {layer.groups} groups, whose updates peft cannot merge"
        if layer.dilation != (1, 1) or layer.padding_mode != "zeros":
            return "is dilated or padded in a way that peft does not know"
    if layer not in called:
        return "has weights that the network reads without calling it"
    return ""


@torch.no_grad()
def _called(network: nn.Module, size: int) -> set[nn.Module]:
    """The modules that an image of ``size`` pixels passes; of a size that does not fit, all.

    What is not called, peft cannot change: some attentions take a layer's weight alone.
    """
    called = set()
    modules = list(network.modules())
    modes = [module.training for module in modules]
    hooks = [module.register_forward_pre_hook(lambda it, _: called.add(it)) for module in modules]
    try:
        network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError):
        return set(modules)  # the size is refused by the check of shapes
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in zip(modules, modes):
            module.training = mode
    return called


def _shortened(parts: list[str], most: int = 3) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more
