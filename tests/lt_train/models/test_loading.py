"""Backbones for programs of one's own, from whatever holds their weights."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from lt_train.config.load import load_config, to_yaml
from lt_train.config.schema import Config
from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.loading import load_backbone
from lt_train.models.trainable import ADAPTER, restrict
from lt_train.models.weights import BACKBONE_FILE, export_weights
from tests.helpers.networks import assert_same_state, randomize
from tests.helpers.ranks import one_thread  # noqa: F401 - a fixture

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = "timm/test_vit.r160_in1k"


def finished(folder: Path, *overrides: str) -> tuple[Config, nn.Module]:
    """A run's folder, as training leaves it."""
    config = load_config("classifier_cifar10_lt", ["data.root=set", *overrides])
    network = make_backbone(config.model.backbone, config.eval_view.size)
    restrict([network], config)
    (folder / "config.yaml").write_text(to_yaml(config))
    about = {"backbone": config.model.backbone}
    export_weights(randomize(network, 1), folder / BACKBONE_FILE, about)
    return config, network


def features_of(network: nn.Module, size: int) -> torch.Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network(images)


def test_a_finished_run_gives_its_backbone_and_how_it_sees(tmp_path):
    config, trained = finished(tmp_path, "model.mean=[0.5,0.4,0.3]", "eval_view.size=28")
    loaded = load_backbone(str(tmp_path))
    assert not loaded.training and all(each.requires_grad for each in loaded.parameters())
    assert (loaded.out_features, loaded.input_size) == (64, 28)
    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), tuple(config.model.std))
    assert features_of(loaded, 28).equal(features_of(trained.eval(), 28))


def test_a_file_of_ours_says_itself_what_it_is_of(tmp_path):
    _, trained = finished(tmp_path)
    loaded = load_backbone(tmp_path / BACKBONE_FILE)
    assert_same_state(loaded.state_dict(), trained.state_dict())
    assert (loaded.mean, loaded.std, loaded.input_size) == (*IMAGENET, None)


def test_a_stranger_s_checkpoint_is_of_the_network_that_is_named(tmp_path):
    theirs = randomize(torchvision.models.resnet18(num_classes=5), 2)
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pth")
    loaded = load_backbone(tmp_path / "theirs.pth", "resnet18", size=96)
    assert (loaded.out_features, loaded.input_size) == (512, 96)
    theirs.fc = nn.Identity()
    assert features_of(loaded, 96).equal(features_of(theirs, 96))


def test_one_of_several_networks_can_be_chosen(tmp_path):
    student, teacher = (randomize(make_backbone("resnet10"), seed) for seed in (1, 2))
    both = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    torch.save(both, tmp_path / "both.pth")
    for prefix, network in (("student", student), (None, teacher)):
        loaded = load_backbone(tmp_path / "both.pth", "resnet10", prefix=prefix)
        assert_same_state(loaded.state_dict(), network.state_dict())


def test_timm_knows_how_its_networks_see(tmp_path):
    export_weights(make_backbone(VIT, 160), tmp_path / "vit.safetensors", {"backbone": VIT})
    loaded = load_backbone(tmp_path / "vit.safetensors")
    assert loaded.input_size == 160 and loaded.mean == (0.5, 0.5, 0.5)
    assert features_of(loaded, 160).shape == (2, loaded.out_features)


def test_adapters_come_with_the_backbone(tmp_path):
    start = make_backbone(VIT, 160)
    export_weights(start, tmp_path / "start.safetensors", {})
    run = tmp_path / "run"
    run.mkdir()
    words = "model.trainable=adapter", f"model.init_from={tmp_path}/start.safetensors"
    size = "eval_view.size=160", "eval_view.resize=160"
    _, trained = finished(run, f"model.backbone={VIT}", *size, *words)
    loaded = load_backbone(run)
    assert_same_state(loaded.state_dict(), trained.state_dict())
    assert all(each.requires_grad for each in loaded.parameters())
    assert any(ADAPTER in name for name in loaded.state_dict())


def written(folder: Path, *files: str) -> Sequence[str]:
    for file in files:
        (folder / file).write_bytes(b"x" * 100)
    return [str(folder / file) for file in files]


def test_mistakes_are_one_line(tmp_path):
    finished(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((tmp_path / "config.yaml").read_text())
    (tmp_path / "empty").mkdir()
    odd, pickled = written(tmp_path, "odd.safetensors", "odd.pth")
    for source, name, message in (
        (tmp_path / "no.safetensors", None, "there is no .*no.safetensors"),
        (tmp_path / "no", None, "there is no .*/no$"),
        (tmp_path / "no", "resnet18", "there is no .*/no"),
        (tmp_path / "empty", None, "'.*empty' is not a run: it has no config.yaml"),
        (tmp_path / "begun", None, "train the run to its end first"),
        (odd, None, "odd.safetensors is not a readable safetensors file"),
        (pickled, None, "odd.pth does not say which network it is of: .* or timm/NAME"),
        (pickled, "resnet18", "odd.pth is not a readable checkpoint"),
        (tmp_path / BACKBONE_FILE, "resnet18", "does not fit: .* does model.backbone match"),
        (tmp_path, "resnet18", "does not fit"),
        (tmp_path / BACKBONE_FILE, "resnet19", "there is no 'resnet19', did you mean 'resnet1"),
        (tmp_path / BACKBONE_FILE, "timm/no_such", "has no 'no_such'"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            load_backbone(source, name)
        assert "\n" not in str(refusal.value)
