"""Submission, to an sbatch that answers as Slurm's and keeps the scripts."""

import fcntl
import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from launch import job, submission
from launch.pipeline import load_experiment
from launch.sites import Site
from launch.status import cancel
from launch.submission import read_submission, submit, submit_call
from lt_train.errors import UserError
from tests.helpers.stubs import stub
from tests.launch.helpers import one_line


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", '{"stages": 3}', '{"stages": [{"name": "x"}]}', '{"stages": [3]}']
)
def test_a_damaged_submission_is_named(tmp_path, text):
    (tmp_path / "slurm" / "1").mkdir(parents=True)
    (tmp_path / "slurm" / "1" / "submission.json").write_text(text)
    with pytest.raises(UserError, match=r"1/submission\.json is damaged") as caught:
        read_submission(tmp_path)
    one_line(caught)


def test_the_newest_submission_is_read(tmp_path):
    assert read_submission(tmp_path) == []
    for name in ("9", "10", "mine"):
        (tmp_path / "slurm" / name).mkdir(parents=True)
        stage = {
            "name": name,
            "kind": "train",
            "run_dir": "x",
            "job": "1",
            "nodes": 1,
            "ranks": 1,
            "logs": "",
        }
        (tmp_path / "slurm" / name / "submission.json").write_text(json.dumps({"stages": [stage]}))
    assert [stage.name for stage in read_submission(tmp_path)] == ["10"]


def test_stages_are_chained_and_two_seeds_prepare_their_data_once(scripts):
    done = []
    for seed in (0, 1):
        done += submit(load_experiment("demo", [], [f"seed={seed}"]), Site(), {}, "99", done)
    found = scripts()
    waits = [
        (found[number]["job-name"], found[number].get("dependency"))
        for number in sorted(found, key=int)
    ]
    assert waits[:8] == [
        ("data", "afterok:99"),
        ("unlabeled", "afterok:99"),
        ("scratch", "afterok:1"),
        ("rotation", "afterok:2"),
        ("pretrained", "afterok:1:4"),
        ("pseudo_label", "afterok:2:5"),
        ("semi", "afterok:6"),
        ("crt", "afterok:5"),
    ]
    # to which a column of labels is added, so that each seed has its own
    assert waits[8:] == [
        ("unlabeled", "afterok:99"),
        ("scratch", "afterok:1"),
        ("rotation", "afterok:9"),
        ("pretrained", "afterok:1:11"),
        ("pseudo_label", "afterok:9:12"),
        ("semi", "afterok:13"),
        ("crt", "afterok:12"),
    ]
    shared, *own = [stage.job for stage in read_submission(Path("runs/demo,seed=1"))]
    assert (shared, own) == ("1", [str(job) for job in range(9, 16)])


def test_finished_stages_are_skipped_and_the_next_waits_for_after(scripts):
    Path("data/demo").mkdir(parents=True)
    experiment = load_experiment("demo", [])
    command = shlex.join(["python", "-m", "data_prep", *experiment.stages[0].words])
    made_by = {"made_by": {"command": command}}
    Path("data/demo/dataset.json").write_text(json.dumps(made_by))
    submitted = submit(experiment, Site(), {}, "99", [])
    assert [stage.job for stage in submitted] == ["", *(str(job) for job in range(1, 8))]
    assert [scripts()[job].get("dependency") for job in "1234"] == [
        "afterok:99",
        "afterok:99",
        "afterok:1",
        "afterok:3",
    ]
    call = submit_call("check", job.check, [], Site(), Path("runs/check").resolve(), ["3"])
    assert scripts()[call.job]["dependency"] == "afterany:3"


@pytest.fixture
def queue(tmp_path):
    """Function that makes stand-ins of squeue and sacct tell that all jobs are in this state."""

    def answer(state: str) -> None:
        stub(tmp_path / "bin", "sacct", "exit 0")
        stub(tmp_path / "bin", "squeue", *(f"echo '{job}|{state}|{job}'" for job in range(1, 20)))

    return answer


