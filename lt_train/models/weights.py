"""Networks and files of weights: which of a file's tensors are the network's.

Backbones carry torchvision's parameter names.
"""

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from lt_train.errors import UserError
from lt_train.models.namings import NAMINGS
from lt_train.models.tensor_files import (
    FETCH_AGAIN,
    AbsentFile,
    Tensors,
    read_tensors,
    write_tensors,
)
from lt_train.models.trainable import ADAPTER, plain_names, plain_state

log = logging.getLogger(__name__)

BACKBONE_FILE = "backbone.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"  # of methods that have one

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")
STEP_COUNTER = "num_batches_tracked"  # which batch norm with a momentum does not use
# where several networks of a file fit, the one that its authors go on with: MoCo's query encoder,
# MoCo v3's base encoder, DINO's teacher, timm's moving average, BYOL's online network
PREFERRED = ("encoder_q", "base_encoder", "teacher", "ema", "online")
COPIES = ("momentum", "target", "encoder_k")  # what follows the network that is trained
FINISH_AGAIN = (
    "copy the run again, or remove its result.json and give its training command, which writes the"
    " weights anew from the last checkpoint"
)


def export_weights(module: nn.Module, path: Path, about: dict[str, str]) -> None:
    """Write a network's float32 weights and statistics, as :func:`plain_state` has them; ``about``
    goes into the file's metadata.
    """
    write_tensors(plain_state(module), path, about)


def load_weights(
    module: nn.Module, source: str | Path, file: str = BACKBONE_FILE, chosen: str | None = None
) -> int:
    """Load ``file`` of a run folder, or the network in another file, into ``module``.

    Returns the number of tensors loaded. A run's own file must hold the module's tensors and
    nothing else. In any other, .safetensors or of torch.save, the module's names, as torchvision or
    one of NAMINGS has them, are looked for under every prefix (``state_dict``, ``module``,
    ``encoder_q``, ``backbone``, ...), or under ``chosen`` alone (``model.init_prefix``), and heads
    on top of the network are left out. Anything short of a complete match is a :class:`UserError`
    that counts the matched, missing and unexpected keys. Only a file from before torch 0.4.1, which
    has no ``num_batches_tracked`` at all, may be without it.
    """
    own_run = os.path.isdir(source)
    if own_run and chosen is not None:
        raise UserError(
            f"model.init_prefix chooses a network of a file, but {source} is a run's folder, which "
            "has one only: unset it"
        )
    path = Path(source) / file if own_run else Path(source)
    own, tensors = plain_names(module.state_dict()), _read(path, own_run)
    _check_plain(own, tensors, path)
    if not any(name.endswith(STEP_COUNTER) for name in tensors):
        own = {name: tensor for name, tensor in own.items() if not name.endswith(STEP_COUNTER)}
    prefix, network, place = "", tensors, ""
    if not own_run:
        named = [*_renamed(tensors), *_converted(module, tensors)]
        tensors, naming, scores = _best_naming(own, named, chosen)
        prefix, others = _choose(scores, 2 * len(own), path, chosen)
        network = _without_heads(own, _below(tensors, prefix), _known_heads(module))
        place = _where(prefix, others, naming)
    _check_match(own, network, path, tensors)
    with torch.no_grad():
        for name, tensor in network.items():
            own[name].copy_(tensor)
    others = _left_out(tensors, prefix, network)
    left_out = f"; left out: {others}" if others else ""
    log.info("%s: all %d tensors match%s%s", path, len(network), place, left_out)
    return len(network)


def _read(path: Path, own_run: bool) -> Tensors:
    remedy = FINISH_AGAIN if path.name in (BACKBONE_FILE, CLASSIFIER_FILE) else FETCH_AGAIN
    try:
        return read_tensors(path, remedy)
    except AbsentFile as error:
        takes = (
            "model.init_from takes a finished run's folder, a .safetensors file or a checkpoint of"
            " torch.save"
        )
        reason = f": {why_absent(path)}" if own_run else ""
        raise UserError(f"{error}{reason}; {takes}") from error


def why_absent(path: Path) -> str:
    """Why there is no ``path`` in a folder that was taken for a finished run's."""
    files = ("config.yaml", "result.json", BACKBONE_FILE)
    if not path.parent.exists():
        return "there is no such folder"
    if not any((path.parent / file).exists() for file in files):
        return f"the folder holds none of a run's files{_named_instead(path.parent)}"
    if path.name == CLASSIFIER_FILE and (path.parent / BACKBONE_FILE).exists():
        return "the run's method has none"
    return "train the run to its end first"


def _named_instead(folder: Path) -> str:
    """The files of weights in a folder that is no run's, such as a model of Hugging Face."""
    files = sorted(path.name for path in folder.glob("*") if path.suffix in WEIGHT_SUFFIXES)
    return f"; name one of its files, such as {folder / files[0]}" if files else ""


def _below(tensors: Tensors, prefix: str) -> Tensors:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors[name] for name in names}


def _best_naming(
    own: Tensors, named: list[tuple[Tensors, str]], chosen: str | None
) -> tuple[Tensors, str, Counter]:
    """The tensors of a file under the names by which most of the network's are found, whose names
    they are, and what every prefix scores.

    With ``chosen`` only prefixes that hold it count, if any does.
    """
    found = [(tensors, naming, _scores(own, tensors)) for tensors, naming in named]
    return max(found, key=lambda each: max(_chosen(each[2], chosen).values(), default=0))


