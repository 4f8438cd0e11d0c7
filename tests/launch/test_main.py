"""``python -m launch``: which place it starts a run on, and what it says to mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import __main__ as launch
from launch import local, slurm
from lt_train.errors import exit_status

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: python -m launch local|slurm ...; --help tells more"),
        (["slurn", "demo"], "'slurn' is no place to run, did you mean 'slurm'?; usage: python -m"),
        (["demo"], "'demo' is no place to run; usage: python -m launch local|slurm ..."),
        (["local"], "name a config or a pipeline, or give --list"),
        (["slurm", "demmo"], "did you mean 'demo'?"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    assert exit_status("launch", lambda: launch.main(words)) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert errors.startswith("launch: error: ") and message in errors


def test_help_names_the_places_and_each_its_own_usage(capsys):
    assert launch.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m launch {local,slurm} ...\n")
    assert all(f"  {place}  {text}\n" in said for place, text in launch.PLACES.items())
    for place in launch.PLACES:
        with pytest.raises(SystemExit, match="0"):
            launch.main([place, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: python -m launch {place} ")


def test_the_words_after_the_place_are_its_own(monkeypatch):
    told = []
    for module in (local, slurm):
        monkeypatch.setattr(module, "main", lambda *words: told.append(words) or 7)
    assert launch.main(["local", "demo", "--ranks", "1"]) == launch.main(["slurm", "x"]) == 7
    ranks = ["demo", "--ranks", "1"]
    assert told == [(ranks, "python -m launch local"), (["x"], "python -m launch slurm")]


def test_it_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "launch", "local", "--list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "cifar10_lt_rotation_ldam_drw_100" in done.stdout and not done.stderr


@pytest.mark.parametrize("program", ["local.py", "slurm.py"])
def test_a_script_runs_the_checkout_that_it_is_of(tmp_path, program):
    """Whatever other one is installed, or in front on PYTHONPATH."""
    other = tmp_path / "other" / "launch"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('the other checkout')")
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / program, "--help"],
        env={**os.environ, "PYTHONPATH": str(other.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
