"""``python -m lt_train export RUN_DIR``: a finished run's network for other programs.

A state dict that torchvision's or timm's own network loads, one by torchvision's names that holds
whatever the run has (safetensors), or a graph that needs no Python code of ours (ONNX,
TorchScript); docs/service.md shows how each is used. ``--adapter-only`` writes a run's LoRA updates
instead: a folder that ``peft.PeftModel.from_pretrained(BACKBONE, FOLDER)`` puts on the backbone
that the run began with.
"""

import argparse
import io
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from lt_train.arguments import Parser
from lt_train.commands.finished_run import FinishedRun
from lt_train.console import console, working
from lt_train.errors import UserError, unwritable
from lt_train.files import write_atomically
from lt_train.models import graphs
from lt_train.models.libraries import LIBRARIES, Misfit, fill, plain_name, timm_config
from lt_train.models.lora import LORA_FILE, PEFT_CONFIG
from lt_train.models.tensor_files import AbsentFile, Tensors, read_safetensors, write_tensors
from lt_train.models.trainable import ADAPTER
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, FINISH_AGAIN

PEFT_FOLDER, PEFT_FILES = "adapter", ("adapter_model.safetensors", "adapter_config.json")
TIMM_FILES = ("model.safetensors", "config.json")
HEADER_LIMIT = 65_536  # characters of one entry; more do not belong into a file's header


@dataclass(frozen=True)
class Format:
    """``write``: the run, and what to write -> a line on what that holds. ``out``: what is written
    in the run's folder by default. ``suffix``: of files; empty: a folder.
    """

    write: Callable[[FinishedRun, Path], str]
    out: str
    suffix: str
    help: str


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    if arguments.adapter_only:
        if arguments.format != "safetensors":
            raise UserError(f"--adapter-only is peft's: leave out --format {arguments.format}")
        write, default, files = write_updates, PEFT_FOLDER, PEFT_FILES
    else:
        form = FORMATS[arguments.format]
        write, default, files = form.write, form.out, () if form.suffix else TIMM_FILES
    out = arguments.out or arguments.run / default
    if not arguments.adapter_only:
        _check_name(arguments.format, out)
    for file in [out / name for name in files] or [out]:
        _check_free(file, arguments.force)
    run = FinishedRun(arguments.run)
    try:
        with working(f"writing {out}"):
            note = write(run, out)
    except (OSError, SafetensorError) as error:
        raise unwritable(error, f"cannot write {out}: {error}") from error
    console.print(f"{out}: {note}", highlight=False, markup=False)
    return 0


def write_plain(run: FinishedRun, out: Path) -> str:
    """A safetensors file by torchvision's names, the classifier (fc) too where it is linear."""
    tensors, linear = run.backbone, as_linear(run.classifier)
    about, note = _header(run.about())
    said = f"{run.config.model.backbone} of {len(tensors)} tensors"
    if any(ADAPTER in name for name in tensors):
        said += ", with those of adapters, which torchvision and timm do not know,"
    if linear is not None:
        tensors = tensors | {f"fc.{name}": tensor for name, tensor in linear.items()}
        said += f" and a classifier (fc) of {len(linear['weight'])} classes"
    elif run.classifier is None:
        said += ", without a classifier: the run has none"
    else:
        said += f", without the classifier: it is {_beyond_linear(run.classifier)}"
    write_tensors(tensors, out, about)
    return said + note


def write_torchvision(run: FinishedRun, out: Path) -> str:
    """A state dict by torch.save, whose attribute ``metadata`` says what it is."""
    theirs = _of_library("torchvision", run)
    state = OrderedDict(theirs.state_dict())
    state.metadata = run.about()  # which load_state_dict passes over, and weights_only allows
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(out, content.getvalue())
    name = plain_name(run.config.model.backbone)
    return f"a state dict of {len(state)} tensors for torchvision's {name}"


def write_timm(run: FinishedRun, out: Path) -> str:
    """A folder as timm has them: ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""
    theirs = _of_library("timm", run)
    config = timm_config(theirs, run.config.model, run.config.eval_view, run.classes)
    about = run.about()
    weights, described = (out / name for name in TIMM_FILES)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(theirs.state_dict(), weights, _header(about)[0])
    write_atomically(described, json.dumps({**config, "lt_train": about}, indent=1).encode())
    return f"timm's {config['architecture']} with a head of {config['num_classes']} classes"


def write_onnx(run: FinishedRun, out: Path) -> str:
    """An ONNX model, whose metadata_props say what it is."""
    graphs.check_onnx()
    network, output, note = _scoring(run)
    about = run.about()
    write_atomically(out, graphs.onnx_bytes(network, run.config.eval_view.size, output, about))
    return f"{graphs.INPUT} -> {note}"


def write_torchscript(run: FinishedRun, out: Path) -> str:
    """A TorchScript file, which keeps beside its code what says what it is."""
    network, _, note = _scoring(run)
    about = json.dumps(run.about()).encode()
    write_atomically(out, graphs.torchscript_bytes(network, run.config.eval_view.size, about))
    return f"{graphs.INPUT} -> {note}"


FORMATS = {
    "safetensors": Format(
        write_plain,
        "model.safetensors",
        ".safetensors",
        "backbone and classifier (fc) by torchvision's names, of any run",
    ),
    "torchvision": Format(
        write_torchvision, "model.pth", ".pth", "a state dict for torchvision.models.NAME"
    ),
    "timm": Format(write_timm, "timm", "", "a folder for timm.create_model"),
    "onnx": Format(write_onnx, "model.onnx", ".onnx", "a graph: normalised images to logits"),
    "torchscript": Format(write_torchscript, "model.pt", ".pt", "the same for torch.jit.load"),
}


def write_updates(run: FinishedRun, out: Path) -> str:
    """The LoRA updates of a run as peft's folder."""
    try:
        updates, about = read_safetensors(run.folder / LORA_FILE, FINISH_AGAIN)
    except AbsentFile as error:
        raise UserError(
            f"{run.folder} has no {LORA_FILE}: it is no finished run of model.trainable=lora, and "
            "peft has no format for others; leave out --adapter-only"
        ) from error
    weights, config = (out / name for name in PEFT_FILES)
    described = about.pop(PEFT_CONFIG)
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(updates, weights, about)
    write_atomically(config, described.encode())
    return f"{len(updates)} tensors of LoRA, for peft"


