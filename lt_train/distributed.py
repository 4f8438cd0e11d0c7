"""Who this process is among all ranks, and the collectives that methods and metrics use.

One function reads the environment, in this order: torchrun (RANK, WORLD_SIZE, ...), SLURM
(SLURM_PROCID, ...; one srun task a GPU), the same names as torchrun's where somebody else has set
them, a single process, for which collectives do nothing.
"""

import ctypes
import gc
import itertools
import os
import re
import resource
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from lt_train.errors import LostPeer, MachineFault, UserError
from lt_train.heartbeat import heartbeat, lost_peer

# MASTER_PORT is one of these by the job's number, so that jobs on one node do not meet; Linux gives
# those from 32,768 on to whoever asks for any
FIRST_PORT, PORTS = 12_000, 20_000
SILENCE = 0.1  # of the time that a collective may take, in which a rank may give no sign of life
LAZY_FROM = 64  # ranks at which gloo connects those that talk with each other, not all
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


@dataclass(frozen=True)
class World:
    """Rank and device of this process."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the ranks of this node
    local_size: int = 1
    device: torch.device = torch.device("cpu")
    cores: int = 0  # of this rank's own, as ranks of the node have found; 0: nobody has asked them

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def cpu_threads(self) -> int:
        """This rank's share of the cores that the process may use; at least 1.

        Or what Slurm has given it, if that is less.
        """
        allowed = len(os.sched_getaffinity(0))
        share = self.cores or allowed // self.local_size
        granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
        if granted.isdecimal():
            # of tasks that have not told each other, it says how many cores each has for itself
            is_task = not self.cores and os.environ.get("SLURM_NTASKS") == str(self.size)
            share = min(allowed if is_task else share, int(granted))
        return max(1, share)

    def barrier(self) -> None:
        """Wait for all ranks.

        Through the CPU backend, so that it also waits where no GPU work is queued.
        """
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


def read_environment(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """rank, size, local_rank and local_size from torchrun's or SLURM's variables.

    Without any, those of a single process.
    """
    in_slurm = "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment
    named = "RANK" in environment and "WORLD_SIZE" in environment
    # a login shell's RANK comes along with every task of srun. Another launcher's comes from within
    # a task, of which there is one then; torchrun's has the name of its run beside it
    is_leaked = in_slurm and environment.get("SLURM_NTASKS") != "1"
    if named and ("TORCHELASTIC_RUN_ID" in environment or not is_leaked):
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif in_slurm:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    else:
        return {"rank": 0, "size": 1, "local_rank": 0, "local_size": 1}
    try:
        *numbers, tasks = (environment[name] for name in names)
        node = int(environment.get("SLURM_NODEID", 0)) if names[0] == "SLURM_PROCID" else 0
        values = [*map(int, numbers), _tasks_per_node(tasks)[node]]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"the launcher's environment lacks {error}; "
            "start with torchrun, srun or launch/local.py"
        ) from error
    return dict(zip(("rank", "size", "local_rank", "local_size"), values))


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's "4(x2),3" as [4, 4, 3]; a plain number is that of the one node."""
    found = []
    for part in text.split(","):
        tasks, _, nodes = part.rstrip(")").partition("(x")
        found += [int(tasks)] * int(nodes or 1)
    return found


