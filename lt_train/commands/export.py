"""``python -m lt_train export RUN_DIR``: a finished run's backbone and classifier in one file, as
torchvision names them.

``torchvision.models.resnet50(num_classes=C).load_state_dict(safetensors.torch.load_file(FILE))``
then gives the run's logits. ``--adapter-only`` writes a run's LoRA updates instead: a folder that
``peft.PeftModel.from_pretrained(BACKBONE, FOLDER)`` puts on the backbone that the run began with.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from lt_train.arguments import Parser
from lt_train.console import console
from lt_train.errors import UserError, unwritable
from lt_train.files import write_atomically
from lt_train.models.lora import LORA_FILE, PEFT_CONFIG
from lt_train.models.tensor_files import (
    AbsentFile,
    read_safetensors,
    read_tensors,
    write_tensors,
)
from lt_train.models.trainable import ADAPTER
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, FINISH_AGAIN, why_absent
from lt_train.run_files import read_result

MODEL_FILE = "model.safetensors"
PEFT_FOLDER, PEFT_FILES = "adapter", ("adapter_model.safetensors", "adapter_config.json")
CLASS_NAMES_LIMIT = 65_536  # characters; more do not belong into a file's header


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    run = arguments.run
    if arguments.adapter_only:
        return _export_updates(run, arguments.out or run / PEFT_FOLDER, arguments.force)
    out = arguments.out or run / MODEL_FILE
    if out.suffix != ".safetensors" or out.name in (BACKBONE_FILE, CLASSIFIER_FILE):
        raise UserError(
            f"--out {out} must end in .safetensors, and must not be {BACKBONE_FILE} or"
            f" {CLASSIFIER_FILE}, which are a run's own"
        )
    _check_free(out, arguments.force)
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
    if any(ADAPTER in name for name in tensors):
        note += ", with those of adapters, which torchvision and timm do not know,"
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


def _export_updates(run: Path, out: Path, force: bool) -> int:
    _classes(run)
    try:
        updates, about = read_safetensors(run / LORA_FILE, FINISH_AGAIN)
    except AbsentFile as error:
        raise UserError(
            f"{run} has no {LORA_FILE}: it is no finished run of model.trainable=lora, and peft "
            "has no format for others; leave out --adapter-only"
        ) from error
    weights, config = (out / name for name in PEFT_FILES)
    for file in (weights, config):
        _check_free(file, force)
    described = about.pop(PEFT_CONFIG)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_tensors(updates, weights, about)
        write_atomically(config, described.encode())
    except (OSError, SafetensorError) as error:
        raise unwritable(error, f"cannot write to {out}: {error}") from error
    note = f"{len(updates)} tensors of LoRA, for peft"
    console.print(f"{out}: {note}", highlight=False, markup=False)
    return 0


def _check_free(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another file with --out, or overwrite it with --force")


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
    parser = Parser(
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
        help=f"a .safetensors file (default: {MODEL_FILE} in the run's folder); with"
        f" --adapter-only a folder (default: {PEFT_FOLDER} there)",
    )
    parser.add_argument(
        "--adapter-only",
        action="store_true",
        help="write the LoRA updates alone, as peft does: " + " and ".join(PEFT_FILES),
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    return parser.parse_args(words)
