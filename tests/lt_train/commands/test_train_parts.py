"""Runs that train a part of the backbone: how they go on, and what they leave."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lt_train.config.load import load_config
from lt_train.distributed import World
from lt_train.models.backbones import make_backbone
from lt_train.models.weights import BACKBONE_FILE, export_weights, load_weights
from lt_train.training.trainer import Trainer
from tests.helpers.commands import checkpoint, evaluated, read, refused, run, scalars, words
from tests.helpers.networks import assert_same_state, randomize
from tests.helpers.tiny_vit import vit  # noqa: F401 - a fixture

CONFIG = "classifier_cifar10_lt"
ADAMW = ("optim.name=adamw", "optim.lr=0.02", "optim.head_lr_factor=3")


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory) -> Path:
    """The run that others start from."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("base") / "run"))


@pytest.fixture(scope="module")
def lora_words(base, tinted, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("lora") / "run"
    part = ("model.trainable=lora", "lora.rank=2", f"model.init_from={base}")
    return words(CONFIG, tinted, folder, *part, *ADAMW, "max_steps=10")


@pytest.fixture(scope="module")
def lora(lora_words) -> Path:
    """LoRA's finished run of 10 steps, on the run ``base``."""
    run(*lora_words)
    return folder_of(lora_words)


def folder_of(command: list[str]) -> Path:
    return Path(command[2].removeprefix("run.dir="))


def elsewhere(command: list[str], folder: Path) -> list[str]:
    return [*command[:2], f"run.dir={folder}", *command[3:]]


@pytest.fixture
def half(lora, tmp_path) -> Path:
    """A copy of the run, cut off at step 5."""
    copy = Path(shutil.copytree(lora, tmp_path / "half"))
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "step-00000010")
    return copy


def size_of(folder: Path, step: int) -> int:
    return (folder / "checkpoints" / f"step-{step:08d}" / "state.pt").stat().st_size


def test_a_checkpoint_holds_what_is_trained_alone(lora, base):
    saved = checkpoint(lora, 10)
    assert {name for name in saved if "lora_" not in name} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert size_of(lora, 10) < 0.2 * size_of(base, 20)


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(half, lora, lora_words):
    run(*elsewhere(lora_words, half))
    assert_same_state(checkpoint(half, 10), checkpoint(lora, 10))
    for name in ("backbone.safetensors", "classifier.safetensors", "lora.safetensors"):
        assert (half / name).read_bytes() == (lora / name).read_bytes()
    assert read(half)["metrics"] == read(lora)["metrics"]


def test_other_starting_weights_are_refused_and_the_same_elsewhere_are_not(
    half, lora, lora_words, base, tmp_path, capsys
):
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    there = (f"model.init_from={moved}", "resume.allow_changes=[model.init_from]")
    file = moved / BACKBONE_FILE
    content = file.read_bytes()
    export_weights(randomize(make_backbone("resnet32_cifar"), 3), file, {})
    for command in (elsewhere(lora_words, half), ["evaluate", half]):
        line = refused(capsys, *command, *there)
        assert "the weights of model.init_from have changed since the run began" in line
    file.write_bytes(content)
    run(*elsewhere(lora_words, half), *there)
    assert_same_state(checkpoint(half, 10), checkpoint(lora, 10))


def test_it_is_evaluated_with_checkpoints_and_without_them(lora, tmp_path):
    copy = Path(shutil.copytree(lora, tmp_path / "copy"))
    assert evaluated(copy) == read(lora)["metrics"]
    shutil.rmtree(copy / "checkpoints")
    exported, expected = evaluated(copy), read(lora)["metrics"]
    assert scalars(exported["test"]) == pytest.approx(scalars(expected["test"]), rel=1e-3)


def features_of(lora_words: list[str], images: torch.Tensor) -> torch.Tensor:
    """Those of the network as it was trained, updates beside weights."""
    trainer = Trainer(load_config(lora_words[0], lora_words[1:]), World())
    trainer.build()
    trainer.engine.load(folder_of(lora_words) / "checkpoints" / "step-00000010")
    with torch.no_grad():
        return trainer.engine.method.eval().backbone(images)


