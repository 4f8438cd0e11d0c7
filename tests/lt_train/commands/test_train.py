"""Training by command: which weights a run ends with, and classifiers that go on from a run's."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lt_train.__main__ import main
from lt_train.config.load import load_config
from lt_train.data.batch import Batch
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods.base import Progress
from lt_train.methods.classifier import Classifier
from lt_train.training.preface import tell_data
from lt_train.training.trainer import Trainer
from tests.helpers.commands import (
    CLASSES,
    checkpoint,
    evaluated,
    images,
    logged,
    read,
    refused,
    run,
    scalars,
    words,
)

# what a run says


def said(capsys) -> list[str]:
    """Log lines without their times."""
    return [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]


def test_what_is_understood_is_said_before_training(tinted, tmp_path, capsys):
    options = words("classifier_cifar10_lt", tinted, tmp_path / "run")
    capsys.readouterr()
    run(*options, "max_steps=2")
    images = "train 45 images of 4 classes, 24 to 3 a class (imbalance ratio 8)"
    first = [
        f"data: {tinted}, {images}; val 24 images; test 24 images",
        "1 rank on cpu, fp32, ddp: batches of 9, 5 steps an epoch, 20 steps in 4 epochs, "
        "of which max_steps allows 2",
        f"run.dir: {tmp_path / 'run'}, a new run",
        "method: classifier on resnet32_cifar, 0.46 M parameters",
    ]
    assert said(capsys)[:4] == first
    run(*options, "max_steps=3")
    assert said(capsys)[2] == f"run.dir: {tmp_path / 'run'}, goes on from step 2 of 3"


def test_what_of_a_schedule_never_comes_is_a_warning(tinted, tmp_path, capsys):
    """Not a mistake: a finished run's config may say so."""
    steps = ["optim.step_epochs=[2,4,160]", "optim.step_factors=[0.1,0.1,0.1]", "max_steps=1"]
    warm_up = "optim.warmup_epochs=5"
    run(*words("classifier_cifar10_lt", tinted, tmp_path / "run", *steps, warm_up))
    lines = said(capsys)
    late = "optim.step_epochs: what is set for epoch 4 and 160 never comes within 4 epochs"
    assert f"{late}; a share, such as 80%, would" in lines
    assert "optim.warmup_epochs=5 does not end within 4 epochs; a share, such as 5%, would" in lines
    run(*words("classifier_cifar10_lt", tinted, tmp_path / "other", "max_steps=1"))
    assert not [line for line in said(capsys) if "never comes" in line or "does not end" in line]


def test_of_a_second_set_is_said_what_is_taken_and_what_is_not(tinted, unlabeled, caplog):
    chosen = [f"data.root={tinted}", f"unlabeled.root={unlabeled}", "unlabeled.max_samples=20"]
    config = load_config("fixmatch_cifar10_lt", [*chosen, "global_batch_size=16"])
    with caplog.at_level(logging.INFO, "lt_train.training.preface"):
        tell_data(RunData(config, World()), ["val"])
    second = "train 20 images without labels, of 30 that there are; 14 of each batch"
    assert caplog.messages[1:] == [f"second set: {unlabeled}, {second}"]


def test_that_no_accuracy_is_measured_is_said(tinted, tmp_path, capsys):
    held_out = ["data.val_split=none", "data.test_split=nor"]
    run(*words("classifier_cifar10_lt", tinted, tmp_path / "run", *held_out, "max_steps=1"))
    (line,) = [line for line in said(capsys) if "accuracy is not measured" in line]
    assert f"{tinted} has neither a split 'none' nor 'nor'" in line
    assert "--val-fraction 0.1" in line
    run(*words("classifier_cifar10_lt", tinted, tmp_path / "other", held_out[0], "max_steps=1"))
    assert not [line for line in said(capsys) if "accuracy is not measured" in line]


# which weights a run ends with


def assert_ended_with(folder: Path, step: int, select: str) -> None:
    result, best = read(folder), checkpoint(folder, step)
    assert (result["selected_on"], result["selected_step"]) == (select, step)
    assert result["steps"] == 20
    for name, tensor in load_file(folder / "backbone.safetensors").items():
        assert torch.equal(tensor, best[f"backbone.{name}"])
    weight = load_file(folder / "classifier.safetensors")["weight"]
    assert torch.equal(weight, best["classifier.weight"])
    assert evaluated(folder, "--step", str(step)) == result["metrics"] == evaluated(folder)


@pytest.mark.parametrize("select", ["val", "test"])
def test_the_best_weights_are_kept_and_reported(select, tinted, tmp_path, rigged):
    rigged({5: 10.0, 10: 60.0, 15: 60.0, 20: 20.0})
    folder = tmp_path / "run"
    run(*words("classifier_cifar10_lt", tinted, folder, f"run.select={select}"))
    assert_ended_with(folder, 10, select)
    assert logged(folder, select, 5)["top1"] is not None
    last = evaluated(folder, "--step", "20")["val"]
    assert scalars(read(folder)["metrics"]["val"]) != scalars(last)


