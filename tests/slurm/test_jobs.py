"""Jobs on a real cluster: how they start, what disturbs them, and that a disturbed run ends with
the same weights.
"""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.bench import LIMIT, RANK, ROOT, processes_of
from tests.slurm.cluster import wait_for

GPUS = """\
gpus_per_node: 2
cpus_per_gpu: 1
mem_per_gpu: 100M
time: '10'
environment: {GLOO_SOCKET_IFNAME: lo}
"""


def test_the_check_tells_every_nodes_ranks_and_network(bench):
    said = bench.launch(
        "--check", "--site", "site.yaml", "--nodes", "2", "--cpu-ranks-per-node", "2"
    )
    lines = [line for line in said.splitlines() if re.match(r"n\d: ranks", line)]
    beginnings = [",".join(line.split(",")[:2]) for line in lines]
    assert beginnings == ["n1: ranks 0, 1", "n2: ranks 2, 3"]
    for line in lines:
        assert "DALI decodes" in line
        assert float(re.search(r"all_reduce ([\d.]+) GB/s", line)[1]) > 0
    assert "all nodes are fit" in said


def test_a_check_that_cannot_start_says_so_and_leaves_no_job(bench):
    said = bench.launch("--check", "--site", "site.yaml", "--nodes", "6", status=2)
    assert re.search(r"error: job \d+ cannot start, and is cancelled: PartitionNodeLimit: .*", said)
    assert not bench.cluster.run("squeue", "-h").strip()


def test_status_says_why_a_job_cannot_start(bench):
    said = bench.launch(*bench.settings(), "--site", "site.yaml", "--nodes", "6")
    assert "may never start: partition normal has 4 node(s), not 6" in said
    wait_for(
        lambda: "waits: PartitionNodeLimit" in bench.launch("status", "run"), "the reason", LIMIT, 1
    )


PLACE = """
import os, torch
from lt_train import collectives, distributed
with distributed.joined() as world:
    total = collectives.all_reduce_(torch.ones(1))
    place = world.rank, world.local_rank, world.local_size
    print(os.environ["SLURMD_NODENAME"], *place, int(total), flush=True)
    world.barrier()
os._exit(0)  # torch now and then aborts while it unloads
"""


