"""The page "How to add" (docs/architecture.md), done to the letter in an empty folder."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lt_train.data.manifest import Manifest

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the page's files were written and its commands given."""
    folder = tmp_path_factory.mktemp("extend")
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)[1]
        (folder / name).write_text(block)
    (commands,) = blocks("bash")
    for line in commands.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"]
        command = [sys.executable, *words[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_data_set_is_prepared(folder):
    train = Manifest(folder / "shards" / "squares", "train")
    assert train.classes == ["dark", "grey", "light"]
    assert train.class_counts.tolist() == [40, 20, 10]


def test_method_loss_sampler_and_backbone_have_trained(folder):
    result = json.loads((folder / "runs" / "mine" / "result.json").read_text())
    assert (result["method"], result["headline"]) == ("two_views", "top1")
    assert result["metrics"]["val"]["samples"] == 12
    lines = (folder / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if "agreement" in line]
    assert len(steps) == result["steps"] == round(2 * 70 / 16)
    assert all(np.isfinite(step["loss"]) and step["agreement"] >= 0 for step in steps)


def test_commands_find_them_by_the_run_s_config(folder):
    evaluation = json.loads((folder / "runs" / "mine" / "evaluation.json").read_text())
    result = json.loads((folder / "runs" / "mine" / "result.json").read_text())
    assert evaluation["metrics"]["val"]["top1"] == result["metrics"]["val"]["top1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("imports=[no_such_parts]", "imports: cannot import 'no_such_parts'"),
        ("imports=[]", "method: there is no 'two_views'"),
    ],
)
def test_what_is_not_there_is_one_line(folder, override, message):
    command = [sys.executable, "-m", "lt_train", str(folder / "runs" / "mine" / "config.yaml")]
    done = subprocess.run([*command, override], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr)
