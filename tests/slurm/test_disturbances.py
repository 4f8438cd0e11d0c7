"""What can happen to a job, one thing after another to the same one: it ends with the weights of an
undisturbed run all the same.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.slurm.bench import LIMIT, RANK, SITE, Bench, is_stopped
from tests.slurm.cluster import wait_for


def preempt(bench: Bench, nodes: int) -> None:
    """Let a job of higher rank take so many nodes, and give them back."""
    options = ("-p", "urgent", "-N", str(nodes), "--exclusive", "-o", "/dev/null")
    urgent = bench.cluster.run("sbatch", "--parsable", *options, "--wrap", "true").strip()
    wait_for(lambda: "COMPLETED" in bench.records(urgent), "the urgent job", LIMIT, 0.5)


def test_requeued_suspended_drained_cancelled_by_step_and_preempted_twice(bench, undisturbed):
    job = bench.submit(*bench.settings())
    bench.wait_for_ranks(0)
    bench.cluster.run("scontrol", "requeue", job)  # before the first step

    bench.wait_for_ranks(1)
    bench.wait_for_step(8)
    bench.cluster.run("scontrol", "suspend", job)
    wait_for(lambda: all(map(is_stopped, bench.pids(RANK))), "all ranks to be stopped")
    step = bench.step()
    assert "SUSPENDED" in bench.launch("status", "run") and bench.step() == step
    bench.cluster.run("scontrol", "update", "nodename=n2", "state=drain", "reason=test")
    bench.cluster.run("scontrol", "resume", job)
    bench.wait_for_step(step + 2)
    bench.cluster.run("scancel", f"{job}.1")  # the ranks' step in the second attempt

    bench.wait_for_ranks(2)
    step = bench.step()
    bench.wait_for_step(step + 2)
    preempt(bench, 3)
    bench.wait_for_ranks(3)
    preempt(bench, 3)
    bench.wait(job)
    assert len(bench.records(job)) == 5
    assert bench.nodes_of(job) in ("n[1,3]", "n[3-4]", "n[1,4]"), "none is the drained one"
    bench.assert_ends_as(undisturbed)


def test_an_attempt_on_a_node_that_slurm_has_lost_writes_nothing_more(bench, undisturbed):
    """The whole node freezes, and thaws when the job has started elsewhere."""
    job = bench.submit(*bench.settings(), "--cpu-ranks-per-node", "2", nodes=1)
    bench.wait_for_step(8)
    lost = bench.pids(RANK)
    for pid in lost:
        os.kill(pid, signal.SIGSTOP)
    bench.cluster.kill_node("n1")
    lock = bench.folder / "run" / "run.lock"
    wait_for(lambda: '"restart": 1' in lock.read_text(), "another attempt to take over", LIMIT)
    for pid in lost:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not set(lost) & set(bench.pids(RANK)), "the lost attempt to end", LIMIT)
    bench.cluster.start_node("n1")
    bench.wait(job)
    assert bench.records(job) == ["NODE_FAIL", "COMPLETED"], bench.log()
    assert bench.log().count("was taken over by") == 1
    bench.assert_ends_as(undisturbed)


@pytest.fixture
def on_disk(bench) -> Iterator[Bench]:
    """A bench on the cluster's small file system."""
    folder = bench.cluster.disk / "bench"
    folder.mkdir()
    yield Bench(bench.cluster, folder, bench.data)
    bench.cluster.clear()
    shutil.rmtree(folder)


def fill(filler: Path) -> None:
    """Take all that is left of a file system but the room for some lines."""
    with open(filler, "wb", buffering=0) as file:
        with suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        file.truncate(file.tell() - (1 << 16))


def stop_in_a_checkpoint(bench: Bench) -> None:
    """SIGSTOP to the rank that writes one, rank 0, just then."""
    checkpoints, pid = bench.folder / "run" / "checkpoints", bench.pid_of_rank_on("n1")

    def stopped() -> bool:
        if not list(checkpoints.glob(".*.partial")):
            return False
        os.kill(pid, signal.SIGSTOP)
        if list(checkpoints.glob(".*.partial")):
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    wait_for(stopped, "a checkpoint", LIMIT, 0.001)


def test_stopped_while_it_saves_and_then_on_a_disk_that_is_full(on_disk, undisturbed):
    site = SITE.replace("{GLOO", '{LT_TRAIN_TIMEOUT_MINUTES: "0.25", GLOO')
    (on_disk.folder / "site.yaml").write_text(site)
    job = on_disk.submit(*on_disk.settings())
    on_disk.wait_for_step(8)
    stop_in_a_checkpoint(on_disk)
    on_disk.wait_for_ranks(1)
    on_disk.wait_for_step(on_disk.step() + 2)
    filler = on_disk.folder / "filler"
    fill(filler)
    told = "run cannot be written: No space left on device: waiting until it can be"
    wait_for(lambda: told in on_disk.log(), "the job to wait", LIMIT)
    filler.unlink()
    on_disk.wait(job)
    assert f"rank 0 on n1 ended with status 74, and {told}" in on_disk.log()
    assert on_disk.records(job) == ["REQUEUED", "REQUEUED", "COMPLETED"]
    on_disk.assert_ends_as(undisturbed)
