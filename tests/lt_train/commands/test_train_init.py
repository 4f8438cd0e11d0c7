"""Training by command from class means: once, before the first step of a new run."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from lt_train.training import classifier_init
from tests.helpers.commands import checkpoint, evaluated, read, refused, run, words


def test_class_means_are_taken_once_and_a_resumed_run_pays_no_pass(
    trained, tinted, tmp_path, monkeypatch
):
    options = [f"model.init_from={trained}", "classifier.init=class_means", "max_steps=4"]
    options += ["run.checkpoint_every=2", "+cosine"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(*words("crt_cifar10_lt", tinted, whole, *options))
    run(*words("crt_cifar10_lt", tinted, cut, *options, "max_steps=2"))

    def pass_over_the_split(*_):
        raise AssertionError("a resumed run takes class means")

    monkeypatch.setattr(classifier_init, "class_means", pass_over_the_split)
    run(*words("crt_cifar10_lt", tinted, cut, *options))
    first, second = (checkpoint(folder, 4) for folder in (whole, cut))
    assert all(value.equal(second[name]) for name, value in first.items())
    assert evaluated(cut) == read(whole)["metrics"]


def test_without_training_the_head_is_that_of_nearest_class_means(trained, tinted, tmp_path):
    folder = tmp_path / "run"
    start = [f"model.init_from={trained}", "classifier.init=class_means", "optim.lr=0"]
    run(*words("classifier_cifar10_lt", tinted, folder, *start, "max_steps=1"))
    head = load_file(folder / "classifier.safetensors")
    squared = head["weight"].square().sum(1)
    torch.testing.assert_close(head["bias"], -squared / 2)


def test_a_missing_file_of_embeddings_is_one_line(tinted, tmp_path, capsys):
    folder, file = tmp_path / "run", Path(tmp_path / "none.safetensors")
    line = refused(
        capsys, *words("classifier_cifar10_lt", tinted, folder, f"classifier.init={file}")
    )
    assert f"classifier.init: there is no {file}" in line
