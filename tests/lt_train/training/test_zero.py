"""What of ZeRO's state no run of many engines has in it (see test_engine.py for those)."""

from types import SimpleNamespace

import torch
from torch import nn

from lt_train.training.zero import scatter_state


def test_the_step_of_a_single_number_is_no_part_of_it():
    """AdamW's counter has the shape of such a parameter, and counts for its whole group."""
    scale, part = nn.Parameter(torch.tensor(2.0)), torch.zeros(4)
    piece = SimpleNamespace(start=0, numel=1)
    scale._hp_mapping = SimpleNamespace(hp_fragment_address=piece, lp_fragment_address=piece)
    kept = {part: {}}
    zero = SimpleNamespace(
        refresh_fp32_params=lambda: None,
        optimizer=SimpleNamespace(state=kept),
        bit16_groups=[[scale]],
        single_partition_of_fp32_groups=[part],
    )
    state = {"step": torch.tensor(7.0), "exp_avg": torch.tensor(0.5)}
    scatter_state(zero, [scale], {0: state})
    assert kept[part]["step"].equal(torch.tensor(7.0))
    assert kept[part]["exp_avg"].equal(torch.tensor([0.5, 0, 0, 0]))
