"""In which precision a run computes: as its config says, or what is faster on this machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lt_train.collectives import from_main
from lt_train.config.schema import Config
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.files import read_sealed
from lt_train.run_files import read_result
from lt_train.training.checkpoint import META_FILE, saved_checkpoints

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIALS = 7  # in turns, of which the least counts
WORTH_IT = 1.1  # times as long in float32


def decided(config: Config, world: World) -> Config:
    """``config`` with ``engine.precision`` fp32 or bf16. Collective.

    For "auto" a run stays with what it has begun in, on whatever machine it goes on, or its numbers
    would change half-way. Else it is bf16 on GPUs that have it built in, and on CPUs where a
    convolution of ResNet takes less time in it.
    """
    if config.engine.precision != "auto":
        return config
    precision = from_main(lambda: _kept(Path(config.run.dir)) or _faster(world.device))
    return replace(config, engine=replace(config.engine, precision=precision))


def dtype_of(config: Config) -> torch.dtype:
    """That of a config that is :func:`decided`."""
    return DTYPES[config.engine.precision]


def autocast(config: Config, world: World) -> torch.autocast:
    """The precision of a config that is :func:`decided`, as a context."""
    dtype = dtype_of(config)
    return torch.autocast(world.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def recorded(config: Config) -> dict[str, str]:
    """What result.json and meta.json say of it."""
    return {"precision": str(dtype_of(config)).removeprefix("torch.")}


def _kept(folder: Path) -> str | None:
    """What the run in ``folder`` has computed in so far; None without one, or if it is not said."""
    names = {str(dtype): name for name, dtype in DTYPES.items()}
    newest_first = reversed(saved_checkpoints(folder / "checkpoints").values())
    sources = [partial(read_sealed, path / META_FILE, "") for path in newest_first]
    for read in (*sources, partial(read_result, folder)):
        with suppress(OSError, UserError):  # who goes on with it will say so
            return names.get(f"torch.{read().get('precision')}")
    return None


def _faster(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # what a CPU says of itself does not tell: with bf16's instructions, but no matrix unit for it,
    # an Intel core takes 1.5 times as long as in float32, an AMD core half as long
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    images = torch.ones(32, 64, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    seconds = {name: [] for name in DTYPES}
    with _one_thread():
        for _ in range(TRIALS):
            for name, dtype in DTYPES.items():
                seconds[name].append(_seconds(layer, images, dtype))
    return "bf16" if min(seconds["fp32"]) > WORTH_IT * min(seconds["bf16"]) else "fp32"


def _seconds(layer: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> float:
    """CPU time that a layer takes, forward and backward."""
    started = time.thread_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = layer(images)
    output.float().sum().backward()
    return time.thread_time() - started


@contextmanager
def _one_thread() -> Iterator[None]:
    """Whose CPU time is its own: runs of one kind must decide alike, whatever else goes on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
