"""``python -m lt_train export RUN_DIR``: a finished run's backbone and classifier in one file, as
torchvision names them.

``torchvision.models.resnet50(num_classes=C).load_state_dict(safetensors.torch.load_file(FILE))``
then gives the run's logits.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from lt_train.console import console
from lt_train.errors import UserError, unwritable
from lt_train.models.tensor_files import (
    AbsentFile,
    read_safetensors,
    read_tensors,
    write_tensors,
)
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, FINISH_AGAIN, why_absent
from lt_train.run_files import read_result

MODEL_FILE = "model.safetensors"
CLASS_NAMES_LIMIT = 65_536  # characters; more do not belong into a file's header


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    run = arguments.run
    out = arguments.out or run / MODEL_FILE
    if out.suffix != ".safetensors" or out.name in (BACKBONE_FILE, CLASSIFIER_FILE):
        raise UserError(
            f"--out {out} must end in .safetensors, and must not be {BACKBONE_FILE} or"
            f" {CLASSIFIER_FILE}, which are a run's own"
        )
    if out.exists() and not arguments.force:
        raise UserError(f"{out} exists; name another file with --out, or overwrite it with --force")
    tensors, about, note = read_model(run)
    try:
        write_tensors(tensors, out, about)
    except (OSError, SafetensorError) as error:
        raise unwritable(error, f"cannot write {out}: {error}") from error
    console.print(f"{out}: {note}", highlight=False, markup=False)
    return 0


def read_model(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], str]:
    """A finished run's state dict with torchvision's names, what the file's metadata say of it, and
    a line on what it holds.
    """
    classes = _classes(run)
    try:
        tensors, about = read_safetensors(run / BACKBONE_FILE, FINISH_AGAIN)
    except AbsentFile as error:
        raise UserError(f"{run} is not a finished run: {error}; {FINISH_AGAIN}") from error
    note = f"{about.get('backbone', 'backbone')} of {len(tensors)} tensors"
    if not (run / CLASSIFIER_FILE).exists():
        return tensors, about, f"{note}, without a classifier: the run has none"
    classifier = read_tensors(run / CLASSIFIER_FILE, FINISH_AGAIN)
    linear = as_linear(classifier)
    if linear is None:
        reason = f"it is {_describe(classifier)}, which no linear layer (fc) can express"
        return tensors, about, f"{note}, without the classifier: {reason}"
    names = json.dumps(classes)
    if len(classes) == len(linear["weight"]) and len(names) <= CLASS_NAMES_LIMIT:
        about = {**about, "classes": names}
    tensors |= {f"fc.{name}": tensor for name, tensor in linear.items()}
    return tensors, about, f"{note} and a classifier (fc) of {len(linear['weight'])} classes"


def _classes(run: Path) -> list[str]:
    """The names of a finished run's classes."""
    result, path = read_result(run), run / "result.json"
    if "classes" not in result:
        raise UserError(
            f"{run} is not a finished run: there is no {path} with its classes: {why_absent(path)},"
            " or name another folder"
        )
    return result["classes"]


def as_linear(classifier: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """``weight`` (C, D) and ``bias`` (C,) of the linear layer that gives the logits of a classifier
    with these tensors; None where there is no such layer.

    LWS (Kang et al. 2020) scales the logits of a linear layer by a number a class, scale * (W x +
    b), which goes into W and b.
    """
    if classifier.keys() == {"weight", "bias"}:
        return classifier
    if classifier.keys() == {"linear.weight", "linear.bias", "scale"}:
        scale = classifier["scale"]
        return {
            "weight": scale[:, None] * classifier["linear.weight"],
            "bias": scale * classifier["linear.bias"],
        }
    return None


def _describe(classifier: dict[str, torch.Tensor]) -> str:
    if classifier.keys() == {"weight"}:
        return "a cosine classifier"
    return f"a classifier of {len(classifier)} tensors ({min(classifier)}, ...)"


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lt_train export",
        description=(
            "Write a finished run's backbone and classifier (fc) as one safetensors file that"
            " torchvision and timm models load."
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a finished run's folder")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"a .safetensors file (default: {MODEL_FILE} in the run's folder)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    return parser.parse_args(words)
