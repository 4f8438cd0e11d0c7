"""A GPU that is not there: torch's fake tensors have a device and a shape, and no content. What an
operation may not mix, or would have the host wait for, shows all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from lt_train.data.batch import Batch
from lt_train.methods import moco

GPU = torch.device("cuda", 0)


@contextmanager
def fake_gpu(monkeypatch) -> Iterator[FakeTensorMode]:
    """Everything that is made in the block is fake; a CPU tensor among a GPU's raises, and so does
    whatever needs the content of one. MoCo's shuffles, which are numbers of the host, are real.
    """
    with FakeTensorMode() as mode:

        def of(shuffles, step, place, device):
            with _disable_current_modes():
                of_batch = shuffles.batch_size, shuffles.seed, step, int(place[0])
                made = moco.Shuffle.make(*of_batch, torch.device("cpu"))
            there = {name: on_gpu(mode, getattr(made, name)) for name in ("picked", "arrival")}
            return replace(made, **there)

        monkeypatch.setattr(moco.Shuffles, "of", of)
        yield mode


def on_gpu(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """A fake one like it."""
    return mode.from_tensor(tensor).to(GPU, non_blocking=True)


def method_on_gpu(mode: FakeTensorMode, method: nn.Module) -> nn.Module:
    """``method``, as it is moved to a GPU to train."""
    for module in method.modules():
        for name, parameter in module.named_parameters(recurse=False):
            there = on_gpu(mode, parameter).detach()
            setattr(module, name, nn.Parameter(there, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, on_gpu(mode, buffer))
    return method


def batch_on_gpu(mode: FakeTensorMode, batch: Batch) -> Batch:
    return replace(
        batch,
        views=[on_gpu(mode, view) for view in batch.views],
        label=on_gpu(mode, batch.label),
        sample_id=on_gpu(mode, batch.sample_id),
    )
