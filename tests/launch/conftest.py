"""Pipelines of the tests' own, and stand-ins for Slurm."""

import pytest

from launch import pipeline
from launch.pipeline import load_experiment
from tests.helpers.stubs import stub
from tests.launch.helpers import HEAD, STAGES, flags


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Function that writes a file "trial" of pipelines and loads a pipeline by its name."""
    monkeypatch.setattr(pipeline, "PIPELINE_DIR", tmp_path)

    def load(
        name: str,
        text: str = HEAD + STAGES,
        overrides: tuple[str, ...] = (),
        more: tuple[str, ...] = (),
    ):
        (tmp_path / "trial.yaml").write_text(text)
        return load_experiment(name, list(overrides), more)

    return load


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