def test_what_another_experiment_s_job_makes_is_waited_for_and_not_made_twice(
    scripts, queue, tmp_path, capsys
):
    queue("RUNNING")
    first = submit(load_experiment("cifar10_lt_rotation_ce_100", []), Site(), {}, None, [])
    assert [stage.job for stage in first] == ["1", "2", "3", "4", "5"]
    second = submit(load_experiment("cifar10_lt_rotation_resample_100", []), Site(), {}, None, [])
    assert [(stage.name, stage.job) for stage in second] == [
        ("labeled", "1"),
        ("rotation", "2"),
        ("train", "6"),
        ("evaluate", "7"),
    ]
    assert (
        scripts()["6"]["dependency"] == "afterok:2" and scripts()["7"]["dependency"] == "afterok:6"
    )
    third = submit(
        load_experiment("cifar10_lt_rotation_ce_100", [], ["seed=1"]), Site(), {}, None, []
    )
    assert [stage.job for stage in third] == ["1", "8", "9", "10", "11"] and scripts()["8"][
        "dependency"
    ] == "afterok:1"
    with pytest.raises(
        UserError,
        match="stage rotation: job 2 trains in runs/cifar10_lt_100/rotation with other keys",
    ) as caught:
        submit(
            load_experiment("cifar10_lt_rotation_focal_100", ["rotation:run.log_every=7"]),
            Site(),
            {},
            None,
            [],
        )
    one_line(caught)
    assert len(scripts()) == 11 and not list(Path("runs").glob("cifar10_lt_rotation_focal_100*"))
    stub(tmp_path / "bin", "scancel", f'echo "$@" >> {tmp_path}/cancelled')
    assert (
        cancel(Path("runs/cifar10_lt_rotation_resample_100")) == ["6", "7"]
        and (tmp_path / "cancelled").read_text() == "7 6\n"
    )
    assert "waits for" not in capsys.readouterr().err, "nobody waits for what is its own"
    cancel(Path("runs/cifar10_lt_rotation_ce_100"))
    told = [line for line in capsys.readouterr().err.splitlines() if "waits for" in line]
    runs = Path("runs").resolve()
    assert [line.partition(":")[2].partition(":")[0] for line in told] == [
        f" {runs}/cifar10_lt_rotation_ce_100,seed=1 waits for job 1",
        f" {runs}/cifar10_lt_rotation_resample_100 waits for job 1, 2",
    ]
    queue("FAILED")
    again = submit(
        load_experiment("cifar10_lt_rotation_focal_100", ["rotation:run.log_every=7"]),
        Site(),
        {},
        None,
        [],
    )
    assert [stage.job for stage in again] == ["12", "13", "14", "15"]


def test_jobs_are_told_apart_by_the_digests_of_their_configs(scripts, queue):
    """One that an earlier version submitted has none: what it trains counts as something else."""
    queue("RUNNING")
    first = submit(load_experiment("cifar10_lt_rotation_ce_100", []), Site(), {}, None, [])
    digests = {stage.name: stage.config_sha256 for stage in first}
    trained = ("rotation", "train")
    assert [name for name, digest in digests.items() if digest] == list(trained)
    folder = Path("runs/cifar10_lt_rotation_ce_100/slurm/1").resolve()
    for name in trained:
        written = (folder / name / f"{name}.yaml").read_bytes()
        assert digests[name] == hashlib.sha256(written).hexdigest()
    (folder / "rotation" / "rotation.yaml").unlink()  # the digest is what counts
    resample = load_experiment("cifar10_lt_rotation_resample_100", [])
    assert submit(resample, Site(), {}, None, [])[1].job == first[1].job
    for place in Path("runs").glob("*/slurm/1/submission.json"):
        content = json.loads(place.read_text())
        for stage in content["stages"]:
            del stage["config_sha256"]
        place.write_text(json.dumps(content))
    with pytest.raises(UserError, match="stage rotation: job 2 trains in .* with other keys"):
        submit(load_experiment("cifar10_lt_rotation_focal_100", []), Site(), {}, None, [])


def test_two_submissions_at_once_come_one_after_the_other(scripts, monkeypatch):
    """Each must see what the other has submitted, or both would make the same."""
    seen = []

    def look(folder: Path) -> str:
        with open("runs/.submission.lock") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(folder)
        return ""

    monkeypatch.setattr(submission, "take_snapshot", look)
    submit(load_experiment("moco_demo", []), Site(), {}, None, [])
    assert seen and [path.name for path in Path("runs").iterdir()] == ["moco_demo"]


def test_runs_that_cannot_be_made_are_one_line(scripts):
    Path("runs").write_text("a file")
    with pytest.raises(UserError, match="cannot write to .*runs: File exists") as caught:
        submit(load_experiment("moco_demo", []), Site(), {}, None, [])
    one_line(caught)


def test_a_damaged_submission_of_another_experiment_is_no_hindrance(scripts):
    Path("runs/other/slurm/1").mkdir(parents=True)
    Path("runs/other/slurm/1/submission.json").write_text("{")
    assert [
        stage.job for stage in submit(load_experiment("moco_demo", []), Site(), {}, None, [])
    ] == ["1"]


def test_wrong_resources_are_refused_before_any_stage_is_submitted(scripts):
    experiment = load_experiment("demo", [])
    experiment = replace(
        experiment,
        stages=(*experiment.stages[:7], replace(experiment.stages[7], resources={"nods": 2})),
    )
    with pytest.raises(
        UserError, match="demo, stage crt: unknown key 'nods', did you mean 'nodes'"
    ):
        submit(experiment, Site(), {}, None, [])
    assert scripts() == {} and not list(Path().iterdir())


def test_what_sbatch_says_against_a_job_is_one_line(scripts, tmp_path):
    stub(
        tmp_path / "bin",
        "sbatch",
        "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1",
    )
    with pytest.raises(
        UserError, match="sbatch refuses the job.*invalid partition specified: x"
    ) as caught:
        submit(load_experiment("moco_demo", []), Site(), {}, None, [])
    one_line(caught)
