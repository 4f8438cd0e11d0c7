"""Weights in and out: backbones (with torchvision's parameter names) and classifiers as
safetensors, other projects' checkpoints in.
"""

import argparse
import logging
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from lt_train.errors import UserError
from lt_train.files import write_atomically

log = logging.getLogger(__name__)

BACKBONE_FILE = "backbone.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"  # of methods that have one

STEP_COUNTER = "num_batches_tracked"  # which batch norm with a momentum does not use
# where several networks of a file fit, the one that its authors go on with: MoCo's query encoder,
# MoCo v3's base encoder, DINO's teacher, timm's moving average
PREFERRED = ("encoder_q", "base_encoder", "teacher", "ema")
# what old checkpoints hold beside tensors: NumPy scalars (under the names of NumPy 1 and 2) and the
# command line
_numpy_scalar = np.float64().__reduce__()[0]
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    *((_numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def export_weights(module: nn.Module, path: Path, about: dict[str, str]) -> None:
    """Write a network's float32 weights and statistics; ``about`` goes into the file's metadata."""
    write_tensors(module.state_dict(), path, about)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; ``about`` goes into its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(tensors, metadata={"format": "pt", **about}))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a .safetensors file, or of a checkpoint that torch.save wrote, on the CPU; in
    nested dicts under dotted names.

    Checkpoints come from strangers: one that holds more than tensors and plain values is refused
    with a :class:`UserError`, unrun.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            # only zip files, which torch writes since 1.6, can be mapped
            return dict(
                _named(
                    torch.load(
                        path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                    )
                )
            )
    except Exception as error:  # what is damaged can fail anywhere in the unpickler
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} is refused: it holds more than tensors ({refused[1]}), which could run any"
                " code when loaded; save its state_dict alone, or ask its authors for safetensors"
            ) from error
        kind = "safetensors file" if path.suffix == ".safetensors" else "checkpoint of torch.save"
        reason = (
            error
            if isinstance(error, (OSError, SafetensorError))
            else "damaged, cut off or of another kind"
        )
        raise UserError(f"{path} is not a readable {kind}: {reason}") from error


def _named(value: object, *path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, *path, str(key))


def load_weights(module: nn.Module, source: str | Path, file: str = BACKBONE_FILE) -> int:
    """Load ``file`` of a run folder, or the network in a file of another origin, into ``module``;
    returns the number of tensors loaded.

    A run's own file must hold the module's tensors and nothing else. In any other, .safetensors or
    of torch.save, the module's names are looked for under every prefix (``state_dict``, ``module``,
    ``encoder_q``, ``backbone``, ...), and heads on top of the network are left out. Anything short
    of a complete match is a :class:`UserError` that counts the matched, missing and unexpected
    keys. Only a file from before torch 0.4.1, which has no ``num_batches_tracked`` at all, may be
    without it.
    """
    own_run = Path(source).is_dir()
    path = Path(source) / file if own_run else Path(source)
    if not path.is_file():
        raise UserError(
            f"there is no {path}; model.init_from takes a finished run's folder, a .safetensors"
            " file or a checkpoint of torch.save"
        )
    own, tensors = module.state_dict(), read_tensors(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    if not any(name.endswith(STEP_COUNTER) for name in tensors):
        own = {name: tensor for name, tensor in own.items() if not name.endswith(STEP_COUNTER)}
    prefix, network = "", tensors
    if not own_run:
        if any(
            ".downsample." in name for name in own
        ):  # which the ResNets of Yang and Xu (models/resnet.py) call shortcut
            tensors = {
                name.replace(".shortcut.", ".downsample."): tensor
                for name, tensor in tensors.items()
            }
        prefix = _find_network(own, tensors, path)
        network = _without_heads(
            own,
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            },
        )
    _check_match(own, network, path)
    with torch.no_grad():
        for name, tensor in network.items():
            own[name].copy_(tensor)
    place, left_out = (
        f" (under {prefix[:-1]})" if prefix else "",
        _left_out(tensors, prefix, network),
    )
    log.info(
        "%s: all %d tensors match%s%s",
        path,
        len(network),
        place,
        f"; left out: {left_out}" if left_out else "",
    )
    return len(network)


def _find_network(
    own: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], path: Path
) -> str:
    """The prefix under which most of the network's names stand; those whose tensors fit count
    double.
    """
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
        raise UserError(
            f"{path} holds {len(equal)} networks that fit"
            f" ({', '.join(prefix[:-1] for prefix in equal)}): save the one you want alone"
        )
    return equal[0]


def _without_heads(
    own: dict[str, torch.Tensor], network: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Leaves out second names of the network's tensors, and modules that the network has not,
    unless they convolve.
    """
    body = {_top(name) for name in own} | {
        _top(name) for name, tensor in network.items() if tensor.dim() > 2
    }
    used = {tensor.data_ptr() for name, tensor in network.items() if name in own}
    return {
        name: tensor
        for name, tensor in network.items()
        if name in own or (_top(name) in body and tensor.data_ptr() not in used)
    }


def _check_match(
    own: dict[str, torch.Tensor], network: dict[str, torch.Tensor], path: Path
) -> None:
    missing, unexpected = sorted(own.keys() - network.keys()), sorted(network.keys() - own.keys())
    common = own.keys() & network.keys()
    reshaped = sorted(name for name in common if not _fits(network[name], own[name]))
    if missing or unexpected or reshaped:
        kinds = (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped))
        examples = "; ".join(f"{what} {names[0]}" for what, names in kinds if names)
        raise UserError(
            f"{path} does not fit: {len(common) - len(reshaped)} keys match, {len(missing)} are"
            f" missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape or type"
            f" ({examples}); does model.backbone match?"
        )


def _fits(tensor: torch.Tensor, wanted: torch.Tensor) -> bool:
    # quantized weights are integers of the same shape
    return tensor.shape == wanted.shape and tensor.is_floating_point() == wanted.is_floating_point()


def _top(name: str) -> str:
    return name.split(".")[0]


def _left_out(
    tensors: dict[str, torch.Tensor], prefix: str, network: dict[str, torch.Tensor]
) -> str:
    """The modules that were not loaded, each by the first part of its name that is not the
    network's, with its number of tensors.
    """
    where = prefix.split(".")[:-1]
    counts = Counter()
    for name in tensors.keys() - {prefix + name for name in network}:
        parts = name.split(".")
        shared = next(
            (depth for depth, (part, other) in enumerate(zip(parts, where)) if part != other),
            len(where),
        )
        counts[parts[shared]] += 1
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
