"""Runs on networks of timm: every kind of method, going on, and back into timm."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from lt_train.config.load import load_config
from lt_train.distributed import World
from lt_train.models.weights import BACKBONE_FILE
from lt_train.training.starting import start
from lt_train.training.trainer import Trainer
from tests.helpers.commands import evaluated, read, refused, run, scalars, words

VIT, CONVOLUTIONS = "timm/test_vit", "timm/test_efficientnet"
CONFIG = "classifier_cifar10_lt"  # with views of 32 pixels


def command(tinted: Path, folder: Path, *more: str) -> list[str]:
    return words(CONFIG, tinted, folder, *more)


@pytest.mark.parametrize("backbone", [VIT, CONVOLUTIONS])
def test_a_run_goes_on_as_if_it_had_not_been_cut_off_and_its_weights_load_in_timm(
    tinted, tmp_path, backbone
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(*command(tinted, whole, f"model.backbone={backbone}", "max_steps=6"))
    run(*command(tinted, cut, f"model.backbone={backbone}", "max_steps=5"))
    run(*command(tinted, cut, f"model.backbone={backbone}", "max_steps=6"))
    assert (cut / BACKBONE_FILE).read_bytes() == (whole / BACKBONE_FILE).read_bytes()
    assert scalars(evaluated(whole)["test"]) == scalars(read(whole)["metrics"]["test"])
    name, size = backbone.removeprefix("timm/"), {"img_size": 32} if backbone == VIT else {}
    network = timm.create_model(name, num_classes=0, **size)
    network.load_state_dict(load_file(whole / BACKBONE_FILE))


@pytest.mark.parametrize("method", ["moco", "rotation", "proco", "experts"])
def test_methods_train_on_them(tinted, tmp_path, method):
    own = [f"method={method}", f"model.backbone={VIT}", "max_steps=2"]
    run(*command(tinted, tmp_path / "run", *own))
    assert read(tmp_path / "run")["steps"] == 2


@pytest.mark.parametrize("data", ["imagenet_lt", "places_lt", "inat18"])
def test_a_step_of_light_fine_tuning_trains_its_adapters_and_head_alone(tinted, tmp_path, data):
    """Weights are random here, and images small."""
    views = ["view.size=32", "eval_view.size=32", "eval_view.resize=36"]
    own = ["model.backbone=timm/vit_tiny_patch16_224", "model.pretrained=false", *views]
    run(*words(f"finetune_{data}", tinted, tmp_path / "run", *own, "max_steps=1"))
    trainer = Trainer(load_config(str(tmp_path / "run" / "config.yaml")), World())
    trainer.build()
    dim, width, blocks = trainer.config.adapter.dim, 192, 12
    adapter, head = 2 * width * dim + width + dim, 4 * width  # a cosine classifier has no bias
    assert sum(each.numel() for each in trainer.engine.trained) == blocks * adapter + head


def test_moco_on_one_rank_says_why_it_cannot(tinted, tmp_path, capsys):
    own = ["method=moco", f"model.backbone={CONVOLUTIONS}", "moco.bn_splits=2"]
    line = refused(capsys, *command(tinted, tmp_path / "run", *own))
    assert "cannot be split: train on several ranks" in line


def test_training_starts_from_the_weights_that_the_name_means(tinted, tmp_path, monkeypatch):
    """Their own file, wherever the hub has put it; model.init_from goes before it."""
    theirs = timm.create_model("test_efficientnet", num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    asked = []

    def weights_file(name: str) -> Path:
        asked.append(name)
        return tmp_path / "theirs.pth"

    monkeypatch.setattr("lt_train.models.timm_backbones.weights_file", weights_file)
    named = [f"model.backbone={CONVOLUTIONS}", "model.pretrained=true"]
    trainer = Trainer(load_config(*_split(command(tinted, tmp_path / "run", *named))), World())
    trainer.build()
    method = trainer.engine.method
    assert asked == ["test_efficientnet"]
    assert method.backbone.conv_stem.weight.equal(theirs.conv_stem.weight)
    shutil.copy(tmp_path / "theirs.pth", tmp_path / "own.pth")
    own = [*named, f"model.init_from={tmp_path / 'own.pth'}"]
    start(method, load_config(*_split(command(tinted, tmp_path / "other", *own))))
    assert len(asked) == 1


def _split(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


def test_pixels_are_scaled_as_the_backbone_expects(tinted, tmp_path):
    own = [f"model.backbone={VIT}", "view.crop=center", "view.flip_probability=0"]
    views = {}
    for scale in ("model.mean=[0.485,0.456,0.406]", "model.mean=[0.5,0.5,0.5]"):
        std = "model.std=[0.25,0.25,0.25]"
        config = load_config(*_split(command(tinted, tmp_path, *own, "view.resize=32", scale, std)))
        (batch,) = Trainer(config, World()).data.train(0, 1)
        views[scale] = batch.views[0].permute(0, 2, 3, 1) * 0.25 + torch.tensor(config.model.mean)
    first, second = views.values()
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert first.min() > -1e-6 and first.max() < 1 + 1e-6
