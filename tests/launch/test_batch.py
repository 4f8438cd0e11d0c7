"""Batch scripts, and what they call."""

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from launch.batch import calls, parameters, script, send
from launch.pipeline import StageJob
from launch.sites import Site
from lt_train.errors import UserError
from tests.launch.helpers import flags

TRAIN = StageJob("moco", "train", "runs/moco", config="moco_demo")
PREPARE = StageJob("data", "prepare", "d", words=("demo", "--out", "d"))


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
    assert (told["nodes"], told["ntasks-per-node"], told["mem"]) == ("1", "1", "4G")
    assert "gpus-per-node" not in told
    (call,) = calls(PREPARE, Site(cpus_per_gpu=5), Path("/shared/1"))
    words = ("demo", "--out", "d", "--workers", "5")
    assert (call.module, call.words, call.count) == ("data_prep", words, 1)
    for words in (("demo", "--workers", "2"), ("demo", "--workers=2")):
        stage = StageJob("data", "prepare", "d", words=words)
        assert calls(stage, Site(), Path("/shared/1"))[0].words == words


def test_an_array_keeps_attempts_of_its_tasks_apart():
    stage, folder = StageJob("scores", "score", "runs/x", config="c", tasks=3), Path("/shared/1")
    text = script(stage, Site(), folder, [])
    assert flags(text)["array"] == "0-2%3" and "%A_%a" in flags(text)["output"]
    assert text.count("/shared/1/scores/attempts/$SLURM_ARRAY_TASK_ID ") == 2
    found = calls(stage, Site(), folder)
    places = [f"/shared/1/scores/attempts/{index}" for index in range(3)]
    assert [call.attempts for call in found] == places
    assert found[2].words == ("lt_train", "score", "/shared/1/scores/scores.yaml", "--task", "2/3")
    assert calls(TRAIN, Site(), folder)[0].words == ("lt_train", "/shared/1/moco/moco.yaml")


def test_a_command_runs_under_ranks_with_its_own_words():
    words = ("posthoc", "runs/x/train", "--split", "val")
    stage = StageJob("posthoc", "run", "runs/x/posthoc", words=words)
    (call,) = calls(stage, Site(), Path("/shared/1"))
    assert call.words == ("lt_train", *words)
    assert call.attempts == "/shared/1/posthoc/attempts"
    told = flags(script(stage, Site(nodes=2, gpus_per_node=4), Path("/shared/1"), ["7"]))
    asked = (told["nodes"], told["ntasks-per-node"], told["gpus-per-node"], told["dependency"])
    assert asked == ("2", "4", "4", "afterok:7")


def test_a_job_waits_for_those_before_it_and_ends_when_they_fail():
    told = flags(script(TRAIN, Site(signal_before_end=60), Path("/shared/1"), ["7", "8"]))
    assert (told["dependency"], told["kill-on-invalid-dep"], told["signal"]) == (
        "afterok:7:8",
        "yes",
        "USR2@60",
    )


def test_options_of_sbatch_go_over_all_others():
    own = {"exclusive": True, "requeue": False, "comment": "two words", "gres": None}
    told = flags(script(TRAIN, Site(sbatch=own), Path("/shared/1"), []))
    assert told["exclusive"] == "" and told["comment"] == "'two words'"
    assert not {"requeue", "gres"} & set(told)


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
    assert lines[0] == "module load x" and "export PYTHONSAFEPATH=1" in lines
    assert "export WORD='a b'" in lines
    assert "export PYTHONPATH='/my runs/1/code:/mine'" in lines
    begin = "apptainer exec i.sif python -m launch.job begin"
    assert lines[-1] == f"{begin} '/my runs/1/moco/attempts' 4 || exit $?"
    text = script(TRAIN, site, folder, [])
    assert flags(text)["output"] == "'/my runs/1/moco/%j_0_log.out'"
    assert "apptainer exec i.sif python -u -m submitit.core._submit '/my runs/1/moco'" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", ["plain", "my runs", "it's", "$HOME", "a job/é"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_script_that_is_shown_is_the_one_that_is_submitted(scripts, tmp_path, name, tasks):
    folder, site = tmp_path / name / "1", Site(python="python3", sbatch={"comment": "two words"})
    stage = replace(PREPARE, tasks=tasks)
    shown = script(stage, site, folder, ["7"])
    assert not scripts() and not folder.parent.exists(), "nothing is submitted, nothing written"
    wanted = parameters(stage, site, folder, ["7"])
    number = send(folder / "data", wanted, calls(stage, site, folder), site)
    assert (folder / "data" / f"{number}_submission.sh").read_text() == shown
    assert list(scripts()) == [number] == ["1"]


def test_a_folder_where_nothing_can_run_is_one_line(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(UserError, match=f"no program can run in {tempfile.gettempdir()}.*TMPDIR"):
        script(TRAIN, Site(), Path("/shared/1"), [])
