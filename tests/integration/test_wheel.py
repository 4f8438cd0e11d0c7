"""The package as others install it: a wheel, outside of the checkout."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest

from lt_train import __version__
from lt_train.arguments import VERSION

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "lt_train", "data_prep")
BUILT_FROM = (*PACKAGES, "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
COMMANDS = {
    "lt-train": "lt_train.__main__:console_script",
    "lt-data": "data_prep.__main__:console_script",
    "lt-launch": "launch.__main__:console_script",
}
SMALL = ("global_batch_size=8", "view.size=32", "eval_view.size=32", "eval_view.resize=36")
LIMIT = 240  # seconds that any one command may take

Run = Callable[..., subprocess.CompletedProcess]


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: nothing is left in the checkout, nor taken from what older builds left."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    copy.mkdir()
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=without)
        else:
            shutil.copy(ROOT / name, copy / name)
    here = all(importlib.util.find_spec(name) for name in ("setuptools", "wheel"))
    isolation = ["--no-build-isolation"] if here else []
    pip("wheel", str(copy), "--no-deps", *isolation, "--wheel-dir", str(folder))
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", str(wheel), "--no-deps", "--target", str(folder))
    return folder


@pytest.fixture
def run(installed, tmp_path) -> Run:
    """Function that runs Python with these words in an empty folder, with the wheel's code."""
    (tmp_path / "here").mkdir()

    def call(*words: str, code: Path = installed) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path / "here",
            env={**os.environ, "PYTHONPATH": str(code)},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return call


def test_it_holds_all_code_and_configs_and_declares_the_commands(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (name,) = (name for name in held if name.endswith(".dist-info/entry_points.txt"))
        declared = ConfigParser()
        declared.optionxform = str
        declared.read_string(archive.read(name).decode())
    assert dict(declared["console_scripts"]) == COMMANDS
    assert f"-{__version__}-" in wheel.name
    code = set()
    for package in PACKAGES:
        code |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
    code.add("lt_train/py.typed")
    configs = {f"lt_train/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in held if ".dist-info/" not in name} == code | configs


def test_it_is_the_wheel_that_runs_and_not_the_checkout(run, installed):
    names = ("lt_train", "data_prep", "launch")
    shown = "\n".join(f"import {name}; print({name}.__file__)" for name in names)
    assert run("-c", shown).stdout.split() == [
        str(installed / name / "__init__.py") for name in names
    ]


def test_commands_answer(run, installed):
    assert "usage: python -m lt_train" in run("-m", "lt_train", "--help").stdout
    assert "usage: python -m data_prep" in run("-m", "data_prep", "--help").stdout
    listed = run("-m", "launch", "local", "--list").stdout
    assert "cifar10_lt_rotation_ldam_drw_100" in listed and "+ldam_drw" in listed
    for command in COMMANDS:
        assert "usage: " in run(str(installed / "bin" / command), "--help").stdout
        assert run(str(installed / "bin" / command), "--version").stdout == f"{VERSION}\n"


def test_configs_resolve_with_bases_and_variants(run):
    printed = run("-m", "lt_train", "classifier_cifar10_lt", "+ldam_drw", "--print-config").stdout
    assert "backbone: resnet32_cifar" in printed and "name: ldam" in printed


def test_data_is_prepared_and_trained_on(run, tmp_path):
    sizes = ("--largest", "12", "--val", "2", "--test", "2", "--image-size", "32", "--workers", "1")
    run("-m", "data_prep", "demo", "--out", "set", *sizes)
    settings = ("data.root=set", "run.dir=run", "max_steps=1", *SMALL)
    run("-m", "lt_train", "classifier_demo", *settings)
    assert json.loads((tmp_path / "here" / "run" / "result.json").read_text())["steps"] == 1


def test_jobs_get_a_copy_that_runs_by_itself(run, tmp_path):
    take = "from pathlib import Path; from launch.snapshot import take_snapshot"
    assert run("-c", f"{take}; print(take_snapshot(Path('code')))").stdout == "unknown\n"
    copy = tmp_path / "here" / "code"
    held = {path.name for path in copy.iterdir()}
    assert held == {*PACKAGES, "commit.txt", "changes.diff"}
    place = run("-c", "import lt_train; print(lt_train.__file__)", code=copy).stdout.strip()
    assert place == str(copy / "lt_train" / "__init__.py")
    printed = run("-m", "lt_train", "moco_demo", "--print-config", code=copy).stdout
    assert "method: moco" in printed