def test_a_run_that_is_cut_off_and_resumed_ends_with_the_same_best(tinted, tmp_path, rigged):
    calm, cut = tmp_path / "calm", tmp_path / "cut"
    rigged({5: 30.0, 10: 60.0, 15: 20.0, 20: 40.0})
    run(*words("classifier_cifar10_lt", tinted, calm, "run.select=val"))
    rigged({5: 30.0, 10: 60.0})
    with pytest.raises(KeyError, match="15"):
        main(words("classifier_cifar10_lt", tinted, cut, "run.select=val"))
    # as if it had been cut off before that
    shutil.rmtree(cut / "checkpoints" / "step-00000015")
    assert (cut / "best.pt").is_file() and not (cut / "result.json").exists()
    rigged({10: 60.0, 15: 20.0, 20: 40.0})
    keep = ("run.select=val", "run.keep_checkpoints=9")
    run(*words("classifier_cifar10_lt", tinted, cut, *keep))
    assert_ended_with(cut, 10, "val")
    assert read(cut)["metrics"] == read(calm)["metrics"]
    first, second = (load_file(folder / "backbone.safetensors") for folder in (calm, cut))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_new_run_in_an_old_folder_and_another_split_do_not_take_the_old_best(
    tinted, tmp_path, rigged
):
    folder = tmp_path / "run"
    options = words("classifier_cifar10_lt", tinted, folder)
    rigged({5: 90.0, 10: 80.0})
    run(*options, "run.select=val", "max_steps=10")
    assert read(folder)["selected_step"] == 5
    rigged({5: 1.0, 10: 3.0, 15: 4.0})
    run(*options, "run.select=test", "max_steps=15")  # goes on from 10
    assert read(folder)["selected_on"] == "test" and read(folder)["selected_step"] == 15
    (folder / "result.json").unlink()
    rigged({5: 2.0, 10: 3.0, 15: 1.0, 20: 2.5})
    run(*options, "run.select=test", "resume.enabled=false")
    assert_ended_with(folder, 10, "test")


def test_without_selection_nothing_is_kept_and_a_missing_split_is_one_line(
    trained, tinted, tmp_path, capsys
):
    result = read(trained)
    assert (result["selected_on"], result["selected_step"]) == ("last", 20)
    assert not (trained / "best.pt").exists()
    for select in ("val", "test"):
        options = [f"run.select={select}", f"data.{select}_split=nope"]
        line = refused(capsys, *words("classifier_cifar10_lt", tinted, tmp_path / "run", *options))
        assert f"run.select={select}, but" in line
        assert "no split 'nope'; use run.select=last" in line
    assert not (tmp_path / "run").exists()


# classifiers that go on from a run's


def test_lws_goes_on_from_the_runs_classifier(trained, tinted, tmp_path, capsys):
    folder = tmp_path / "lws"
    options = words("lws_cifar10_lt", tinted, folder, f"model.init_from={trained}", "max_steps=2")
    run(*options)
    before, after = (load_file(path / "classifier.safetensors") for path in (trained, folder))
    assert torch.equal(after["linear.weight"], before["weight"])
    assert torch.equal(after["linear.bias"], before["bias"])
    assert not torch.equal(after["scale"], torch.ones(CLASSES))
    run("posthoc", folder)
    classifiers = read(folder, "posthoc.json")["classifiers"]
    names = [classifier["name"] for classifier in classifiers]
    assert names[:2] == ["as trained", "logit adjustment"]
    shutil.rmtree(folder / "checkpoints")
    assert evaluated(folder) == read(folder)["metrics"]
    start = f"model.init_from={trained / 'backbone.safetensors'}"
    line = refused(capsys, *words("lws_cifar10_lt", tinted, tmp_path / "other", start))
    assert "the run of a linear classifier" in line and "not a backbone alone" in line
    start = f"model.init_from={folder}"
    line = refused(capsys, *words("lws_cifar10_lt", tinted, tmp_path / "another", start))
    assert "the run of a linear classifier" in line


def test_starting_weights_of_lws_are_there_before_the_first_step(trained, tinted, tmp_path):
    config, *overrides = words(
        "lws_cifar10_lt", tinted, tmp_path / "run", f"model.init_from={trained}"
    )
    trainer = Trainer(load_config(config, overrides), World())
    trainer.build()
    classifier = load_file(trained / "classifier.safetensors")
    images = torch.randn(2, 3, 32, 32)
    method = trainer.engine.method.eval()
    expected = F.linear(method.backbone(images), classifier["weight"], classifier["bias"])
    torch.testing.assert_close(method.predict(images), expected)


# what cannot be trained on


def test_one_class_and_batches_without_a_variance_are_one_line_before_training(
    prepare, tinted, tmp_path, capsys
):
    labels = np.zeros(12, np.int64)
    single = prepare(dict.fromkeys(("train", "val"), (images(labels, 1), labels)))
    folder = tmp_path / "run"
    line = refused(capsys, *words("classifier_cifar10_lt", single, folder))
    assert f"{single} has one class (class_0), and a classifier nothing to tell apart" in line
    small = ["model.backbone=resnet10", "global_batch_size=1"]
    line = refused(capsys, *words("classifier_cifar10_lt", tinted, folder, *small))
    assert "global_batch_size=1 on 1 rank(s) leaves 1 sample(s) a rank" in line
    assert not list(folder.glob("checkpoints/*"))


def test_a_part_that_was_not_tried_before_is_one_line_too(tinted, tmp_path, capsys, monkeypatch):
    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        return {"loss": nn.BatchNorm1d(4)(torch.zeros(1, 4)).sum()}

    monkeypatch.setattr(Classifier, "forward", forward)
    line = refused(capsys, *words("classifier_cifar10_lt", tinted, tmp_path / "run"))
    assert "too few samples for batch norm's variance; use a larger global_batch_size" in line
