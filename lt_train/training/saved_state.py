"""All that a run goes on from, in one file that no engine and no number of ranks is bound to.

Rank 0 writes and reads ``state.pt``; the others get their state from it, so that a thousand ranks
do not read a thousand files. It holds tensors and plain values only, and is never unpickled
otherwise: a checkpoint may have come from a stranger.
"""

import logging
from pathlib import Path

import torch
from torch import nn

from lt_train.collectives import broadcast_, broadcast_object, on_main
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.models.tensor_files import reading
from lt_train.models.trainable import frozen_digest, kept_state, load_kept_state
from lt_train.training.optim import trained_parameters

log = logging.getLogger(__name__)

STATE_FILE = "state.pt"
REMEDY = "remove the checkpoint to go on from the one before"

# the number of a trained parameter, in the method's order -> what the optimizer keeps of it, under
# torch's names: tensors of the parameter's shape, or of none
OptimizerState = dict[int, dict[str, torch.Tensor]]


def write_state(folder: Path, method: Method, optimizer: OptimizerState) -> None:
    """Write a checkpoint's state. Called by rank 0."""
    content = {"method": kept_state(method), "optimizer": {"state": optimizer}}
    if (digest := frozen_digest(method)) is not None:
        content["frozen"] = digest
    torch.save(content, folder / STATE_FILE)


def read_state(folder: Path, method: Method) -> dict:
    """Give ``method`` the state in a checkpoint's folder; returns all that the file holds.

    A :class:`UserError` if it is no readable file of a state; what does not fit raises as in
    ``load_state_dict``.
    """
    path = folder / STATE_FILE
    with reading(path, REMEDY):
        saved = torch.load(path, map_location="cpu", weights_only=True)
    load_kept_state(method, saved["method"], saved.get("frozen"))
    return saved


def load_state(folder: Path, method: Method, names: set[str]) -> OptimizerState | None:
    """Give ``method`` on every rank the state in a checkpoint's folder. Collective.

    Returns the optimizer's on rank 0, which alone reads; None on the others. What another optimizer
    than that which keeps ``names`` has saved is left out. A :class:`UserError` on every rank if it
    cannot be read or does not fit.
    """
    optimizer = on_main(lambda: _read_fitting(folder, method, names))
    broadcast_module(method)
    return optimizer


def broadcast_module(module: nn.Module) -> None:
    """Parameters and buffers of rank 0 to every rank. Collective."""
    for tensor in module.state_dict().values():
        broadcast_(tensor)


def broadcast_optimizer(
    state: OptimizerState | None, parameters: list[nn.Parameter]
) -> OptimizerState:
    """Rank 0's ``state`` on every rank, in the device, type and layout of ``parameters``.

    Collective.
    """
    shapes = None
    if state is not None:
        shapes = {number: _shapes(values) for number, values in state.items()}
    received = {}
    for number, named in broadcast_object(shapes).items():
        parameter, received[number] = parameters[number].detach(), {}
        for name, shape in named.items():
            # fused optimizers take for granted that it lies in memory as the parameter does
            is_alike = shape == parameter.shape
            value = torch.empty_like(parameter) if is_alike else parameter.new_empty(shape)
            if state is not None:
                value.copy_(state[number][name])
            received[number][name] = broadcast_(value)
    return received


def _shapes(values: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in values.items()}


def _read_fitting(folder: Path, method: Method, names: set[str]) -> OptimizerState:
    """Rank 0's part of :func:`load_state`."""
    try:
        saved = read_state(folder, method)
        if "optimizer" not in saved:
            raise UserError(
                f"{folder} was saved with DeepSpeed by an earlier version of lt_train, and no run "
                "can go on from it; choose another run.dir"
            )
        state = saved["optimizer"]["state"]
        _check_shapes(state, trained_parameters(method))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} does not fit this config ({error}); undo the change or choose another "
            "run.dir"
        ) from error
    own = {number: values for number, values in state.items() if values.keys() <= names}
    if len(own) < len(state):
        log.warning("%s is of another optimizer, whose momenta begin anew", folder)
    return own


def _check_shapes(state: OptimizerState, parameters: list[nn.Parameter]) -> None:
    """A :class:`ValueError` if it is the state of other parameters."""
    for number, values in state.items():
        if number not in range(len(parameters)):
            raise ValueError(f"{len(parameters)} parameters are trained, not {number + 1}")
        for name, value in values.items():
            if value.shape not in (parameters[number].shape, ()):
                raise ValueError(f"{name} of parameter {number} is of {tuple(value.shape)}")
