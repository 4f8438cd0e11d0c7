"""What Slurm's commands answer."""

import pytest

from launch import cluster
from launch.cluster import Waiting, is_live, job_states, partition_limits, waiting
from lt_train.errors import UserError
from tests.helpers.stubs import stub


@pytest.mark.parametrize(
    ("sacct", "squeue", "expected"),
    [
        ("7|COMPLETED\n", "", ("COMPLETED", 0)),
        ("7|REQUEUED\n7|PREEMPTED\n7|COMPLETED\n", "", ("COMPLETED", 2)),
        ("7|NODE_FAIL\n", "7|PENDING|7\n", ("PENDING", 0)),
        ("7|REQUEUED\n7|PENDING\n", "7|RUNNING|7\n", ("RUNNING", 1)),
        ("7|CANCELLED by 0\n", "8|RUNNING|8\n", ("CANCELLED", 0)),
        ("", "7|RUNNING|7\n", ("RUNNING", 0)),
        (None, "7|RUNNING|7\n77|PENDING|77\n", ("RUNNING", 0)),
        (None, "7|COMPLETED|7\n", ("COMPLETED", 0)),
        ("7|FAILED\n", "7|COMPLETING|7\n", ("FAILED", 0)),
        ("7|REQUEUED\n", "7|COMPLETING|7\n", ("COMPLETING", 0)),
        (None, "", ("UNKNOWN", 0)),
        ("", "", ("UNKNOWN", 0)),
        ("77|COMPLETED\n", "", ("UNKNOWN", 0)),
        ("7_0|COMPLETED\n7_1|COMPLETED\n", "", ("COMPLETED", 0)),
        ("7_0|COMPLETED\n7_1|FAILED\n", "", ("FAILED", 0)),
        (
            "7_0|COMPLETED\n7_1|FAILED\n7_2|RUNNING\n7_[3-4%5]|PENDING\n",
            "7_2|RUNNING|7\n7_3|PENDING|7\n",
            ("RUNNING", 0),
        ),
        (
            "7_0|COMPLETED\n7_1|REQUEUED\n7_1|REQUEUED\n7_1|PENDING\n",
            "7_1|PENDING|7\n",
            ("PENDING", 2),
        ),
        ("7_[0-4%5]|PENDING\n", "7_0|PENDING|7\n7_1|PENDING|7\n", ("PENDING", 0)),
    ],
)
def test_the_state_of_a_job(monkeypatch, sacct, squeue, expected):
    def answer(command, *arguments):
        if command == "sacct" and sacct is None:
            raise UserError("sacct: Slurm accounting storage is disabled")
        return {"sacct": sacct, "squeue": squeue}[command]

    monkeypatch.setattr(cluster, "slurm", answer)
    assert job_states(["7"]) == {"7": expected} and job_states([]) == {}
    assert is_live(expected[0]) == (expected[0] in ("RUNNING", "PENDING", "COMPLETING"))


def test_why_jobs_wait_and_when_they_may_start(monkeypatch):
    lines = (
        "7|N/A|PartitionNodeLimit\n8|2026-11-28T10:12:22|Resources\n9|N/A|None\n"
        "10|N/A|Dependency\n11|N/A|ReqNodeNotAvail, UnavailableNodes:n4\n12|N/A|Priority\n"
    )
    monkeypatch.setattr(cluster, "slurm", lambda *_: lines)
    found = waiting(["7", "8", "9", "10", "11"])
    assert waiting([]) == {} and list(found) == ["7", "8", "10", "11"]
    assert [job for job, why in found.items() if why.for_ever] == ["7"]
    assert "fewer --nodes" in str(found["7"])
    assert str(found["8"]) == "Resources, expected to start 2026-11-28T10:12:22"
    assert found["10"] == Waiting("Dependency", "") and str(found["10"]) == "Dependency"


PARTITIONS = """\
PartitionName=normal AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP \
TotalNodes=4 TRES=cpu=32,node=4
PartitionName=short Default=NO MaxNodes=2 MaxTime=1-12:00:00 State=UP TotalNodes=4
PartitionName=closed Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=DOWN TotalNodes=4
"""


@pytest.mark.parametrize(
    ("names", "nodes", "minutes", "words"),
    [
        (None, 4, 10**6, ()),
        (None, 6, 1, ("partition normal has 4 node(s), not 6",)),
        ("short", 2, 36 * 60, ()),
        ("short", 3, 1, ("partition short gives a job at most 2 node(s), not 3",)),
        ("short", 1, 36 * 60 + 1, ("short gives a job at most 1-12:00:00, not 2161 minutes",)),
        ("closed", 1, 1, ("partition closed is DOWN",)),
        ("short,normal", 3, 1, ()),  # the second one takes it
        ("short,closed", 3, 1, ("at most 2 node(s)", "is DOWN")),
        ("unknown", 3, 1, ()),  # sbatch says so
    ],
)
def test_limits_of_a_partition_are_told_before_a_job_waits(
    monkeypatch, names, nodes, minutes, words
):
    monkeypatch.setattr(cluster, "slurm", lambda *_: PARTITIONS)
    found = partition_limits(names, nodes, minutes)
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found))


def test_states_cannot_be_had_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no Slurm .*launch/local\.py"):
        job_states(["7"])


def test_a_command_that_fails_gives_its_own_words(scripts, tmp_path):
    stub(
        tmp_path / "bin",
        "squeue",
        "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
    )
    with pytest.raises(
        UserError, match="squeue: slurm_load_jobs error: Unable to contact slurm controller"
    ):
        cluster.slurm("squeue")
