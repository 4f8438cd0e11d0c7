"""The command evaluate: a run's metrics are those of its training, and mistakes are one line."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lt_train.commands.open_run import open_run
from lt_train.config.schema import BACKBONES
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods.metrics import Accuracy
from tests.helpers.commands import (
    CLASSES,
    TRAIN,
    content,
    evaluated,
    images,
    logged,
    read,
    refused,
    run,
    scalars,
    torchrun,
    words,
)
from tests.helpers.small_methods import Pooled


def test_a_finished_runs_metrics_are_those_of_its_result_and_nothing_else_is_written(copied):
    before = content(copied)
    assert evaluated(copied) == read(copied)["metrics"]
    after = content(copied)
    assert after.pop("evaluation.json") and after == before


@pytest.mark.parametrize("step", [5, 15])
def test_a_checkpoints_metrics_are_those_that_training_has_logged(step, copied):
    metrics = evaluated(copied, "--step", str(step), "--split", "val")["val"]
    assert scalars(metrics) == logged(copied, "val", step)
    assert read(copied, "evaluation.json")["step"] == step


def test_torch_computes_in_as_many_threads_as_the_config_says(copied):
    before = torch.get_num_threads()
    evaluated(copied, "engine.cpu_threads=3")
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_another_set_of_the_same_classes_needs_no_training_split(copied, prepare):
    labels = np.repeat(np.arange(CLASSES), 5)
    other = prepare({"test": (images(labels, 5), labels)})
    run("evaluate", copied, f"data.root={other}", "--out", copied / "other.json")
    metrics = read(copied, "other.json")["metrics"]
    assert list(metrics) == ["test"] and metrics["test"]["samples"] == 20
    # many, medium and few are by the run's own class counts, 24, 12, 6 and 3
    per_class = metrics["test"]["per_class"]
    assert metrics["test"]["many_shot"] is None and metrics["test"]["medium_shot"] == per_class[0]
    assert metrics["test"]["few_shot"] == pytest.approx(np.mean(per_class[1:]), abs=1e-3)
    assert not (copied / "evaluation.json").exists()


def test_five_crops_are_scored_by_their_mean_logits(tinted, tmp_path, monkeypatch, capsys):
    """By a backbone that averages pixels, crop by crop."""
    monkeypatch.setitem(BACKBONES, "pooled", Pooled)
    folder = tmp_path / "run"
    run(*words("classifier_cifar10_lt", tinted, folder, "model.backbone=pooled", "max_steps=20"))
    head = load_file(folder / "classifier.safetensors")
    config, _ = open_run(folder, [], World())
    expected, single = (Accuracy(torch.tensor(TRAIN), torch.device("cpu")) for _ in range(2))
    for batch in RunData(config, World()).evaluate("test"):
        (whole,) = batch.views
        scores = []
        for top, left in [(12, 12), (0, 0), (0, 24), (24, 0), (24, 24)]:
            crop = Pooled()(whole[:, :, top : top + 8, left : left + 8])
            scores.append(crop @ head["weight"].T + head["bias"])
        expected.update(torch.stack(scores).mean(0), batch.label)
        single.update(scores[0], batch.label)
    cut = ("eval_view.size=8", "--split", "test")
    capsys.readouterr()
    found = evaluated(folder, *cut, "--crops", "5")["test"]
    assert "by the mean logits of 5 crops" in capsys.readouterr().err
    assert read(folder, "evaluation.json")["crops"] == 5
    assert found["confusion"] == expected.compute()["confusion"]
    assert scalars(found) == pytest.approx(scalars(expected.compute()), abs=1e-3)
    alone = evaluated(folder, *cut)["test"]
    assert scalars(alone) == pytest.approx(scalars(single.compute()), abs=1e-3)
    assert read(folder, "evaluation.json")["crops"] == 1 and found["ece"] != alone["ece"]


def knn_metrics(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if name.startswith("knn")}


@pytest.mark.parametrize("method", ["moco", "rotation"])
def test_self_supervised_runs_are_evaluated_by_their_neighbours(method, tinted, tmp_path, capsys):
    folder = tmp_path / "run"
    run(*words(f"{method}_cifar10_lt", tinted, folder, "max_steps=3"))
    result = read(folder)["metrics"]
    assert evaluated(folder) == result and result["test"]["knn_top1"] is not None
    assert "no classifier" in refused(capsys, "posthoc", folder)
    assert "no classifier" in refused(capsys, "evaluate", folder, "--crops", "5")
    assert "no classifier" in refused(capsys, "pseudo_label", folder, "--data", tinted)
    shutil.rmtree(folder / "checkpoints")
    assert knn_metrics(evaluated(folder)["test"]) == knn_metrics(result["test"])
    assert ("untrained head" in capsys.readouterr().err) == (method == "rotation")


BAD_EVALUATIONS = {
    "no such folder": (["{run}/nowhere"], "is not a run"),
    "a file": (["{run}/config.yaml"], "is not a run"),
    "wrong step": (
        ["{run}", "--step", "7"],
        "no intact checkpoint of step 7; it has 5, 10, 15, 20",
    ),
    "no such split": (["{run}", "--split", "nope"], "has no split 'nope'; it has train, val, test"),
    "neither split": (["{run}", "data.val_split=a", "data.test_split=b"], "--split"),
    "no labels": (["{run}", "data.root={unlabeled}", "--split", "train"], "has no labels"),
    "data gone": (["{run}", "data.root={run}/gone"], "there is no such folder"),
    "other classes": (["{run}", "data.root={other}"], "other classes"),
    "misspelt key": (["{run}", "data.rot=x"], "did you mean 'data.root'"),
    "no override": (["{run}", "5"], "not of the form key=value"),
    "no room for crops": (["{run}", "--crops", "5"], "eval_view.resize=32, which leaves no room"),
    "unwritable": (["{run}", "--out", "{run}/config.yaml/x"], "cannot write"),
}


@pytest.mark.parametrize("case", BAD_EVALUATIONS)
def test_a_mistake_in_evaluate_is_one_line_and_changes_nothing(
    case, copied, unlabeled, prepare, capsys
):
    arguments, message = BAD_EVALUATIONS[case]
    train, test = (images(np.arange(3), seed) for seed in range(2))
    other = prepare({"train": (train, np.arange(3)), "test": (test, np.arange(3))})
    before = content(copied)
    places = {"run": copied, "unlabeled": unlabeled, "other": other}
    line = refused(capsys, "evaluate", *(argument.format(**places) for argument in arguments))
    assert message in line and content(copied) == before


def confusions(metrics: dict[str, dict]) -> dict[str, list]:
    return {split: of_split["confusion"] for split, of_split in metrics.items()}


@pytest.mark.slow
def test_deepspeed_runs_are_evaluated_too(tinted, tmp_path):
    folder = tmp_path / "run"
    options = ["engine.name=deepspeed", "max_steps=10"]
    torchrun(*words("classifier_cifar10_lt", tinted, folder, *options))
    after_5 = scalars(evaluated(folder, "--step", "5")["val"])
    assert after_5 == pytest.approx(logged(folder, "val", 5), abs=1e-3)
    assert confusions(evaluated(folder)) == confusions(read(folder)["metrics"])
