"""A network as a graph that runs without its Python code: ONNX and TorchScript.

Both take normalised images, float32 (B, 3, size, size) for any B, and give float32 (B, C).
"""

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lt_train.errors import UserError
from lt_train.models.libraries import same_logits

METADATA_FILE = "metadata.json"  # of the files that TorchScript keeps beside its code
ONNX_NEEDS = ("onnx", "onnxscript")
ONNX_LIMIT = 2**31 - 2**20  # bytes of tensors: protobuf's limit, less the graph itself
INPUT = "images"


def check_onnx() -> None:
    """A :class:`UserError` where what writes ONNX is not installed."""
    missing = [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}: pip install 'lt-train[export]'"
        )


def onnx_bytes(network: nn.Module, size: int, output: str, about: dict[str, str]) -> bytes:
    """An ONNX model: ``images`` -> ``output``; ``about`` becomes its metadata_props.

    ``network`` is in evaluation mode. A :class:`UserError` if torch.onnx cannot express it.
    """
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    if weights > ONNX_LIMIT:
        raise UserError(
            f"--format onnx: weights of {weights / 1e9:.1f} GB are more than a file of ONNX may "
            "hold (2 GB); use --format torchscript"
        )
    batch = torch.export.Dim("batch")
    with _exporting("onnx", "torchscript"):
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


def torchscript_bytes(network: nn.Module, size: int, about: bytes) -> bytes:
    """What ``torch.jit.load`` reads; ``about`` stands beside as METADATA_FILE.

    ``network`` is in evaluation mode. A :class:`UserError` if a trace of it, which has seen a batch
    of two, computes anything else on other images.
    """
    content = io.BytesIO()
    with _exporting("torchscript", "onnx"):
        traced = torch.jit.trace(network, (torch.zeros(2, 3, size, size),), check_trace=False)
        torch.jit.save(traced, content, _extra_files={METADATA_FILE: about})
    if not same_logits(traced, network, size):
        raise UserError(
            "--format torchscript: a trace of the network computes something else on other images "
            "(its code looks at values or at the number of images); use --format onnx"
        )
    return content.getvalue()


@contextmanager
def _exporting(form: str, other: str) -> Iterator[None]:
    """Without warnings, which are not the user's: torch would have people trace no more."""
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            yield
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        cause = error.__cause__ or error
        if "allocate memory" in str(cause):
            raise  # the machine's fault, not the network's
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UserError(
            f"--format {form}: torch cannot express the network ({lines[0]}); use --format {other} "
            "or safetensors"
        ) from error
