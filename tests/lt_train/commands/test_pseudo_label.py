"""The command pseudo_label: its columns, whom it overwrites, and the semi run that follows it."""

import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_prep.inspect import problems
from lt_train.commands.open_run import open_run
from lt_train.config.load import load_config
from lt_train.data import tables
from lt_train.data.dataset import write_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.data.tables import add_columns
from lt_train.distributed import World
from tests.helpers.commands import (
    LIMIT,
    checkpoint,
    content,
    evaluated,
    images,
    read,
    refused,
    run,
    torchrun,
    words,
)


def test_pseudo_labels_are_the_runs_predictions_and_their_worth_is_told(copied, unlabeled, capsys):
    shards = {name: digest for name, digest in content(unlabeled).items() if name.endswith(".tar")}
    run("pseudo_label", copied, "--data", unlabeled, "data.eval_batch_size=7")
    said = capsys.readouterr().err
    pool = Manifest(unlabeled, "train")
    config, method = open_run(copied, [], World())
    data = RunData(load_config(str(copied / "config.yaml"), [f"data.root={unlabeled}"]), World())
    with torch.no_grad():
        predicted = [method.predict(batch.views[0]).softmax(1) for batch in data.evaluate("train")]
    confidences, labels = torch.cat(predicted).max(1)
    assert pool.column("pseudo_label").tolist() == labels.tolist()
    assert pool.column("confidence").tolist() == pytest.approx(confidences.tolist(), abs=1e-5)
    right = 100 * (pool.column("pseudo_label") == pool.column("hidden_label")).mean()
    assert f"; {right:.1f} % of them are right" in said and 0 < right < 100
    assert list(problems(unlabeled)) == [] and shards.items() <= content(unlabeled).items()
    options = ["--column", "early", "--confidence-column", "sure", "--step", "5"]
    run("pseudo_label", copied, "--data", unlabeled, *options)
    columns = set(Manifest(unlabeled, "train").columns)
    assert {"pseudo_label", "early", "sure", "hidden_label"} <= columns


def test_pseudo_labels_are_not_made_twice_nor_replaced_unasked(copied, unlabeled, capsys):
    run("pseudo_label", copied, "--data", unlabeled)
    before = content(unlabeled)
    run("pseudo_label", copied, "--data", unlabeled)
    assert "of these very weights already" in capsys.readouterr().err
    assert content(unlabeled) == before
    earlier = ("pseudo_label", copied, "--data", unlabeled, "--step", "5")
    assert "--replace makes it anew" in refused(capsys, *earlier) and content(unlabeled) == before
    run(*earlier, "--replace")
    assert content(unlabeled) != before and list(problems(unlabeled)) == []
    zeros = pa.array(np.zeros(len(Manifest(unlabeled, "train")), np.int32))
    add_columns(unlabeled, "train", {"published": zeros}, "data_prep")
    options = ["--column", "published", "--confidence-column", "new"]
    line = refused(capsys, "pseudo_label", copied, "--data", unlabeled, *options)
    assert "'published' by data_prep" in line


@pytest.mark.parametrize("kill", [1, 2], ids=["before the table", "after the table"])
def test_killed_while_it_writes_the_same_command_mends_it(
    kill, copied, unlabeled, tmp_path, monkeypatch, capsys
):
    calm, calls = Path(shutil.copytree(unlabeled, tmp_path / "calm")), []
    run("pseudo_label", copied, "--data", calm)

    def write(*arguments) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            write_dataset(*arguments)
        if len(calls) == kill:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(tables, "write_dataset", write)
        with pytest.raises(ZeroDivisionError):
            run("pseudo_label", copied, "--data", unlabeled)
    assert content(unlabeled) != content(calm)
    capsys.readouterr()
    run("pseudo_label", copied, "--data", unlabeled)
    assert "30 samples of" in capsys.readouterr().err
    assert content(unlabeled) == content(calm) and list(problems(unlabeled)) == []


def test_damaged_samples_get_no_pseudo_label(copied, unlabeled, damaged_copy):
    root = damaged_copy(unlabeled, [4])
    run("pseudo_label", copied, "--data", root)
    pool = Manifest(root, "train")
    assert np.flatnonzero(pool.column("pseudo_label") == -1).tolist() == [4]
    assert pool.column("confidence")[4] == 0


BAD_PSEUDO_LABELS = {
    "no such run": (["{run}/nowhere", "--data", "{unlabeled}"], "is not a run"),
    "no such set": (["{run}", "--data", "{run}/nowhere"], "there is no such folder"),
    "not a set": (["{run}", "--data", "{run}"], "not a prepared data set"),
    "no such split": (["{run}", "--data", "{unlabeled}", "--split", "val"], "has no split 'val'"),
    "the format's column": (["{run}", "--data", "{unlabeled}", "--column", "label"], "'label'"),
    "the truth": (["{run}", "--data", "{unlabeled}", "--column", "hidden_label"], "'hidden_label'"),
    "one name for two": (
        ["{run}", "--data", "{unlabeled}", "--column", "a", "--confidence-column", "a"],
        "two names",
    ),
    "wrong step": (
        ["{run}", "--data", "{unlabeled}", "--step", "3"],
        "no intact checkpoint of step 3",
    ),
    "other classes": (["{run}", "--data", "{other}"], "other classes"),
    "misspelt key": (
        ["{run}", "--data", "{unlabeled}", "data.eval_batch=3"],
        "did you mean 'data.eval_batch_size'",
    ),
}


@pytest.mark.parametrize("case", BAD_PSEUDO_LABELS)
def test_a_mistake_in_pseudo_label_is_one_line_and_changes_nothing(
    case, copied, unlabeled, prepare, capsys
):
    arguments, message = BAD_PSEUDO_LABELS[case]
    other = prepare({"train": (images(np.arange(3), 0), np.arange(3))})
    before = content(copied), content(unlabeled)
    places = {"run": copied, "unlabeled": unlabeled, "other": other}
    line = refused(capsys, "pseudo_label", *(argument.format(**places) for argument in arguments))
    assert message in line and (content(copied), content(unlabeled)) == before


@pytest.mark.slow
def test_pseudo_labels_of_two_ranks_train_a_semi_run_that_survives_sigkill(
    trained, tinted, unlabeled, tmp_path
):
    two = Path(shutil.copytree(unlabeled, tmp_path / "two"))
    run("pseudo_label", trained, "--data", unlabeled)
    assert "% of them are right" in torchrun("pseudo_label", trained, "--data", two)
    assert content(two) == content(unlabeled), "the very columns"
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    options = [f"unlabeled.root={two}", "data.val_split=none", "unlabeled.min_confidence=0.3"]
    run(*words("semi_cifar10_lt", tinted, calm, *options))
    command = [sys.executable, "-m", "lt_train"]
    command += words("semi_cifar10_lt", tinted, killed, *options)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT
    while len(list((killed / "checkpoints").glob("step-*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 and "resumed from step" in done.stderr
    steps = read(calm)["steps"]
    kept = int((Manifest(two, "train").column("confidence") >= np.float32(0.3)).sum())
    assert steps == math.floor(4 * (45 + kept) / 9 + 0.5) > 20 and read(calm)["train_samples"] == 45
    first, second = checkpoint(calm, steps), checkpoint(killed, steps)
    assert len(first) > 50
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert read(killed)["metrics"] == read(calm)["metrics"] == evaluated(calm)