def test_srun_alone_is_enough_on_nodes_with_different_numbers_of_ranks(bench):
    """Whatever RANK the shell that it is called from has."""
    script = bench.folder / "place.py"
    script.write_text(PLACE)
    leaked = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    bench.cluster.environment |= {**leaked, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    try:
        said = bench.cluster.run("srun", "-N2", "-n3", sys.executable, str(script))
    finally:
        for name in (*leaked, "PYTHONPATH", "GLOO_SOCKET_IFNAME"):
            del bench.cluster.environment[name]
    assert sorted(said.splitlines()) == ["n1 0 0 2 3", "n1 1 1 2 3", "n2 2 0 1 3"]


def test_gpus_are_asked_for_and_given(bench):
    """The GPUs are pretended: ranks compute on the CPU, but Slurm allocates and counts."""
    (bench.folder / "gpus.yaml").write_text(GPUS)
    said = bench.launch("--check", "--site", "gpus.yaml", "--nodes", "2")
    assert "n1: ranks 0, 1" in said and "n2: ranks 2, 3" in said
    job = re.search(r"job (\d+)", said)[1]
    script = next((bench.folder / "runs").rglob(f"{job}_submission.sh")).read_text()
    assert "#SBATCH --gpus-per-node=2" in script and "#SBATCH --ntasks-per-node=2" in script
    allocated = bench.cluster.run(
        "sacct", "-n", "-X", "-P", "-j", job, "-o", "AllocTRES,NNodes,NCPUS"
    )
    assert allocated.strip().endswith("|2|4")


def test_usr2_before_the_end_saves_requeues_and_goes_on(bench, undisturbed):
    job = bench.submit(*bench.settings())
    bench.wait_for_step(8)
    bench.cluster.run("scancel", "--signal=USR2", job)
    bench.wait(job)
    assert bench.records(job) == ["REQUEUED", "COMPLETED"]
    bench.assert_ends_as(undisturbed)
    assert "asked to leave: restart 1 of at most 5" in bench.log()
    assert "resumed from step" in bench.log()


def test_requeue_without_a_signal_and_stale_results(bench, undisturbed):
    job = bench.submit(*bench.settings())
    bench.wait_for_step(8)
    stale = bench.folder / "run" / "slurm" / "1" / "classifier_demo" / f"{job}_1_result.pkl"
    stale.write_bytes(b"of an attempt that was cut off")
    bench.cluster.run("scontrol", "requeue", job)
    wait_for(lambda: not stale.exists(), "the stale result to be removed", LIMIT)
    bench.wait(job)
    bench.assert_ends_as(undisturbed)


def test_a_killed_rank_ends_the_others_and_the_job_starts_again(bench, undisturbed):
    job = bench.submit(*bench.settings())
    bench.wait_for_step(8)
    killed = time.monotonic()
    bench.kill_rank_on("n2")
    wait_for(lambda: not bench.pids(RANK), "the other rank to be gone", 40.0)
    assert time.monotonic() - killed < 40
    bench.wait(job)
    bench.assert_ends_as(undisturbed)
    assert "rank 1 on n2 was killed: restart 1 of at most 5" in bench.log()


def test_a_node_that_fails_twice_is_left_and_no_other(bench):
    """Of three, one of which is killed; the third one's rank is ended without a word."""
    job = bench.submit(*bench.settings(), nodes=3)
    for attempt in range(2):
        bench.wait_for_ranks(attempt, 3)
        time.sleep(1)
        bench.kill_rank_on("n2")
    bench.wait(job)
    assert bench.log().count("rank 1 on n2 was killed") == 2
    assert re.findall("excluded: (.*)", bench.log()) == ["n2"]
    assert bench.nodes_of(job) == "n[1,3-4]"


def test_no_node_is_left_that_the_job_cannot_do_without(bench):
    """All four are needed: the job goes on with the bad one, and ends when that does not help."""
    job = bench.submit(*bench.settings(epochs=400), "--max-requeues", "2", nodes=4)
    for attempt in range(3):
        bench.wait_for_ranks(attempt, 4)
        time.sleep(1)
        bench.kill_rank_on("n3")
    bench.wait(job, "FAILED")
    log = bench.log()
    assert "rank 2 on n3 was killed: restart 2 of at most 2" in log
    assert "node n3 failed 2 times, but the job cannot do without it" in log
    assert "excluded" not in log


def test_a_restart_of_the_controller_loses_no_job(bench, undisturbed):
    job = bench.submit(*bench.settings())
    bench.wait_for_step(8)
    bench.cluster.stop_controller()
    bench.kill_rank_on("n2")
    wait_for(lambda: "slurmctld does not answer" in bench.log(), "the job to ask", LIMIT)
    bench.cluster.start_controller()
    bench.wait(job)
    assert "rank 1 on n2 was killed: restart 1 of at most 5" in bench.log()
    bench.assert_ends_as(undisturbed)


def test_after_as_many_restarts_as_allowed_a_job_fails(bench):
    job = bench.submit(*bench.settings(epochs=400), "--max-requeues", "0")
    bench.wait_for_step(6)
    bench.kill_rank_on("n1")
    bench.wait(job, "FAILED")
    assert "giving up" in bench.log()
    assert "FAILED" in bench.launch("status", "run")


def test_the_time_limit_is_a_restart_not_an_end(bench):
    """Slurm's shortest limit is a minute, its signal comes up to a minute early, perhaps before the
    first step: two attempts, then the cap.
    """
    job = bench.submit(*bench.settings(epochs=4000), "--time", "1", "--max-requeues", "1")
    bench.wait(job, "FAILED")
    assert bench.records(job) == ["REQUEUED", "FAILED"]
    log = bench.log()
    assert "asked to leave: restart 1 of at most 1" in log
    assert "asked to leave, after 1 restarts: giving up" in log


def test_a_node_that_goes_down_is_replaced(bench, undisturbed):
    job = bench.submit(*bench.settings())
    bench.wait_for_step(8)
    bench.cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    bench.wait(job)
    bench.assert_ends_as(undisturbed)


def test_a_mistake_is_told_once_and_not_tried_again(bench):
    job = bench.submit(*bench.settings(), "data.root=nowhere")
    bench.wait(job, "FAILED")
    assert bench.records(job) == ["FAILED"]
    assert "not a prepared data set" in bench.log() and "a restart would not mend" in bench.log()


def test_a_job_runs_the_code_and_config_of_its_submission(bench):
    """The checkout is changed while the job waits for another."""
    code = bench.folder / "checkout"
    for name in ("launch", "lt_train", "data_prep", "configs"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    first = bench.cluster.run(
        "sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 5"
    ).strip()
    job = bench.submit(*bench.settings(epochs=1), "--after", first, nodes=1, code=code)
    (code / "lt_train" / "__main__.py").write_text("raise SystemExit('the changed checkout')\n")
    (code / "configs" / "classifier_demo.yaml").write_text("broken: [\n")
    bench.wait(job)
    assert (bench.folder / "run" / "result.json").exists()
    assert "the changed checkout" not in bench.log()
    submission = bench.folder / "run" / "slurm" / "1"
    assert (submission / "code" / "commit.txt").exists()
    written = json.loads((submission / "submission.json").read_text())
    assert written["stages"][0]["job"] == job


def test_status_cancel_and_refusal_of_a_second_submission(bench):
    job = bench.submit(*bench.settings(epochs=400))
    bench.wait_for_step(3)
    said = bench.launch("status", "run")
    assert job in said and "RUNNING" in said and re.search(r"\d+/5,\d\d\d", said)
    again = bench.launch(*bench.settings(epochs=400), "--site", "site.yaml", status=2)
    assert f"jobs {job} of" in again and "cancel" in again
    assert f"cancelled: {job}" in bench.launch("cancel", "run")
    wait_for(
        lambda: bench.records(job)[-1].startswith("CANCELLED"), "the job to be cancelled", LIMIT
    )
    assert "no job of run is in the queue" in bench.launch("cancel", "run")


def test_nothing_of_a_job_is_left_on_the_host(bench):
    job = bench.submit(*bench.settings(epochs=1), nodes=1)
    bench.wait(job)
    wait_for(
        lambda: not [line for line in processes_of(str(bench.folder)) if "submitit" in line],
        "all ranks to be gone",
        30.0,
    )
    assert not re.search(r"127\.0\.0\.1[1-4] n", Path("/etc/hosts").read_text())


@pytest.mark.parametrize(
    "arguments",
    [
        ["classifier_dmo"],
        ["classifier_demo", "--nodes", "0"],
        ["classifier_demo", "--partition", "nowhere"],
    ],
)
def test_bad_input_is_told_in_one_line(bench, arguments):
    said = bench.launch(
        *arguments, "--site", "site.yaml", f"data.root={bench.data}", "run.dir=run", status=2
    )
    assert "Traceback" not in said and sum("error: " in line for line in said.splitlines()) == 1
