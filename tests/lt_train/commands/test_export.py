"""``lt_train export``: a run's weights in one file, against what torchvision makes of it."""

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lt_train.commands.export import main as export
from lt_train.config.load import load_config, to_yaml
from lt_train.config.schema import Config, DataConfig, EngineConfig, ModelConfig, RunConfig
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import CosineClassifier, ScaledClassifier
from lt_train.models.tensor_files import CHECKSUM, WRITTEN_BY
from lt_train.models.weights import (
    BACKBONE_FILE,
    CLASSIFIER_FILE,
    FINISH_AGAIN,
    export_weights,
)
from lt_train.training.trainer import Trainer
from tests.helpers.commands import run, words
from tests.helpers.networks import assert_same_state, randomize

CLASSES = 5
NAMES = [f"class_{label}" for label in range(CLASSES)]
ABOUT = {"method": "classifier", "steps": "12"}


def finished_run(folder: Path, backbone: str, classifier: nn.Module | None) -> nn.Module:
    """A run's folder as training leaves it; returns its backbone."""
    network = randomize(make_backbone(backbone), 3)
    export_weights(network, folder / BACKBONE_FILE, {**ABOUT, "backbone": backbone})
    if classifier is not None:
        export_weights(classifier, folder / CLASSIFIER_FILE, {})
    config = load_config("classifier_cifar10_lt", [f"model.backbone={backbone}", "data.root=none"])
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "result.json").write_text(json.dumps({"classes": NAMES}))
    return network


KINDS = [("resnet18", ScaledClassifier), ("resnet50", nn.Linear)]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_torchvision_computes_the_same_logits(name, kind, tmp_path, capsys):
    theirs = getattr(torchvision.models, name)(num_classes=CLASSES).eval()
    classifier = randomize(kind(theirs.fc.in_features, CLASSES), 4)
    backbone = finished_run(tmp_path, name, classifier)
    assert export([str(tmp_path)]) == 0
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = classifier(backbone(images))
        assert expected.isfinite().all() and expected.std() > 1e-3
        torch.testing.assert_close(theirs(images), expected)
    assert f"a classifier (fc) of {CLASSES} classes" in capsys.readouterr().err


def test_metadata_say_where_the_model_comes_from(tmp_path):
    finished_run(tmp_path, "resnet32_cifar", nn.Linear(64, CLASSES))
    export([str(tmp_path)])
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        about = file.metadata()
    assert json.loads(about.pop("classes")) == NAMES
    assert json.loads(about.pop("preprocessing"))["input_size"] == 32
    assert len(about.pop(CHECKSUM)) == 64
    expected = {**ABOUT, **WRITTEN_BY, "format": "pt", "backbone": "resnet32_cifar"}
    assert about == expected


@pytest.mark.parametrize(
    ("kind", "why"), [("none", "the run has none"), ("cosine", "it is a cosine classifier")]
)
def test_without_a_linear_classifier_the_backbone_is_exported_alone(kind, why, tmp_path, capsys):
    classifier = CosineClassifier(64, CLASSES, 30.0) if kind == "cosine" else None
    backbone = finished_run(tmp_path, "resnet32_cifar", classifier)
    assert export([str(tmp_path), "--out", str(tmp_path / "alone.safetensors")]) == 0
    assert_same_state(load_file(tmp_path / "alone.safetensors"), backbone.state_dict())
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_an_existing_file_is_overwritten_only_by_force(tmp_path):
    finished_run(tmp_path, "resnet32_cifar", nn.Linear(64, CLASSES))
    out = tmp_path / "model.safetensors"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists.*--force"):
        export([str(tmp_path)])
    assert out.read_text() == "mine"
    export([str(tmp_path), "--force"])
    assert "fc.weight" in load_file(out)


@pytest.mark.parametrize("out", ["model.pth", BACKBONE_FILE, "missing/model.safetensors"])
def test_a_place_that_cannot_be_written_is_refused(out, tmp_path):
    backbone = finished_run(tmp_path, "resnet32_cifar", None)
    with pytest.raises(UserError, match=out):
        export([str(tmp_path), "--out", str(tmp_path / out), "--force"])
    assert_same_state(load_file(tmp_path / BACKBONE_FILE), backbone.state_dict())


@pytest.mark.parametrize("lost", ["result.json", BACKBONE_FILE])
def test_an_unfinished_run_is_refused(lost, tmp_path):
    finished_run(tmp_path, "resnet32_cifar", nn.Linear(64, CLASSES))
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match="not a finished run"):
        export([str(tmp_path)])
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("file", [BACKBONE_FILE, CLASSIFIER_FILE])
@pytest.mark.parametrize("damage", ["cut off", "flipped"])
def test_damaged_weights_are_told_as_such(file, damage, tmp_path):
    finished_run(tmp_path, "resnet32_cifar", nn.Linear(64, CLASSES))
    content = bytearray((tmp_path / file).read_bytes())
    content[-9] ^= 1
    (tmp_path / file).write_bytes(content[:-8] if damage == "cut off" else content)
    with pytest.raises(UserError, match=f"{file} is not a readable .*: it is damaged") as refusal:
        export([str(tmp_path)])
    assert str(refusal.value).endswith(FINISH_AGAIN)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_damaged_result_and_what_is_no_run_are_told_as_such(tmp_path):
    with pytest.raises(UserError, match="the folder holds none of a run's files"):
        export([str(tmp_path)])
    with pytest.raises(UserError, match="none is not a finished run: there is no"):
        export([str(tmp_path / "none")])
    finished_run(tmp_path, "resnet32_cifar", None)
    for content in ("", "[1]", '{"classes": 5}'):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=r"result.json is damaged"):
            export([str(tmp_path)])


def test_a_file_exported_twice_is_the_same(tmp_path):
    finished_run(tmp_path, "resnet32_cifar", nn.Linear(64, CLASSES))
    files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for out in files:
        export([str(tmp_path), "--out", str(out)])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_the_refusal_says_brings_the_weights_back_bit_for_bit(copied, tinted):
    files = [copied / BACKBONE_FILE, copied / CLASSIFIER_FILE]
    before = [file.read_bytes() for file in files]
    files[0].write_bytes(before[0][:-1])
    assert "remove its result.json and give its training command" in FINISH_AGAIN
    (copied / "result.json").unlink()
    run(*words("classifier_cifar10_lt", tinted, copied))
    assert [file.read_bytes() for file in files] == before


def test_a_training_run_starts_from_an_exported_model(small, tmp_path):
    backbone = finished_run(tmp_path, "resnet32_cifar", nn.Linear(64, CLASSES))
    export([str(tmp_path)])
    config = Config(
        run=RunConfig(dir=str(tmp_path / "next")),
        data=DataConfig(root=str(small.root), loader="resident"),
        model=ModelConfig("resnet32_cifar", init_from=str(tmp_path / "model.safetensors")),
        global_batch_size=4,
        engine=EngineConfig(precision="fp32"),
    )
    trainer = Trainer(config, World())
    trainer.build()
    assert_same_state(trainer.engine.method.backbone.state_dict(), backbone.state_dict())
