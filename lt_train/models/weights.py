"""Networks and files of weights: which of a file's tensors are the network's.

Backbones carry torchvision's parameter names.
"""

import logging
import os
import re
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from lt_train.errors import UserError
from lt_train.models.tensor_files import (
    FETCH_AGAIN,
    AbsentFile,
    Tensors,
    read_tensors,
    write_tensors,
)

log = logging.getLogger(__name__)

BACKBONE_FILE = "backbone.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"  # of methods that have one

STEP_COUNTER = "num_batches_tracked"  # which batch norm with a momentum does not use
# where several networks of a file fit, the one that its authors go on with: MoCo's query encoder,
# MoCo v3's base encoder, DINO's teacher, timm's moving average
PREFERRED = ("encoder_q", "base_encoder", "teacher", "ema")
FINISH_AGAIN = (
    "copy the run again, or remove its result.json and give its training command, which writes the"
    " weights anew from the last checkpoint"
)


def export_weights(module: nn.Module, path: Path, about: dict[str, str]) -> None:
    """Write a network's float32 weights and statistics; ``about`` goes into the file's metadata."""
    write_tensors(module.state_dict(), path, about)


def load_weights(module: nn.Module, source: str | Path, file: str = BACKBONE_FILE) -> int:
    """Load ``file`` of a run folder, or the network in another file, into ``module``.

    Returns the number of tensors loaded. A run's own file must hold the module's tensors and
    nothing else. In any other, .safetensors or of torch.save, the module's names are looked for
    under every prefix (``state_dict``, ``module``, ``encoder_q``, ``backbone``, ...), and heads on
    top of the network are left out. Anything short of a complete match is a :class:`UserError` that
    counts the matched, missing and unexpected keys. Only a file from before torch 0.4.1, which has
    no ``num_batches_tracked`` at all, may be without it.
    """
    own_run = os.path.isdir(source)
    path = Path(source) / file if own_run else Path(source)
    remedy = FINISH_AGAIN if path.name in (BACKBONE_FILE, CLASSIFIER_FILE) else FETCH_AGAIN
    try:
        own, tensors = module.state_dict(), read_tensors(path, remedy)
    except AbsentFile as error:
        takes = (
            "model.init_from takes a finished run's folder, a .safetensors file or a checkpoint of"
            " torch.save"
        )
        reason = f": {why_absent(path)}" if own_run else ""
        raise UserError(f"{error}{reason}; {takes}") from error
    if not any(name.endswith(STEP_COUNTER) for name in tensors):
        own = {name: tensor for name, tensor in own.items() if not name.endswith(STEP_COUNTER)}
    prefix, network = "", tensors
    if not own_run:
        if any(".downsample." in name for name in own):
            # which the ResNets of Yang and Xu (models/resnet.py) call shortcut
            tensors = _renamed(tensors, ".shortcut.", ".downsample.")
        prefix = _find_network(own, tensors, path)
        network = _without_heads(own, _below(tensors, prefix))
    _check_match(own, network, path)
    with torch.no_grad():
        for name, tensor in network.items():
            own[name].copy_(tensor)
    place = f" (under {prefix[:-1]})" if prefix else ""
    others = _left_out(tensors, prefix, network)
    left_out = f"; left out: {others}" if others else ""
    log.info("%s: all %d tensors match%s%s", path, len(network), place, left_out)
    return len(network)


def why_absent(path: Path) -> str:
    """Why there is no ``path`` in a folder that was taken for a finished run's."""
    files = ("config.yaml", "result.json", BACKBONE_FILE)
    if not any((path.parent / file).exists() for file in files):
        return "the folder holds none of a run's files"
    if path.name == CLASSIFIER_FILE and (path.parent / BACKBONE_FILE).exists():
        return "the run's method has none"
    return "train the run to its end first"


def _renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _below(tensors: Tensors, prefix: str) -> Tensors:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors[name] for name in names}


def _find_network(own: Tensors, tensors: Tensors, path: Path) -> str:
    """The prefix under which most of the network's names stand; where tensors fit, twice."""
    score = Counter({"": 0})
    for name, tensor in tensors.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            wanted = own.get(".".join(parts[depth:]))
            if wanted is not None:
                score["".join(f"{part}." for part in parts[:depth])] += 1 + _fits(tensor, wanted)
    best = max(score.values())
    equal = [prefix for prefix in score if score[prefix] == best]
    for word in PREFERRED:
        for prefix in equal:
            if re.search(rf"(^|[._]){word}([._]|$)", prefix):
                return prefix
    if len(equal) > 1 and best == 2 * len(own):
        names = ", ".join(prefix[:-1] for prefix in equal)
        raise UserError(
            f"{path} holds {len(equal)} networks that fit ({names}): save the one you want alone"
        )
    return equal[0]


def _without_heads(own: Tensors, network: Tensors) -> Tensors:
    """Leaves out second names of tensors, and foreign modules unless they convolve."""
    convolve = [name for name, tensor in network.items() if tensor.dim() > 2]
    body = {_top(name) for name in (*own, *convolve)}
    used = {tensor.data_ptr() for name, tensor in network.items() if name in own}

    def belongs(name: str) -> bool:
        second_name = network[name].data_ptr() in used
        return name in own or (_top(name) in body and not second_name)

    return {name: tensor for name, tensor in network.items() if belongs(name)}


def _check_match(own: Tensors, network: Tensors, path: Path) -> None:
    missing, unexpected = sorted(own.keys() - network.keys()), sorted(network.keys() - own.keys())
    common = own.keys() & network.keys()
    reshaped = sorted(name for name in common if not _fits(network[name], own[name]))
    if missing or unexpected or reshaped:
        kinds = (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped))
        examples = "; ".join(f"{what} {names[0]}" for what, names in kinds if names)
        raise UserError(
            f"{path} does not fit: {len(common) - len(reshaped)} keys match, "
            f"{len(missing)} are missing, {len(unexpected)} unexpected, "
            f"{len(reshaped)} of another shape or type ({examples}); does model.backbone match?"
        )


def _fits(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    # quantized weights are integers of the same shape
    return tensor.shape == wanted.shape and tensor.is_floating_point() == wanted.is_floating_point()


def _top(name: str) -> str:
    return name.split(".")[0]


def _left_out(tensors: Tensors, prefix: str, network: Tensors) -> str:
    """The modules that were not loaded, with their numbers of tensors.

    Each by the first part of its name that is not the network's.
    """
    where = prefix.split(".")[:-1]
    counts = Counter()
    for name in tensors.keys() - {prefix + name for name in network}:
        parts = name.split(".")
        shared = os.path.commonprefix([parts, where])
        counts[parts[len(shared)]] += 1
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
