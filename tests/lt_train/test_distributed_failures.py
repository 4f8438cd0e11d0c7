"""What kind of failure it is when ranks cannot meet or lose each other: injected, one by one."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from lt_train.distributed import explain, is_lost_peer
from lt_train.errors import EXIT_LOST_PEER, EXIT_MACHINE, EXIT_MISTAKE, EXIT_PREEMPTED

RANK = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from lt_train import collectives, distributed
from lt_train.errors import run_cli
from lt_train.training.checkpoint import CheckpointStore

def full_disk(folder):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

def main():
    from lt_train.__main__ import main
    import lt_train.commands.train as train
    train.main = lambda *_: run()
    return main(["x"])

def run() -> int:
    world = distributed.start()
    collectives.all_reduce_(torch.ones(1))
    store = CheckpointStore(Path(sys.argv[1]), 1, world)
    WORK
    return 0

run_cli("lt_train", main)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ends(folder, rest: str, ranks: int = 2, **changes: str) -> tuple[list[int], str]:
    """Exit statuses of two ranks, or of the first of them alone, and what they print."""
    processes = []
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": str(free_port()), "LT_TRAIN_TIMEOUT_MINUTES": "0.1"} | changes
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RANK.replace("WORK", rest), str(folder)]
        environment = {**os.environ, **place, **own}
        processes.append(
            subprocess.Popen(
                command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], "\n".join(said)


KILLED = "world.rank and os.kill(os.getpid(), 9)"
LATE = "time.sleep(15 * world.rank)"
MACHINE = {
    # what happens: what the ranks do, how many of two start, the first one's status, its words
    "a rank never comes": ("pass", 1, EXIT_LOST_PEER, "cannot join the others"),
    "a rank is killed": (f"{KILLED}; world.barrier()", 2, EXIT_LOST_PEER, "lost contact"),
    "a rank is killed at work": (
        f"collectives.on_every_rank(lambda: {KILLED})",
        2,
        EXIT_LOST_PEER,
        "lost contact",
    ),
    "a collective is late": (f"{LATE}; world.barrier()", 2, EXIT_LOST_PEER, "lost contact"),
    "a checkpoint is late": (
        f"store.save(1, {{}}, lambda _: {LATE})",
        2,
        EXIT_LOST_PEER,
        "lost contact",
    ),
    "a disk is full": ("store.save(1, {}, full_disk)", 2, EXIT_MACHINE, "is the disk full?"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", MACHINE)
def test_what_the_machine_did_is_not_the_user_s_mistake(tmp_path, what):
    rest, ranks, status, words = MACHINE[what]
    statuses, said = ends(tmp_path, rest, ranks)
    assert statuses[0] == status, said
    assert words in said and "Traceback" not in said
    assert "disk" not in said or what == "a disk is full"


ASKED = """
    import signal
    from lt_train.training.leaving import Leaving, Preempted
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.5 * world.rank)
    started = time.monotonic()
    try:
        with Leaving(world):
            collectives.from_main(lambda: time.sleep(5))
    except Preempted as reason:
        return reason.status if time.monotonic() - started < 4 else 1  # as the command does
"""


@pytest.mark.slow
def test_a_rank_that_waits_for_another_s_work_leaves_when_it_is_asked(tmp_path):
    statuses, said = ends(tmp_path, ASKED.strip())
    assert statuses == [EXIT_LOST_PEER, EXIT_PREEMPTED], said


TALKING = """
import sys, threading, time
from lt_train.errors import UserError, run_cli
from torch.distributed import TCPStore

def main() -> int:
    store = TCPStore("127.0.0.1", 0, is_master=True)

    def talk():
        while True:
            store.set("a", "b")

    threading.Thread(target=talk, daemon=True).start()
    time.sleep(0.2)
    raise RuntimeError if sys.argv[1] == "1" else UserError

run_cli("lt_train", main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("status", [1, EXIT_MISTAKE])
def test_a_thread_within_torch_does_not_change_how_a_process_ends(status):
    """As that of the signs of life, where the store does not answer."""
    command = [sys.executable, "-c", TALKING, str(status)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == status, ended.stderr
    assert ("RuntimeError" if status == 1 else "lt_train: error") in ended.stderr


@pytest.mark.slow
def test_a_port_in_use_is_tried_again(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        statuses, said = ends(tmp_path, "pass", 1, MASTER_PORT=port)
    assert statuses == [EXIT_MACHINE] and "is the port in use" in said


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"MASTER_PORT": "x"}, {"LT_TRAIN_TIMEOUT_MINUTES": "0"}])
def test_what_is_wrong_in_the_environment_is_the_user_s(tmp_path, change):
    statuses, said = ends(tmp_path, "pass", 1, **change)
    assert statuses == [EXIT_MISTAKE] and "Traceback" not in said


@pytest.mark.parametrize(
    ("said", "status"),
    [
        # as gloo, torch's store and NCCL word it
        ("[gloo/pair.cc:561] Connection closed by peer [127.0.0.1]:50562. This is", 76),
        ("[gloo/pair.cc:545] Read error [127.0.0.1]:3: Connection reset by peer", 76),
        ("[gloo/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation", 76),
        ("NCCL communicator was aborted on rank 3.", 76),
        ("NCCL error: remote process exited or there was a network error, ncclRemoteError", 76),
        ("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran for 9", 76),
        ("CUDA out of memory. Tried to allocate 2 GiB", EXIT_MISTAKE),
        ("CUDA error: uncorrectable ECC error encountered", None),
        ("shape '[2, 3]' is invalid for input of size 4", None),
    ],
)
def test_what_torch_says_has_one_kind(said, status):
    kind = explain(RuntimeError(said))
    assert (kind and kind.status) == status


def test_errors_of_torch_s_store_are_of_others():
    assert is_lost_peer(torch.distributed.DistStoreError("wait timeout after 5 ms"))
    assert is_lost_peer(torch.distributed.DistNetworkError("failed to recv, got 0 bytes"))
