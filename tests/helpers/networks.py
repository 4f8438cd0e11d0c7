"""Networks of random weights for the tests, and whether two are the same."""

import torch
from torch import nn

State = dict[str, torch.Tensor]


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Weights and statistics that are all random, and sane enough for finite logits."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        values = torch.rand(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            tensor.copy_((values - 0.5) * (12 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(0.5 + 2 * values)
    return module.eval()


def assert_same_state(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.equal(expected[name]), name
