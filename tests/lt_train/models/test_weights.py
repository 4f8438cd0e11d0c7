"""A run's own weights: exported and loaded again, and files that do not fit."""

import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.weights import BACKBONE_FILE, export_weights, load_weights
from tests.helpers.networks import assert_same_state


@pytest.fixture
def trained() -> nn.Module:
    """A backbone whose weights and statistics are all random."""
    backbone = make_backbone("resnet32_cifar")
    generator = torch.Generator().manual_seed(0)
    for tensor in backbone.state_dict().values():
        tensor.copy_(100 * torch.rand(tensor.shape, generator=generator))
    return backbone


@pytest.fixture
def exported(trained, tmp_path):
    path = tmp_path / BACKBONE_FILE
    export_weights(trained, path, {"method": "moco", "steps": "12"})
    return path


def test_export_and_load_keep_every_bit(trained, exported):
    for source in (exported, exported.parent):
        loaded = make_backbone("resnet32_cifar")
        assert load_weights(loaded, str(source)) == len(trained.state_dict())
        assert_same_state(loaded.state_dict(), trained.state_dict())


def test_export_says_where_it_comes_from(exported):
    with safe_open(exported, "pt") as file:
        assert file.metadata() == {"format": "pt", "method": "moco", "steps": "12"}


def test_compiled_backbone_exports_plain_names(trained, exported, tmp_path):
    compiled = copy.deepcopy(trained)
    compiled.compile()
    export_weights(compiled, tmp_path / "compiled.safetensors", {})
    loaded = make_backbone("resnet32_cifar")
    load_weights(loaded, str(tmp_path / "compiled.safetensors"))
    assert_same_state(loaded.state_dict(), trained.state_dict())


def test_another_backbone_is_refused_with_counts(exported):
    backbone = make_backbone("resnet18")
    own, theirs = backbone.state_dict(), make_backbone("resnet32_cifar").state_dict()
    shared = own.keys() & theirs.keys()
    fitting = sum(own[name].shape == theirs[name].shape for name in shared)
    before = {name: tensor.clone() for name, tensor in own.items()}
    with pytest.raises(UserError) as refusal:
        load_weights(backbone, str(exported))
    for part in (
        f"{fitting} keys match",
        f"{len(own) - len(shared)} are missing",
        f"{len(theirs) - len(shared)} unexpected",
        f"{len(shared) - fitting} of another shape",
    ):
        assert part in str(refusal.value)
    assert_same_state(backbone.state_dict(), before)


def test_missing_file_is_refused(tmp_path):
    for source in (tmp_path, tmp_path / "nothing.safetensors"):
        with pytest.raises(UserError, match="there is no .*safetensors"):
            load_weights(make_backbone("resnet32_cifar"), str(source))


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_cut_off_file_is_refused(exported, size):
    exported.write_bytes(exported.read_bytes()[:size])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(make_backbone("resnet32_cifar"), str(exported))
