"""Copies of the code."""

import subprocess
from pathlib import Path

import pytest

from launch import snapshot
from lt_train.errors import UserError


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    command = ["git", *who, *words]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def test_a_snapshot_holds_the_packages_alone(tmp_path):
    snapshot.take_snapshot(tmp_path / "code")
    assert {path.name for path in (tmp_path / "code").iterdir()} == {
        "launch",
        "lt_train",
        "data_prep",
        "configs",
        "commit.txt",
        "changes.diff",
    }
    assert not list(tmp_path.rglob("__pycache__"))
    assert (tmp_path / "code/configs/moco_demo.yaml").is_file()
    with pytest.raises(UserError, match="cannot copy the code"):
        snapshot.take_snapshot(tmp_path / "code")


def test_a_snapshot_says_what_it_is_and_needs_no_git(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    for name in snapshot.PACKAGES:
        (checkout / name).mkdir(parents=True)
        (checkout / name / "a.py").write_text("before\n")
    monkeypatch.setattr(snapshot, "ROOT", checkout)
    assert snapshot.take_snapshot(tmp_path / "1") == "unknown"
    assert (tmp_path / "1/launch/a.py").read_text() == "before\n"
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "one")
    (checkout / "launch/a.py").write_bytes(b"after \xe9\n")  # not UTF-8
    (checkout / "launch/b.py").write_text("")
    commit = snapshot.take_snapshot(tmp_path / "2")
    assert commit == git(checkout, "rev-parse", "HEAD").strip()
    assert (tmp_path / "2/commit.txt").read_text() == f"{commit}\n"
    changes = (tmp_path / "2/changes.diff").read_text()
    assert "-before\n+after" in changes and changes.endswith("launch/b.py\n")


def test_a_package_in_a_folder_of_another_repository_has_not_its_commit(tmp_path, monkeypatch):
    installed = tmp_path / "project" / "venv"
    for name in snapshot.PACKAGES:
        (installed / name).mkdir(parents=True)
        (installed / name / "a.py").write_text("")
    (tmp_path / "project" / "theirs.py").write_text("")
    git(installed.parent, "init")
    git(installed.parent, "add", "theirs.py")
    git(installed.parent, "commit", "-m", "one")
    monkeypatch.setattr(snapshot, "ROOT", installed)
    assert snapshot.take_snapshot(tmp_path / "code") == "unknown"
    assert (tmp_path / "code/commit.txt").read_text() == "unknown\n"
    assert (tmp_path / "code/changes.diff").read_text() == ""
