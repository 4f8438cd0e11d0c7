"""A run's own weights: exported and loaded again, and files that do not fit."""

import copy

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.tensor_files import CHECKSUM
from lt_train.models.weights import (
    BACKBONE_FILE,
    CLASSIFIER_FILE,
    FINISH_AGAIN,
    export_weights,
    load_weights,
)
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
        about = file.metadata()
    assert len(about.pop(CHECKSUM)) == 64
    assert about == {"format": "pt", "method": "moco", "steps": "12", "written_by": "lt_train"}


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


def test_a_folder_without_the_file_is_told_by_what_it_is(exported, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "config.yaml").write_text("seed: 1\n")
    for folder, file, what in (
        (tmp_path / "elsewhere", BACKBONE_FILE, "the folder holds none of a run's files"),
        (tmp_path / "started", BACKBONE_FILE, "train the run to its end first"),
        (tmp_path, CLASSIFIER_FILE, "the run's method has none"),
    ):
        with pytest.raises(UserError, match=f"there is no {folder / file}: {what}"):
            load_weights(make_backbone("resnet32_cifar"), folder, file)


def test_one_flipped_bit_of_a_runs_weights_is_refused_with_what_to_do(exported):
    content = bytearray(exported.read_bytes())
    content[-1000] ^= 4
    exported.write_bytes(content)
    for source in (exported, exported.parent):
        with pytest.raises(UserError) as refusal:
            load_weights(make_backbone("resnet32_cifar"), source)
        assert f"{exported} is not a readable safetensors file: it is damaged" in str(refusal.value)
        assert str(refusal.value).endswith(FINISH_AGAIN)


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_cut_off_file_is_refused(exported, size):
    exported.write_bytes(exported.read_bytes()[:size])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_weights(make_backbone("resnet32_cifar"), str(exported))
