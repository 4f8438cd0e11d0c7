"""Batches and images that a backbone cannot take are one line before training."""

import pytest
import torch
from torch import nn

from lt_train.config.load import load_config
from lt_train.config.schema import BACKBONES, METHODS, Config, code_of
from lt_train.errors import UserError
from lt_train.methods.base import Counts, Method
from lt_train.training.shapes import check_shapes, smallest_share

# at 32 pixels the last stage of torchvision's ResNets has one pixel an image
TINY = ["model.backbone=resnet10", "view.size=32", "eval_view.size=32", "view.blur_probability=0"]
POOL = ["unlabeled.root=pool", "unlabeled.label_column=pseudo_label", "unlabeled.share=0.5"]


def made(*words: str) -> tuple[Method, Config]:
    config = load_config(words[0], [*TINY, *words[1:]])
    return code_of(METHODS, config.method)(config, Counts.of(torch.tensor([5, 3]))), config


@pytest.mark.parametrize(
    ("words", "ranks", "fits"),
    [
        (["classifier_folder", "global_batch_size=1"], 1, False),
        (["classifier_folder", "global_batch_size=2"], 1, True),
        (["classifier_folder", "global_batch_size=3"], 2, False),
        (["classifier_folder", "global_batch_size=4"], 2, True),
        (["classifier_folder", "global_batch_size=1", "view.size=64"], 1, True),
        (["semi_cifar10_lt", *POOL, "global_batch_size=3"], 2, False),
        (["semi_cifar10_lt", *POOL, "global_batch_size=4"], 2, True),
        # all views in one pass
        (["fixmatch_cifar10_lt", "global_batch_size=2", "second_view.size=32"], 1, True),
        # frozen statistics need none
        (["crt_cifar10_lt", "global_batch_size=1"], 1, True),
        (["crt_cifar10_lt", "global_batch_size=1", "decoupled.freeze_bn_stats=false"], 1, False),
        (["moco_folder", "global_batch_size=7", "moco.bn_splits=4"], 1, False),
        (["moco_folder", "global_batch_size=8", "moco.bn_splits=4"], 1, True),
    ],
)
def test_batch_norm_needs_a_variance_on_every_rank(words, ranks, fits):
    method, config = made(*words)
    if fits:
        check_shapes(method, config, ranks)
        return
    with pytest.raises(UserError, match="one value a channel.* larger global_batch_size") as caught:
        check_shapes(method, config, ranks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["classifier_cifar10_lt"], ["semi_cifar10_lt", *POOL]], ids=str)
def test_the_smallest_share_is_that_of_both_sets(words):
    """Which are dealt from either end, so that they even out."""
    config = load_config(words[0], [*words[1:], "global_batch_size=9"])
    assert [smallest_share(config, ranks) for ranks in (1, 2, 3, 4, 5)] == [9, 4, 3, 2, 1]


def test_a_group_of_split_batch_norm_without_a_sample_is_refused():
    method, config = made("moco_folder", "global_batch_size=6", "moco.bn_splits=4")
    with pytest.raises(UserError, match="moco.bn_splits=4 groups .* a rank of 2 has 3; lower it"):
        check_shapes(method, config, 2)


def flat(side: int, declared: int) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten(), nn.Linear(2 * side**2, 7))
    network.out_features = declared
    return network


@pytest.mark.parametrize(
    ("backbone", "word"),
    [
        (lambda: flat(28, 7), "view.size=3"),
        (lambda: flat(28, 7), "view.size=33"),
        (lambda: flat(28, 7), "eval_view.size=30"),
        (lambda: flat(28, 8), "view.size=32"),
    ],
)
def test_images_of_a_size_that_a_backbone_does_not_take_are_refused(monkeypatch, backbone, word):
    monkeypatch.setitem(BACKBONES, "own", backbone)
    method, config = made("classifier_folder", "model.backbone=own", word)
    with pytest.raises(UserError, match=f"{word}: .*choose another size") as caught:
        check_shapes(method, config, 1)
    assert "\n" not in str(caught.value)


def test_nothing_of_the_method_changes_and_no_random_number_is_drawn():
    method, config = made("moco_folder", "global_batch_size=8")
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    state = torch.get_rng_state()
    check_shapes(method, config, 1)
    assert torch.equal(state, torch.get_rng_state()) and method.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())


class OwnDevice(nn.Module):
    """It can only compute where its numbers are."""

    out_features = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None] * float(images.sum() + 1)


def test_a_backbone_that_cannot_be_tried_on_shapes_alone_is_let_through(monkeypatch):
    monkeypatch.setitem(BACKBONES, "own", OwnDevice)
    method, config = made("classifier_folder", "model.backbone=own")
    check_shapes(method, config, 1)
