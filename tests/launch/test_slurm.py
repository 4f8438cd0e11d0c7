"""launch/slurm.py's command line, on a host without Slurm."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch import slurm
from launch.cluster import NO_SLURM
from lt_train.errors import exit_status

ROOT = Path(__file__).parents[2]


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Function that calls launch/slurm.py with these words in an empty folder: (exit status,
    stdout, stderr).
    """
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch/slurm.py", *words])
        status = exit_status("launch/slurm.py", slurm.main)
        assert not list(Path().iterdir())  # nothing is written
        return status, *capsys.readouterr()

    return call


def test_a_dry_run_prints_the_script_of_every_stage(launch, tmp_path):
    status, out, errors = launch(
        "demo", "--dry-run", "--nodes", "2", "--after", "99", "rotation:epochs=2"
    )
    assert (status, errors) == (0, "")
    root = tmp_path / "here" / "runs" / "demo,rotation@epochs=2" / "slurm" / "1"
    assert "# site nodes: 2\n" in out and out.count("#!/bin/bash") == 8
    for name, waits in {
        "data": "afterok:99",
        "rotation": "'afterok:<job of unlabeled>'",
        "crt": "'afterok:<job of pretrained>'",
    }.items():
        assert (
            f"#SBATCH --job-name={name}\n" in out
            and f"{root / name}\n" in out
            and f"#SBATCH --dependency={waits}\n" in out
        )
    assert "# stage rotation, after unlabeled" in out
    assert "# self-supervised pre-training, which needs no labels\n" in out


def test_a_dry_run_of_a_pipeline_with_parameters(launch):
    status, out, errors = launch("cifar10_lt_rotation_ldam_drw_100", "--dry-run", "--nodes", "2")
    assert (
        (status, errors) == (0, "")
        and out.count("#!/bin/bash") == 4
        and "# stage evaluate, after train" in out
    )


def test_list_needs_no_slurm(launch):
    status, out, errors = launch("--list")
    assert (
        (status, errors) == (0, "")
        and "cifar10_lt_rotation_ldam_drw_100" in out
        and "+ldam_drw" in out
    )


def test_a_dry_run_of_a_config_for_seeds(launch, tmp_path):
    status, out, _ = launch("moco_demo", "--dry-run", "--array-seeds", "3-4")
    assert status == 0 and [
        f"{tmp_path}/here/runs/moco_demo,seed={seed}/slurm/1/moco_demo\n" in out
        for seed in (2, 3, 4, 5)
    ] == [False, True, True, False]
    assert out.count("#!/bin/bash") == 2 and "--dependency" not in out
    assert launch("moco_demo", "--dry-run", "--array-seeds", "7")[1].count("#!/bin/bash") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo"], "this host has no Slurm.*launch/local.py"),
        (["--check"], "this host has no Slurm"),
        (["moco_demo", "--benchmark"], "this host has no Slurm"),
        (["status", "x"], "'x' has no submitted jobs"),
        (["cancel", "x"], "'x' has no submitted jobs"),
        ([], "name a config or a pipeline, or give --check or --list"),
        (["--nodes", "2"], "name a config or a pipeline, or give --check or --list"),
        (["--dry-run", "--check"], "--dry-run .*does not go with --check"),
        (["--dry-run", "--benchmark", "moco_demo"], "--dry-run .*does not go with"),
        (["demmo", "--dry-run"], "did you mean 'demo'"),
        (
            ["cifar10_lt_rotation_ldamdrw_100", "--dry-run"],
            "did you mean 'cifar10_lt_rotation_ldam_drw_100'",
        ),
        (["demo", "--dry-run", "epoch=1"], "unknown key 'epoch'"),
        (["demo", "--dry-run", "--nodes", "0"], "--nodes must be at least 1"),
        (
            ["moco_demo", "--dry-run", "--nodes", "100", "global_batch_size=64"],
            "stage moco_demo: 800 ranks for a global_batch_size of 64",
        ),
        (["demo", "--dry-run", "--time", "soon"], "--time must be HH:MM:SS"),
        (["demo", "--dry-run", "--gpus-per-node", "0"], "--gpus-per-node is 0"),
        (["demo", "--dry-run", "--site", "nowhere.yaml"], r"cannot read nowhere\.yaml"),
        *(
            (["demo", "--dry-run", "--array-seeds", seeds], "--array-seeds must be like 0-4")
            for seeds in ("4-0", "a", "0-", "1-2-3", "")
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(launch, words, message):
    status, out, errors = launch(*words)
    assert (status, out, errors.count("\n")) == (2, "", 1) and re.match(
        f"launch/slurm.py: error: .*{message}", errors
    )


def test_data_that_is_not_there_is_told_unless_a_stage_makes_it(launch):
    status, _, errors = launch("moco_demo", "--dry-run", "data.root=/nowhere")
    assert status == 0 and "there is no data.root=/nowhere on this host" in errors
    assert launch("demo", "--dry-run")[2] == ""
    url = ["data.root=s3://bucket/set", "data.cache_dir=/scratch"]
    assert launch("moco_demo", "--dry-run", *url)[::2] == (0, "")


def test_the_script_itself_says_that_there_is_no_slurm(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "slurm.py", "demo"],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stderr == f"launch/slurm.py: error: {NO_SLURM}\n"
        and not list(tmp_path.iterdir())
    )