def test_exported_weights_give_the_same_features_merged_and_by_peft(
    lora, lora_words, base, tmp_path, capsys
):
    images = torch.randn(4, 3, 32, 32)
    expected = features_of(lora_words, images)
    run("export", lora, "--out", tmp_path / "whole.safetensors")
    whole = load_file(tmp_path / "whole.safetensors")
    merged = make_backbone("resnet32_cifar").eval()
    merged.load_state_dict({name: whole[name] for name in merged.state_dict()})
    run("export", lora, "--adapter-only", "--out", tmp_path / "peft")
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    plain = make_backbone("resnet32_cifar").eval()
    load_weights(plain, base)
    with torch.no_grad():
        before = plain(images)
        assert (before - expected).abs().max() > 1e-2
        torch.testing.assert_close(merged(images), expected, rtol=1e-5, atol=1e-5)
        by_peft = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
        torch.testing.assert_close(by_peft(images), expected, rtol=1e-5, atol=1e-5)
    again = refused(capsys, "export", lora, "--adapter-only", "--out", tmp_path / "peft")
    assert "adapter_model.safetensors exists" in again
    line = refused(capsys, "export", base, "--adapter-only")
    assert "it is no finished run of model.trainable=lora" in line


def test_a_later_stage_starts_from_plain_weights(lora, tinted, tmp_path):
    run(*words("crt_cifar10_lt", tinted, tmp_path, f"model.init_from={lora}", "max_steps=1"))
    assert_same_state(load_file(tmp_path / BACKBONE_FILE), load_file(lora / BACKBONE_FILE))


def test_random_frozen_weights_are_warned_of_and_kept(tinted, tmp_path, capsys):
    command = words(CONFIG, tinted, tmp_path, "model.trainable=norm")
    run(*command, "max_steps=2")
    told = capsys.readouterr().err
    assert "model.trainable=norm without model.init_from: what is frozen of the" in told
    frozen = checkpoint(tmp_path, 2)["backbone.conv1.weight"]
    run(*command, "max_steps=3")
    after = checkpoint(tmp_path, 3)
    assert after["backbone.conv1.weight"].equal(frozen)
    assert (after["backbone.bn1.running_mean"] == 0).all()


def test_adapters_are_exported_beside_the_backbone(vit, tinted, tmp_path, capsys):  # noqa: F811
    start, folder = tmp_path / "start.safetensors", tmp_path / "run"
    export_weights(make_backbone(vit), start, {})
    network = (f"model.backbone={vit}", f"model.init_from={start}")
    part = ("model.trainable=adapter", "adapter.dim=4", "run.select=val")
    run(*words(CONFIG, tinted, folder, *network, *part, *ADAMW, "max_steps=5"))
    best = torch.load(folder / "best.pt", weights_only=True)["method"]
    assert len(best) == 2 * 4 + 2, "two blocks' adapters, and the classifier"
    expected = read(folder)["metrics"]
    assert evaluated(folder) == expected
    for lost in ("best.pt", "checkpoints"):
        shutil.move(folder / lost, tmp_path / lost)
    assert evaluated(folder) == expected
    capsys.readouterr()
    run("export", folder)
    assert "with those of adapters, which torchvision and timm do not know" in (
        capsys.readouterr().err
    )
    later = words(CONFIG, tinted, tmp_path / "later", network[0], f"model.init_from={folder}")
    assert "no plain backbone has a place for adapters" in refused(capsys, *later)
    assert "peft has no format" in refused(capsys, "export", folder, "--adapter-only")


def test_another_optimizer_begins_with_momenta_of_its_own(half, lora_words, capsys):
    """Where it is allowed to go on with one."""
    changed = ("optim.name=sgd", "resume.allow_changes=[optim.name]")
    capsys.readouterr()
    run(*elsewhere(lora_words, half), *changed)
    told = capsys.readouterr().err
    assert "is of another optimizer, whose momenta begin anew" in told
    assert "resnet32_cifar, 0.49 M parameters, 0.02 M of them trained (4.51%)" in told
    assert "without model.init_from" not in told
    state = half / "checkpoints" / "step-00000010" / "state.pt"
    kept = torch.load(state, weights_only=True)["optimizer"]["state"]
    assert {name for values in kept.values() for name in values} == {"momentum_buffer"}
