"""Run a function on several CPU ranks, each a process of its own, as a launcher would start them.

Where tests compute in their own process as well, the fixture :func:`one_thread` is imported by
their module or by their folder's conftest.py, and then holds for all of them.
"""

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lt_train import distributed


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For small networks on a busy machine, threads that wait for each other cost twenty times what
    they give.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_on_ranks(size: int, function: Callable, *arguments, timeout: float = 90.0) -> list[Any]:
    """``function(world, *arguments)`` of every rank, in rank order.

    Fails when a rank fails, or after ``timeout`` seconds. ``function`` must be at the top level of
    its module.
    """
    # takes a free port
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        common = (size, store.port, Path(folder), function, arguments)
        ranks = mp.start_processes(_run_rank, common, size, join=False, start_method="spawn")
        try:
            while not ranks.join(timeout=max(0.0, deadline - time.monotonic())):
                if time.monotonic() > deadline:
                    what = f"{function.__name__} on {size} ranks"
                    raise TimeoutError(f"{what} took more than {timeout:.0f} s")
        finally:
            for process in ranks.processes:
                process.kill()
                process.join()
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(size)]


def be_rank(rank: int, size: int, port: int) -> None:
    """Give this process the environment of a rank on the CPU, whose parent serves the store at
    ``port``, as torchrun does.
    """
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
    )


def _run_rank(
    rank: int, size: int, port: int, folder: Path, function: Callable, arguments: tuple
) -> None:
    be_rank(rank, size, port)
    faulthandler.enable()
    with distributed.joined() as world:
        torch.save(function(world, *arguments), folder / str(rank))
        world.barrier()
    os._exit(0)  # torch now and then aborts while it unloads a process that had many engines
