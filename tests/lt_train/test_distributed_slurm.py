"""lt_train/distributed.py under Slurm: who a rank is, and where ranks meet."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from lt_train import distributed
from lt_train.distributed import World, read_environment, slurm_rendezvous
from lt_train.errors import UserError

STEP = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_JOB_ID": "71",
}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("tasks", "node", "local_size"),
    [
        ("4,2", 0, 4),
        ("4,2", 1, 2),
        ("3(x2),1", 1, 3),
        ("3(x2),1", 2, 1),
        ("8(x128)", 127, 8),
        ("2", 0, 2),
        ("1,2(x2),5(x3),4", 5, 5),
    ],
)
def test_ranks_of_a_node_are_its_own_whatever_other_nodes_have(tasks, node, local_size):
    step = {**STEP, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}
    assert read_environment(step) == dict(rank=5, size=7, local_rank=1, local_size=local_size)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        (TORCHRUN, 3),
        (STEP, 5),
        ({**STEP, **TORCHRUN}, 5),  # RANK of the login shell
        ({**STEP, **TORCHRUN, "TORCHELASTIC_RUN_ID": "x"}, 3),  # torchrun in a task of srun
        (
            {key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"},
            0,
        ),  # a batch script
        ({}, 0),
    ],
)
def test_whose_word_counts(environment, rank):
    assert read_environment(environment)["rank"] == rank


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_TASKS_PER_NODE": "4(x"},
        {"SLURM_STEP_TASKS_PER_NODE": "4"},
        {"SLURM_NODEID": "one"},
        {"SLURM_LOCALID": ""},
    ],
)
def test_an_environment_that_makes_no_sense_is_one_line(change):
    with pytest.raises(UserError, match="launcher's environment"):
        read_environment({**STEP, **change})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("n[01-04,7],m3", "n01"),
        ("login,n[1-2]", "login"),
        ("gpu-a[7,9]-ib", "gpu-a7-ib"),
        ("r[1-2]n[3-4],x", "r1n3"),
    ],
)
def test_ranks_meet_on_the_first_node(nodes, first):
    assert slurm_rendezvous({**STEP, "SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first
    assert slurm_rendezvous({**STEP, "SLURM_JOB_NODELIST": nodes})["MASTER_ADDR"] == first


def test_ranks_meet_at_a_port_that_nobody_is_given_and_at_another_after_a_restart():
    step = {**STEP, "SLURM_STEP_NODELIST": "n1"}
    ports = []
    for job in (1, 71, 72, 12_345_678):
        for restart in range(3):
            place = {**step, "SLURM_JOB_ID": str(job), "SLURM_RESTART_COUNT": str(restart)}
            ports.append(int(slurm_rendezvous(place)["MASTER_PORT"]))
    assert len(set(ports)) == len(ports)
    assert min(ports) > 1024 and max(ports) < 32_768  # where Linux's own begin


def test_without_slurm_nothing_is_said_of_a_place_to_meet():
    assert slurm_rendezvous({}) == {} and slurm_rendezvous(TORCHRUN) == {}


# --- what a rank exports before it joins


@pytest.fixture
def joined(monkeypatch):
    """Function: what the environment says when a rank of this world joins."""
    found = {}
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda *_, **__: found.update(os.environ)
    )
    for name in (*TORCHRUN, "TORCH_GLOO_LAZY_INIT"):
        monkeypatch.setenv(name, "")  # so that they are as before afterwards
    monkeypatch.delenv("TORCH_GLOO_LAZY_INIT")

    def join(world: World) -> dict[str, str]:
        distributed._join(world)
        return found

    return join


@pytest.mark.parametrize(("device", "local_rank"), [("cpu", "3"), ("cuda:3", "3"), ("cuda:0", "0")])
def test_local_rank_is_to_other_libraries_the_number_of_the_gpu(joined, device, local_rank):
    """accelerate and DeepSpeed take it for that, and srun may show each task one GPU alone."""
    found = joined(World(7, 8, 3, 4, torch.device(device)))
    told = [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
    assert told == ["7", "8", local_rank, "4"]


def test_many_ranks_do_not_all_connect_with_each_other(joined):
    assert "TORCH_GLOO_LAZY_INIT" not in joined(World(0, 8))
    assert joined(World(0, 1024))["TORCH_GLOO_LAZY_INIT"] == "1"


def test_a_rank_may_have_as_many_connections_as_the_system_allows(joined):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        joined(World(0, 2))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


MEET = """
import torch
from lt_train import collectives, distributed
world = distributed.start()
total = collectives.all_reduce_(torch.ones(1))
print(world.rank, world.local_size, total.item())
"""


def test_two_tasks_of_srun_alone_find_each_other():
    """As `srun -n2 python -m lt_train` starts them, without MASTER_ADDR."""
    clean = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    tasks = []
    for rank in range(2):
        step = {
            **STEP,
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_JOB_ID": str(os.getpid()),  # which sets the port
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", MEET]
        tasks.append(
            subprocess.Popen(command, env={**clean, **step}, stdout=subprocess.PIPE, text=True)
        )
    assert [task.communicate(timeout=120)[0].split() for task in tasks] == [
        ["0", "2", "2.0"],
        ["1", "2", "2.0"],
    ]
