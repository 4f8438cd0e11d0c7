"""What launch/local.py shows and runs."""

import json
import subprocess
import sys
from pathlib import Path

from launch import local
from lt_train.errors import exit_status

ROOT = Path(__file__).parents[2]


def call(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["launch/local.py", *words])
    return exit_status("launch/local.py", local.main), *capsys.readouterr()


def test_list_shows_all_members_with_their_references_configs_and_methods(monkeypatch, capsys):
    status, out, errors = call(monkeypatch, capsys, "--list")
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert (status, errors) == (0, "")
    assert [
        "cifar10_lt_rotation_ldam_drw_100",
        "22.17",
        "CIFAR-10-LT at ratio 100, ldam_drw after rotation pre-training",
    ] in lines
    assert ["svhn_lt_focal_10", "-", "SVHN-LT at ratio 10, focal from scratch"] in lines
    names = [line[0] for line in lines if line]
    assert "classifier_cifar10_lt" in names and "+mixup" in names


def test_help_stays_short_and_a_name_is_needed(monkeypatch, capsys):
    message = "launch/local.py: error: name a config or a pipeline, or give --list\n"
    assert call(monkeypatch, capsys) == (2, "", message)
    for program in ("local", "slurm"):
        said = subprocess.run(
            [sys.executable, ROOT / "launch" / f"{program}.py", "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "--list" in said and "moco_demo" not in said


def test_stages_run_in_order_with_their_commands_and_prepared_sets_are_left(
    grid, monkeypatch, capsys, tmp_path
):
    """Ranks and data_prep are stand-ins here: the integration tests run them."""
    grid("demo_ce")
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(
        local, "_run_ranks", lambda stage, ranks: ran.append(stage.command[:2]) or 0
    )
    monkeypatch.setattr(local, "_run_module", lambda module, words: ran.append((module, *words)))
    status, _, said = call(monkeypatch, capsys, "demo_ce", "--ranks", "1")
    assert status == 0 and "tensorboard --logdir runs/demo_ce" in said
    assert "stage 4/4: posthoc - a look at demo: posthoc runs/demo_ce/train " in said
    start, *trained, posthoc, report = ran
    assert start == ("data_prep", "demo", "--out", "data/demo")
    assert [config for config, _ in trained] == ["moco_demo", "classifier_demo"]
    assert posthoc == ("posthoc", "runs/demo_ce/train")
    words = ("report", "runs/demo_ce", "runs/demo/before", "--out", "runs/demo_ce")
    words += ("--compare", "training", "train", "before")
    assert report == ("lt_train", *words)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    made_by = {"command": "python -m data_prep demo"}
    (tmp_path / "data" / "demo" / "dataset.json").write_text(json.dumps({"made_by": made_by}))
    ran.clear()
    _, _, said = call(monkeypatch, capsys, "demo_ce", "--ranks", "1")
    assert "stage 1/4: labeled: finished, skipped (data/demo)" in said
    assert ran == [*trained, posthoc, report]
