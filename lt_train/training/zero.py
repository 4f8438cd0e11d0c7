"""The whole of an optimizer's state, which DeepSpeed's ZeRO 1 and 2 cut into a part a rank.

ZeRO lays a group's parameters in one flat row, pads it and gives every rank a part of equal length,
which its optimizer takes for its only parameter (Rajbhandari et al. 2020). A parameter may lie in
several ranks' parts, or none of it in this rank's.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from lt_train.collectives import all_reduce_
from lt_train.training.saved_state import OptimizerState

if TYPE_CHECKING:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils.tensor_fragment import fragment_address

COUNTER = "step"  # AdamW's of a parameter, which counts for its whole group


def gather_state(zero: "DeepSpeedZeroOptimizer", parameters: list[nn.Parameter]) -> OptimizerState:
    """What the optimizers of all ranks keep of every parameter, on the CPU. Collective.

    The same on every rank.
    """
    gathered = {}
    for number, (parameter, part) in enumerate(_parts(zero, parameters)):
        gathered[number] = {}
        for name, value in zero.optimizer.state[part].items():
            if value.shape == part.shape:
                value = _joined(value, parameter)
            gathered[number][name] = value.cpu()
    return gathered


def scatter_state(
    zero: "DeepSpeedZeroOptimizer", parameters: list[nn.Parameter], state: OptimizerState
) -> None:
    """Give this rank's optimizer its part of ``state``, which every rank has whole.

    Weights as well: they are those of ``parameters`` now.
    """
    zero.refresh_fp32_params()
    for number, (parameter, part) in enumerate(_parts(zero, parameters)):
        kept = zero.optimizer.state[part]
        for name, value in state.get(number, {}).items():
            if name == COUNTER or value.shape != parameter.shape:
                kept[name] = value
                continue
            kept.setdefault(name, torch.zeros_like(part, requires_grad=False))
            if (piece := parameter._hp_mapping) is not None:
                _cut(kept[name], piece.hp_fragment_address).copy_(
                    _cut(value.flatten(), piece.lp_fragment_address)
                )


def _parts(
    zero: "DeepSpeedZeroOptimizer", parameters: list[nn.Parameter]
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Every parameter with this rank's part of the row that it lies in."""
    rows = zip(zero.bit16_groups, zero.single_partition_of_fp32_groups)
    part_of = {}
    for group, part in rows:
        part_of |= dict.fromkeys(group, part)
    for parameter in parameters:
        yield parameter, part_of[parameter]


def _joined(part: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A parameter's values from the parts of all ranks."""
    whole = torch.zeros_like(parameter, dtype=part.dtype, requires_grad=False)
    if (piece := parameter._hp_mapping) is not None:
        _cut(whole.view(-1), piece.lp_fragment_address).copy_(_cut(part, piece.hp_fragment_address))
    return all_reduce_(whole)


def _cut(row: torch.Tensor, address: "fragment_address") -> torch.Tensor:
    return row.narrow(0, address.start, address.numel)