def _check_name(form: str, out: Path) -> None:
    suffix = FORMATS[form].suffix
    if suffix:
        if out.suffix != suffix or out.name in (BACKBONE_FILE, CLASSIFIER_FILE):
            raise UserError(
                f"--out {out} must end in {suffix} for --format {form}, and must not be "
                f"{BACKBONE_FILE} or {CLASSIFIER_FILE}, which are a run's own"
            )
    elif out.is_file() or out.suffix in [each.suffix for each in FORMATS.values() if each.suffix]:
        raise UserError(
            f"--out {out} must be a folder for --format {form}: {' and '.join(TIMM_FILES)} go there"
        )


def _check_free(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another file with --out, or overwrite it with --force")


def _header(about: dict[str, str]) -> tuple[dict[str, str], str]:
    """Without what is too long for a file's header, and a note on that."""
    short = {name: text for name, text in about.items() if len(text) <= HEADER_LIMIT}
    left_out = " and ".join(about.keys() - short)
    return short, left_out and f"; {left_out}, too long for a header, stand in result.json"


def _of_library(library: str, run: FinishedRun) -> nn.Module:
    """The library's network with the run's weights; a :class:`UserError` if it has none."""
    try:
        if run.classifier is None:
            raise Misfit("the run has no classifier")
        linear = as_linear(run.classifier)
        if linear is None:
            raise Misfit(f"the classifier is {_beyond_linear(run.classifier)}")
        if any(ADAPTER in name for name in run.backbone):
            raise Misfit(f"the run has adapters, which {library} does not know")
        model, size = run.config.model, run.config.eval_view.size
        theirs = LIBRARIES[library](model.backbone, size, len(linear["weight"]))
        fill(theirs, run.backbone, linear, run.network(), size)
    except Misfit as error:
        raise UserError(
            f"--format {library} cannot hold {run.folder}: {error}; use --format onnx, torchscript "
            "or safetensors"
        ) from error
    return theirs


def _scoring(run: FinishedRun) -> tuple[nn.Module, str, str]:
    """The run's network, the name of what it puts out, and a note on that."""
    network, backbone = run.network(), run.config.model.backbone
    if run.classifier is None:
        return network, "features", f"features of {backbone}: the run has no classifier"
    return network, "logits", f"logits of {backbone} and its classifier"


def as_linear(classifier: Tensors | None) -> Tensors | None:
    """``weight`` (C, D) and ``bias`` (C,) of the linear layer that gives the logits of a classifier
    with these tensors; None where there is no such layer.

    LWS (Kang et al. 2020) scales the logits of a linear layer by a number a class, scale * (W x +
    b), which goes into W and b.
    """
    if classifier is None:
        return None
    if classifier.keys() == {"weight", "bias"}:
        return classifier
    if classifier.keys() == {"linear.weight", "linear.bias", "scale"}:
        scale = classifier["scale"]
        return {
            "weight": scale[:, None] * classifier["linear.weight"],
            "bias": scale * classifier["linear.bias"],
        }
    return None


def _beyond_linear(classifier: Tensors) -> str:
    kind = f"a classifier of {len(classifier)} tensors ({min(classifier)}, ...)"
    if classifier.keys() == {"weight"}:
        kind = "a cosine classifier"
    return f"{kind}, which no linear layer (fc) can express"


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lt_train export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Write a finished run's network for other programs. All but safetensors give the very"
            " logits of evaluation.\n\n"
            + "\n".join(f"  {name:<12}{form.help}" for name, form in FORMATS.items())
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a finished run's folder")
    parser.add_argument(
        "--format", choices=FORMATS, default="safetensors", help="see above (default: safetensors)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="default, in the run's folder: "
        + ", ".join(form.out for form in FORMATS.values())
        + f"; with --adapter-only {PEFT_FOLDER}",
    )
    parser.add_argument(
        "--adapter-only",
        action="store_true",
        help="write the LoRA updates alone, as peft does: " + " and ".join(PEFT_FILES),
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    return parser.parse_args(words)
