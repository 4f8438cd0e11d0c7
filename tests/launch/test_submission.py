"""Jobs without a cluster: batch scripts, submission, and reading of Slurm's answers."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launch import cluster, job
from launch.cluster import is_live, job_states
from launch.pipeline import StageJob, load_experiment
from launch.sites import Site
from launch.status import cancel
from launch.submission import calls, parameters, read_submission, script, submit, submit_call
from lt_train.errors import UserError
from tests.helpers.stubs import stub

TRAIN, PREPARE = (
    StageJob("moco", "train", "runs/moco", config="moco_demo"),
    StageJob("data", "prepare", "d", words=("demo", "--out", "d")),
)


def one_line(caught) -> None:
    assert "\n" not in str(caught.value)


# --- batch scripts


def flags(text: str) -> dict[str, str]:
    lines = [
        line.removeprefix("#SBATCH --").partition("=")
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    ]
    return {name: value for name, _, value in lines}


def test_gpu_ranks():
    site = Site(
        nodes=2,
        gpus_per_node=4,
        cpus_per_gpu=6,
        mem_per_gpu="32G",
        partition="fast",
        account="us",
        qos="high",
        constraint="a100",
        time="1:30:00",
    )
    told = flags(script(TRAIN, site, Path("/shared/slurm/1"), []))
    expected = {
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "cpus-per-task": "6",
        "mem-per-gpu": "32G",
        "time": "90",
        "signal": "USR2@180",
    }
    assert (
        expected.items() <= told.items()
        and {"partition": "fast", "account": "us", "qos": "high", "constraint": "a100"}.items()
        <= told.items()
    )
    assert told["requeue"] == "" and not {
        "mem",
        "dependency",
        "array",
        "kill-on-invalid-dep",
    } & set(told)


def test_cpu_ranks_have_no_gpus_and_the_memory_of_all_ranks():
    told = flags(
        script(TRAIN, Site(cpu_ranks_per_node=3, mem_per_gpu="1500M"), Path("/shared/1"), [])
    )
    assert (
        told["ntasks-per-node"] == "3"
        and told["mem"] == "4500M"
        and not {"gpus-per-node", "mem-per-gpu"} & set(told)
    )


def test_preparing_data_takes_one_task_on_one_node():
    told = flags(script(PREPARE, Site(nodes=8, mem_per_gpu="4G"), Path("/shared/1"), []))
    assert (told["nodes"], told["ntasks-per-node"], told["mem"]) == (
        "1",
        "1",
        "4G",
    ) and "gpus-per-node" not in told
    (call,) = calls(PREPARE, Site(cpus_per_gpu=5), Path("/shared/1"))
    assert (call.module, call.words, call.count) == (
        "data_prep",
        ("demo", "--out", "d", "--workers", "5"),
        1,
    )
    for words in (("demo", "--workers", "2"), ("demo", "--workers=2")):
        assert (
            calls(StageJob("data", "prepare", "d", words=words), Site(), Path("/shared/1"))[0].words
            == words
        )


def test_an_array_keeps_attempts_of_its_tasks_apart():
    stage, folder = StageJob("scores", "score", "runs/x", config="c", tasks=3), Path("/shared/1")
    text = script(stage, Site(), folder, [])
    assert flags(text)["array"] == "0-2%3" and "%A_%a" in flags(text)["output"]
    assert text.count("/shared/1/scores/attempts/$SLURM_ARRAY_TASK_ID ") == 2
    found = calls(stage, Site(), folder)
    assert [call.attempts for call in found] == [
        f"/shared/1/scores/attempts/{index}" for index in range(3)
    ]
    assert found[2].words == ("lt_train", "score", "/shared/1/scores/scores.yaml", "--task", "2/3")
    assert calls(TRAIN, Site(), folder)[0].words == ("lt_train", "/shared/1/moco/moco.yaml")


def test_a_command_runs_under_ranks_with_its_own_words():
    stage = StageJob(
        "heads", "run", "runs/x/heads", words=("heads", "runs/x/train", "--split", "val")
    )
    assert calls(stage, Site(), Path("/shared/1"))[0].words == (
        "lt_train",
        "heads",
        "runs/x/train",
        "--split",
        "val",
    )
    assert calls(stage, Site(), Path("/shared/1"))[0].attempts == "/shared/1/heads/attempts"
    told = flags(script(stage, Site(nodes=2, gpus_per_node=4), Path("/shared/1"), ["7"]))
    assert (told["nodes"], told["ntasks-per-node"], told["gpus-per-node"], told["dependency"]) == (
        "2",
        "4",
        "4",
        "afterok:7",
    )


def test_a_job_waits_for_those_before_it_and_ends_when_they_fail():
    told = flags(script(TRAIN, Site(signal_before_end=60), Path("/shared/1"), ["7", "8"]))
    assert (told["dependency"], told["kill-on-invalid-dep"], told["signal"]) == (
        "afterok:7:8",
        "yes",
        "USR2@60",
    )


def test_options_of_sbatch_go_over_all_others():
    told = flags(
        script(
            TRAIN,
            Site(
                sbatch={"exclusive": True, "requeue": False, "comment": "two words", "gres": None}
            ),
            Path("/shared/1"),
            [],
        )
    )
    assert (
        told["exclusive"] == ""
        and told["comment"] == "'two words'"
        and not {"requeue", "gres"} & set(told)
    )


def test_setup_comes_first_then_the_environment_and_the_snapshot(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    folder = Path("/my runs/1")
    site = Site(
        setup=("module load x",),
        environment={"WORD": "a b"},
        python="apptainer exec i.sif python",
        max_requeues=4,
    )
    lines = parameters(TRAIN, site, folder, [])["setup"]
    assert (
        lines[0] == "module load x"
        and "export PYTHONSAFEPATH=1" in lines
        and "export WORD='a b'" in lines
    )
    assert "export PYTHONPATH='/my runs/1/code:/mine'" in lines
    assert (
        lines[-1]
        == "apptainer exec i.sif python -m launch.job begin '/my runs/1/moco/attempts' 4 || exit $?"
    )
    text = script(TRAIN, site, folder, [])
    assert flags(text)["output"] == "'/my runs/1/moco/%j_0_log.out'"
    assert "apptainer exec i.sif python -u -m submitit.core._submit '/my runs/1/moco'" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


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


# --- submission, to an sbatch that answers as Slurm's and keeps the scripts


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Function that reads the submitted scripts, by job id; the current folder is empty."""
    (tmp_path / "bin").mkdir()
    found = tmp_path / "bin" / "script"
    stub(
        tmp_path / "bin",
        "sbatch",
        f"n=$(ls {found}-* 2>/dev/null | wc -l)",
        f'cp "$1" {found}-$((n + 1))',
        'echo "Submitted batch job $((n + 1))"',
    )
    stub(tmp_path / "bin", "srun", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return lambda: {
        path.name.removeprefix("script-"): flags(path.read_text())
        for path in (tmp_path / "bin").glob("script-*")
    }


def test_stages_are_chained_and_two_seeds_prepare_their_data_once(scripts):
    done = []
    for seed in (0, 1):
        done += submit(
            load_experiment("demo", [f"seed={seed}"], f"-seed{seed}"), Site(), {}, "99", done
        )
    found = scripts()
    waits = [
        (found[number]["job-name"], found[number].get("dependency"))
        for number in sorted(found, key=int)
    ]
    assert waits[:5] == [
        ("data", "afterok:99"),
        ("moco", "afterok:1"),
        ("scratch", "afterok:1"),
        ("pretrained", "afterok:2"),
        ("crt", "afterok:4"),
    ]
    assert waits[5:] == [
        ("moco", "afterok:1"),
        ("scratch", "afterok:1"),
        ("pretrained", "afterok:6"),
        ("crt", "afterok:8"),
    ]
    assert [stage.job for stage in read_submission(Path("runs/demo-seed1"))] == [
        "1",
        "6",
        "7",
        "8",
        "9",
    ]


def test_finished_stages_are_skipped_and_the_next_waits_for_after(scripts):
    Path("data/demo").mkdir(parents=True)
    Path("data/demo/dataset.json").write_text("{}")
    assert [stage.job for stage in submit(load_experiment("demo", []), Site(), {}, "99", [])] == [
        "",
        "1",
        "2",
        "3",
        "4",
    ]
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
    """Function that makes the stand-ins of squeue and sacct tell that all jobs are in this state."""

    def answer(state: str) -> None:
        stub(tmp_path / "bin", "sacct", "exit 0")
        stub(tmp_path / "bin", "squeue", *(f"echo '{job}|{state}|{job}'" for job in range(1, 20)))

    return answer


def test_what_another_experiment_s_job_makes_is_waited_for_and_not_made_twice(
    scripts, queue, tmp_path
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
        load_experiment("cifar10_lt_rotation_ce_100", [], "-seed1"), Site(), {}, None, []
    )
    assert [stage.job for stage in third] == ["1", "8", "9", "10", "11"] and scripts()["8"][
        "dependency"
    ] == "afterok:1"
    with pytest.raises(
        UserError,
        match="stage rotation: job 2 trains in runs/cifar10_lt_100/rotation with other keys",
    ) as caught:
        submit(
            load_experiment("cifar10_lt_rotation_focal_100", ["rotation:optim.lr=0.2"]),
            Site(),
            {},
            None,
            [],
        )
    one_line(caught)
    assert len(scripts()) == 11 and not Path("runs/cifar10_lt_rotation_focal_100").exists()
    stub(tmp_path / "bin", "scancel", f'echo "$@" >> {tmp_path}/cancelled')
    assert (
        cancel(Path("runs/cifar10_lt_rotation_resample_100")) == ["6", "7"]
        and (tmp_path / "cancelled").read_text() == "7 6\n"
    )
    queue("FAILED")
    again = submit(
        load_experiment("cifar10_lt_rotation_focal_100", ["rotation:optim.lr=0.2"]),
        Site(),
        {},
        None,
        [],
    )
    assert [stage.job for stage in again] == ["12", "13", "14", "15"]


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
        stages=(*experiment.stages[:4], replace(experiment.stages[4], resources={"nods": 2})),
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


# --- Slurm's answers


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
