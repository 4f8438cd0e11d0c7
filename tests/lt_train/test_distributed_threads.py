"""How many cores are a rank's own, and in how many threads torch computes."""

import os
import socket
from collections.abc import Iterator

import pytest
import torch

from lt_train import distributed
from lt_train.distributed import World
from tests.helpers.ranks import run_on_ranks

BOUND = {  # what the two ranks of a node may use, and how many of it is whose own
    "neither is bound": ((range(8), range(8)), [4, 4]),
    "each to its own": ((range(8), range(8, 16)), [8, 8]),
    "each to its own, of two sizes": ((range(2), range(2, 8)), [2, 6]),
    "two to a core": ((range(1), range(1)), [1, 1]),
    "in part": ((range(6), range(4, 8)), [5, 3]),
}


def found_by(world: World) -> list[int]:
    """The cores of this rank, as the ranks find them: in turns bound as in BOUND, as they are after
    being bound for real, and in containers that do not know each other.
    """
    allowed, found = sorted(os.sched_getaffinity(0)), []
    with pytest.MonkeyPatch.context() as patch:
        for cores, _ in BOUND.values():
            patch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(cores[world.rank]))
            found.append(distributed.start().cpu_threads)
    os.sched_setaffinity(0, allowed[world.rank :: 2])
    found += [distributed.start().cpu_threads, torch.get_num_threads()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(10)))
        patch.setattr(socket, "gethostname", lambda: f"container{world.rank}")
        found.append(distributed.start().cpu_threads)
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_cores_that_a_rank_alone_may_use_are_all_its_own():
    total = len(os.sched_getaffinity(0))
    for rank, found in enumerate(run_on_ranks(2, found_by)):
        own = len(range(rank, total, 2))
        assert found == [*(cores[rank] for _, cores in BOUND.values()), own, own, 5], rank


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that may use twelve cores, of which nobody has said anything."""
    threads = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_leave_with_launcher", lambda: None)
    yield monkeypatch
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("slurm", "threads"),
    [
        ({}, 3),
        ({"SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS": "8"}, 6),  # each rank is a task
        ({"SLURM_CPUS_PER_TASK": "24", "SLURM_NTASKS": "8"}, 12),
        ({"SLURM_CPUS_PER_TASK": "24", "SLURM_NTASKS": "2"}, 3),  # torchrun in a task of each node
        ({"SLURM_CPUS_PER_TASK": "0"}, 1),
    ],
)
def test_ranks_that_never_meet_go_by_what_slurm_says_of_a_task(environment, slurm, threads):
    """Else they take it that the node's ranks share what this one may use."""
    environment.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for name, value in slurm.items():
        environment.setenv(name, value)
    assert World(5, 8, local_rank=1, local_size=4).cpu_threads == threads


def test_slurm_gives_no_more_than_the_ranks_have_found(environment):
    environment.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    environment.setenv("SLURM_CPUS_PER_TASK", "12")
    environment.setenv("SLURM_NTASKS", "8")
    assert World(5, 8, local_rank=1, local_size=4, cores=3).cpu_threads == 3


@pytest.mark.parametrize(
    ("said", "launcher", "threads"),
    [
        (None, None, 5),
        ("3", None, 3),
        ("3,2", None, 3),  # OpenMP's list, a number for each level of nesting
        ("1", None, 1),
        ("3", "torchrun", 3),
        ("1", "torchrun", 5),  # torchrun's own, for want of a word
        ("many", None, 5),
    ],
)
def test_torch_computes_in_as_many_threads_as_were_asked_for(environment, said, launcher, threads):
    environment.setattr(os, "sched_getaffinity", lambda _: set(range(5)))
    for name, value in {"OMP_NUM_THREADS": said, "TORCHELASTIC_RUN_ID": launcher}.items():
        if value is not None:
            environment.setenv(name, value)
    world = distributed.start(join=False)
    assert torch.get_num_threads() == threads
    assert world.cpu_threads == 5, "of decoding"