def _renamed(tensors: Tensors) -> Iterator[tuple[Tensors, str]]:
    """``tensors`` as each of NAMINGS has them, and whose that is."""
    for naming, rename in NAMINGS.items():
        renaming = rename(tensors)
        if len(set(renaming.values())) == len(tensors):  # else one would hide another
            yield {renaming[name]: tensor for name, tensor in tensors.items()}, naming


def _converted(module: nn.Module, tensors: Tensors) -> Iterator[tuple[Tensors, str]]:
    """``tensors`` after what the module's family knows of other layouts, and whose that is."""
    if not type(module).__module__.startswith("timm."):
        return
    from lt_train.models.timm_backbones import conversions

    for naming, convert in conversions(module).items():
        # whatever it trips over was not written for it
        with contextlib.suppress(Exception):
            yield convert(tensors), naming


def _scores(own: Tensors, tensors: Tensors) -> Counter:
    """How many of the network's names stand under every prefix; where tensors fit, twice."""
    score = Counter({"": 0})
    for name, tensor in tensors.items():
        parts = name.split(".")
        for depth in range(len(parts)):
            wanted = own.get(".".join(parts[depth:]))
            if wanted is not None:
                score["".join(f"{part}." for part in parts[:depth])] += 1 + _fits(tensor, wanted)
    return score


def _chosen(scores: Counter, chosen: str | None) -> Counter:
    """Those of prefixes in which ``chosen`` stands, as one or several whole parts."""
    if chosen is None:
        return scores
    inside = {prefix: score for prefix, score in scores.items() if f".{chosen}." in f".{prefix}"}
    return Counter(inside)


def _choose(
    scores: Counter, complete: int, path: Path, chosen: str | None
) -> tuple[str, list[str]]:
    """The prefix under which the network stands, and those of others that fit as well.

    ``complete``: what a network scores that fits whole.
    """
    among = _chosen(scores, chosen)
    if not among:
        most = max(scores.values())
        there = [prefix[:-1] for prefix in scores if prefix and 2 * scores[prefix] > most]
        raise UserError(
            f"model.init_prefix={chosen}: {path} has no network of that name; it has "
            f"{', '.join(there[:8]) or 'one at its top, without a prefix: unset it'}"
        )
    best = max(among.values())
    equal = [prefix for prefix in among if among[prefix] == best]
    left = _narrowed(equal)
    if len(left) > 1 and best == complete:
        names = ", ".join(prefix[:-1] for prefix in equal)
        raise UserError(
            f"{path} holds {len(equal)} networks that fit ({names}): choose one with "
            "model.init_prefix"
        )
    return left[0], [other for other in equal if other != left[0]]


def _narrowed(prefixes: list[str]) -> list[str]:
    """Of networks that fit alike, those whose names say that they are to be taken."""
    for word in PREFERRED:
        named = [prefix for prefix in prefixes if _has_word(prefix, (word,))]
        prefixes = named or prefixes
    trained = [prefix for prefix in prefixes if not _has_word(prefix, COPIES)]
    return trained or prefixes


def _has_word(prefix: str, words: Iterable[str]) -> bool:
    return any(re.search(rf"(^|[._]){word}([._]|$)", prefix) for word in words)


def _where(prefix: str, others: list[str], naming: str) -> str:
    """For the log: where in a file the network was found."""
    said = [f"under {prefix[:-1]}"] if prefix else []
    if others:
        names = ", ".join(other[:-1] or "the top" for other in others)
        said.append(f"not {names}, which model.init_prefix can choose")
    if naming != next(iter(NAMINGS)):
        said.append(f"by the names of {naming}")
    return f" ({', '.join(said)})" if said else ""


def _known_heads(module: nn.Module) -> tuple[str, ...]:
    """The paths of the heads that a network of timm was made without."""
    heads = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))


def _without_heads(own: Tensors, network: Tensors, heads: tuple[str, ...]) -> Tensors:
    """Leaves out ``heads``, second names of tensors, and foreign modules unless they convolve."""
    convolve = [name for name, tensor in network.items() if tensor.dim() > 2]
    body = {_top(name) for name in (*own, *convolve)}
    used = {tensor.data_ptr() for name, tensor in network.items() if name in own}

    def belongs(name: str) -> bool:
        second_name = network[name].data_ptr() in used
        return name in own or (
            _top(name) in body and not second_name and not name.startswith(heads)
        )

    return {name: tensor for name, tensor in network.items() if belongs(name)}


def _check_plain(own: Tensors, tensors: Tensors, path: Path) -> None:
    adapters = [name for name in tensors if ADAPTER in name]
    if adapters and not any(ADAPTER in name for name in own):
        raise UserError(
            f"{path} is of model.trainable=adapter ({adapters[0]}, ...), and no plain backbone has "
            "a place for adapters; start from a run of lora, which is merged into one"
        )


def _check_match(own: Tensors, network: Tensors, path: Path, whole: Tensors) -> None:
    """Refuse a network that is not ``own`` by names and shapes; ``whole``: all of the file."""
    missing, unexpected = sorted(own.keys() - network.keys()), sorted(network.keys() - own.keys())
    common = own.keys() & network.keys()
    reshaped = sorted(name for name in common if not _fits(network[name], own[name]))
    if missing or unexpected or reshaped:
        kinds = (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped))
        examples = "; ".join(f"{what} {names[0]}" for what, names in kinds if names)
        if not common:
            first = list(whole.items())[:3]
            shown = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in first)
            examples = f"{len(whole)} tensors such as {shown}"
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
