"""Networks of timm as backbones: what they compute, how they see images, whose weights fit."""

import socket
import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lt_train.config.load import load_config
from lt_train.errors import UserError
from lt_train.models import timm_backbones
from lt_train.models.backbones import make_backbone
from lt_train.models.split_batch_norm import split_batch_norms
from lt_train.models.weights import export_weights, load_weights
from tests.helpers.networks import randomize

SMALL = [  # of several kinds, and with what they have between features and head
    *("resnet10t", "vit_tiny_patch16_224", "tf_efficientnet_lite0", "mobilenetv3_small_050"),
    "convnext_atto",
]


@pytest.mark.parametrize("name", SMALL)
def test_features_are_timm_s_before_its_head_and_weights_go_both_ways(name, tmp_path):
    theirs = randomize(timm.create_model(name, num_classes=5), 0).eval()
    save_file(theirs.state_dict(), tmp_path / "whole.safetensors")
    backbone = make_backbone(f"timm/{name}").eval()
    load_weights(backbone, tmp_path / "whole.safetensors")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        found = backbone(images)
    assert found.shape == (2, backbone.out_features)
    torch.testing.assert_close(found, expected)
    export_weights(backbone, tmp_path / "exported.safetensors", {})
    again = timm.create_model(name, num_classes=0).eval()
    again.load_state_dict(load_file(tmp_path / "exported.safetensors"))
    with torch.no_grad():
        assert again(images).equal(found)


def test_a_config_starts_from_how_the_weights_see_images_and_has_the_last_word():
    name = "model.backbone=timm/vit_base_patch16_224.augreg_in21k"
    config = load_config("classifier_folder", [name])
    assert config.model.mean == config.model.std == (0.5, 0.5, 0.5)
    assert config.view.interpolation == config.eval_view.interpolation == "bicubic"
    assert (config.view.size, config.eval_view.size, config.eval_view.resize) == (224, 224, 248)
    larger = load_config("classifier_folder", ["model.backbone=timm/vit_base_patch16_384"])
    assert (larger.view.size, larger.eval_view.size, larger.eval_view.resize) == (384, 384, 384)
    own = ["view.size=96", "eval_view.size=96", "eval_view.resize=96", "model.mean=[0.1,0.2,0.3]"]
    config = load_config("classifier_folder", [*own, name, "view.interpolation=bilinear"])
    assert (config.view.size, config.eval_view.resize) == (96, 96)
    assert config.model.mean == (0.1, 0.2, 0.3)
    assert (config.view.interpolation, config.eval_view.interpolation) == ("bilinear", "bicubic")
    assert load_config("classifier_folder", []).model.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "words, reason",
    [
        (["model.backbone=timm/vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'"),
        (["model.backbone=timm/vit_tiny_patch16_224.x"], "no weights 'x'.*augreg_in21k"),
        (["model.backbone=tim/resnet18"], "there is no 'tim/resnet18'.*timm/NAME"),
        (["model.pretrained=true"], "resnet50 names no weights"),
    ],
)
def test_what_there_is_not_is_one_line(words, reason):
    with pytest.raises(UserError, match=reason):
        load_config("classifier_folder", words)


def test_a_network_for_one_size_is_made_for_the_size_of_the_views():
    for name, size in (("vit_tiny_patch16_224", 96), ("resnet10t", 96)):
        backbone = make_backbone(f"timm/{name}", size).eval()
        with torch.no_grad():
            assert backbone(torch.zeros(1, 3, size, size)).shape == (1, backbone.out_features)


def test_positions_of_weights_for_another_size_are_resampled(tmp_path):
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", num_classes=3), 1)
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    backbone = make_backbone("timm/vit_tiny_patch16_224", 96)
    load_weights(backbone, tmp_path / "vit.safetensors")
    positions = timm.layers.resample_abs_pos_embed(theirs.pos_embed, (6, 6))
    torch.testing.assert_close(backbone.pos_embed, positions)
    assert backbone.blocks[3].mlp.fc1.weight.equal(theirs.blocks[3].mlp.fc1.weight)


def test_the_layout_of_efficientnet_pytorch_is_understood(tmp_path):
    theirs = randomize(timm.create_model("tf_efficientnet_b0", num_classes=7), 2).state_dict()
    torch.save(dict(zip(efficientnet_pytorch_names(theirs), theirs.values())), tmp_path / "b0.pth")
    backbone = make_backbone("timm/tf_efficientnet_b0")
    load_weights(backbone, tmp_path / "b0.pth")
    for name, tensor in backbone.state_dict().items():
        assert tensor.equal(theirs[name]), name


def efficientnet_pytorch_names(state: dict[str, torch.Tensor]) -> list[str]:
    """timm's names as Melas-Kyriazi's project has them, written down module by module."""
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    squeezed = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = {
        **{"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"},
        **{"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"},
    }
    blocks, named = [], []
    for name in state:
        module, _, leaf = name.rpartition(".")
        top, *inner = module.split(".")
        if top != "blocks":
            named.append(f"{ends.get(module, '_fc')}.{leaf}")
            continue
        if (block := inner[:2]) not in blocks:
            blocks.append(block)
        modules = squeezed | (first if block[0] == "0" else others)
        named.append(f"_blocks.{blocks.index(block)}.{modules['.'.join(inner[2:])]}.{leaf}")
    return named


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_file_to_fetch_is_named_and_nothing_else_said(
    monkeypatch, tmp_path, caplog, offline
):
    def refused(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the hub's own attempts
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    wanted = (
        "model.safetensors of https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k is "
        "neither .*hf download timm/vit_tiny_patch16_224.augreg_in21k model.safetensors.*init_from"
    )
    with pytest.raises(UserError, match=wanted):
        timm_backbones.weights_file("vit_tiny_patch16_224.augreg_in21k")
    assert not caplog.records


def test_weights_in_the_hub_s_cache_are_taken_without_a_network(monkeypatch, tmp_path):
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert timm_backbones.weights_file("resnet18.a1_in1k").read_bytes() == b"weights"


def test_batch_norm_that_cannot_be_split_is_refused_and_none_has_nothing_to_split():
    with pytest.raises(UserError, match="BatchNormAct2d of this backbone cannot be split"):
        split_batch_norms(make_backbone("timm/tf_efficientnet_lite0"), 2)
    split_batch_norms(make_backbone("timm/tf_efficientnet_lite0"), 1)
    split_batch_norms(make_backbone("timm/vit_tiny_patch16_224"), 4)
    with_plain_ones = make_backbone("timm/resnet10t")
    split_batch_norms(with_plain_ones, 2)
    assert not any(type(each) is nn.BatchNorm2d for each in with_plain_ones.modules())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_layer_norm_computes_in_float32_within_bf16(kind):
    """What comes out may be rounded to what came in, once."""
    torch.manual_seed(0)
    norm = timm.layers.LayerNorm(64)
    tokens = (1000 + torch.randn(4, 64)).to(kind)  # whose variance bf16 could not tell
    exact = torch.nn.functional.layer_norm(tokens.double(), (64,)).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert norm(tokens).float().sub(exact).abs().max() < (
            0.02 if kind == torch.bfloat16 else 1e-3
        )
