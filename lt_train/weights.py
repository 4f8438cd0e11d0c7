"""Import and export of backbones (with torchvision's parameter names) and classifiers as safetensors."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lt_train.errors import UserError

BACKBONE_FILE = "backbone.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"  # of stages that have one


def export_weights(module: nn.Module, path: Path, about: dict[str, str]) -> None:
    """Write a network's float32 weights and statistics; ``about`` goes into the file's metadata."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    temporary = path.with_suffix(".partial")
    save_file(state, temporary, metadata={"format": "pt", **about})
    temporary.replace(path)


def load_weights(module: nn.Module, source: str | Path, file: str = BACKBONE_FILE) -> int:
    """Load a .safetensors file, or ``file`` of a run folder, into ``module``; returns the number of tensors loaded.

    Anything short of a complete match is a :class:`UserError` that counts the matched, missing and unexpected keys.
    """
    path = Path(source)
    if path.is_dir():
        path = path / file
    if not path.is_file():
        raise UserError(f"model.init_from: there is no {path}; name a finished run's folder or a .safetensors file")
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"model.init_from: {path} is not a readable safetensors file: {error}") from error
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - loaded.keys()), sorted(loaded.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & loaded.keys() if own[name].shape != loaded[name].shape)
    if missing or unexpected or reshaped:
        matched = len(own) - len(missing) - len(reshaped)
        examples = "; ".join(
            f"{what} {names[0]}" for what, names in (("missing", missing), ("unexpected", unexpected), ("other shape", reshaped)) if names
        )
        raise UserError(
            f"model.init_from: {path} does not fit: {matched} keys match, {len(missing)} are missing, "
            f"{len(unexpected)} unexpected, {len(reshaped)} of another shape ({examples}); does model.backbone match?"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(loaded[name])
    return len(own)