def rank_share(total: int, rank: int, size: int) -> range:
    """The part of ``total`` things in a row that ``rank`` takes: parts differ by at most one."""
    return range(total * rank // size, total * (rank + 1) // size)


@contextmanager
def joined(join: bool = True) -> Iterator[World]:
    """:func:`start`, and :func:`stop` however early the block is left.

    Not after an error: a rank that is gone or still computes would be waited for.
    """
    try:
        yield start(join)
    except BaseException:
        heartbeat.give_up()
        raise
    gc.collect()  # engines and their process groups' threads go now, not with the interpreter
    stop()


def start(join: bool = True) -> World:
    """Pick this rank's device and join the process group (NCCL for GPUs, gloo beside it).

    ``join`` false: ranks need nothing of each other.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _leave_with_launcher()
    place = read_environment()
    world = World(device=_pick_device(place["local_rank"], place["local_size"]), **place)
    if world.device.type == "cpu":
        _keep_freed_memory()
    if join and world.size > 1:
        if not dist.is_initialized():
            _join(world)
            bearable = SILENCE * 60 * _timeout_minutes()
            heartbeat.begin(_get_default_store(), world.rank, world.size, bearable)
        world = replace(world, cores=_own_cores(world))
    # torch would take one thread a rank under torchrun, elsewhere one a core on every rank
    torch.set_num_threads(_threads_of_environment() or world.cpu_threads)
    return world


def _own_cores(world: World) -> int:
    """This rank's cores, at least 1: one that k ranks of the node may use counts as a k-th.

    Launchers bind each rank to cores of its own (srun, taskset, numactl), bind those of a socket
    alike, or none. What each has done is seen by the sets that ranks may use alone: a set that is
    smaller than the node's may as well be a container's, which all of them share. So they tell each
    other. Collective.
    """
    told: list = [None] * world.size
    dist.all_gather_object(told, (socket.gethostname(), os.sched_getaffinity(0)))
    host, own = told[world.rank]
    of_node = [cores for name, cores in told if name == host]
    if len(of_node) != world.local_size:  # containers with names of their own
        return max(1, len(own) // world.local_size)
    users = Counter(itertools.chain.from_iterable(of_node))
    return max(1, int(sum(Fraction(1, users[core]) for core in own)))


def _threads_of_environment() -> int:
    """OMP_NUM_THREADS, where somebody has set it; else 0.

    torchrun sets it to 1 for several ranks if nobody has, whatever the machine has, so that a 1
    says nothing there.
    """
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the rest is of nested threads
    threads = int(text) if text.isdecimal() else 0
    return 0 if threads == 1 and "TORCHELASTIC_RUN_ID" in os.environ else threads


def _leave_with_launcher() -> None:
    """Have the kernel send SIGTERM when torchrun is gone: its ranks would train on unseen."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:  # Linux
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _pick_device(local_rank: int, local_size: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    own_gpu_only = visible == 1 and "SLURM_PROCID" in os.environ  # as srun may show each task
    if local_size > visible and not own_gpu_only:
        raise UserError(
            f"{local_size} ranks on a node with {visible} GPU(s); start one rank per GPU"
        )
    device = torch.device("cuda", local_rank % visible)
    torch.cuda.set_device(device)
    return device


def _join(world: World) -> None:
    on_gpu = world.device.type == "cuda"
    # accelerate and DeepSpeed know torchrun's names only, and would train each rank alone without
    # a word; LOCAL_RANK is to them the GPU's number, and srun may show a task no GPU but its own
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.device.index if on_gpu else world.local_rank),
        LOCAL_WORLD_SIZE=str(world.local_size),
    )
    for name, value in slurm_rendezvous().items():
        os.environ.setdefault(name, value)
    if world.size >= LAZY_FROM:
        os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    _allow_many_files()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(minutes=_timeout_minutes()),
            device_id=world.device if on_gpu else None,
        )
    except (RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise _kind_of_failure_to_join(error)(
            f"rank {world.rank} cannot join the others at {address}: {error}; "
            "is the port in use or a rank missing?"
        ) from error


def _kind_of_failure_to_join(error: Exception) -> type[UserError]:
    if isinstance(error, ValueError):  # what is missing or wrong in the environment
        return UserError
    return LostPeer if "timed out" in str(error).lower() else MachineFault


def slurm_rendezvous(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT of a step of Slurm: its first node, at a port that changes with
    every restart. Nothing elsewhere.
    """
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if "SLURM_PROCID" not in environment or not nodes:
        return {}
    job, step = int(environment["SLURM_JOB_ID"]), environment.get("SLURM_STEP_ID", "")
    restart = int(environment.get("SLURM_RESTART_COUNT", 0))
    number = 7 * job + (int(step) if step.isdecimal() else 0) + 1009 * restart
    return {"MASTER_ADDR": _first_host(nodes), "MASTER_PORT": str(FIRST_PORT + number % PORTS)}


def _first_host(nodes: str) -> str:
    """The first of Slurm's "n[01-04,7],m3", which is n01."""
    first = re.match(r"([^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)


def _allow_many_files() -> None:
    """As many open files as the system lets a process have: a connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _timeout_minutes() -> float:
    """How long a collective may take until the run is given up: LT_TRAIN_TIMEOUT_MINUTES, or 30."""
    text = os.environ.get("LT_TRAIN_TIMEOUT_MINUTES", "30")
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise UserError(
            f"LT_TRAIN_TIMEOUT_MINUTES must be a number of minutes above 0, not '{text}'"
        )
    return minutes


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed memory.

    Batches of tens of MB else go back to the kernel and are faulted in again each step. Measured
    on 2 cores at 224 pixels: 25 % more images/s from the loader, 9 % from ResNet-50's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # not on musl or macOS
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 2**28)


def stop() -> None:
    """Leave the process group, if there is one."""
    heartbeat.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


# how torch, gloo and NCCL say that a collective failed for another rank's sake: it is gone, has not
# come, or the network between them failed
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "collective operation timeout",
    "remote process exited",
    "communicator was aborted",
    "ncclRemoteError",
)


def is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone, or has not come in time."""
    by_torch = isinstance(error, (dist.DistNetworkError, dist.DistStoreError))
    return by_torch or any(text in str(error) for text in LOST_PEER)


def explain(error: Exception) -> UserError | None:
    """An error of torch as what it is: a mistake, or another rank's end; None if it may be
    anything. Such a one has its traceback, and Slurm jobs try again.
    """
    if is_lost_peer(error):
        return lost_peer(read_environment()["rank"], heartbeat.missing())
    if "out of memory" in str(error):
        return UserError(
            "out of GPU memory: use a smaller global_batch_size or data.eval_batch_size, "
            "or more ranks"
        )
    return None
