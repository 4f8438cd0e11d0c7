"""Rotation prediction: which turn each image gets, its loss, and how features are judged."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config, KnnConfig, RotationConfig
from lt_train.distributed import rank_share
from lt_train.methods.base import Method
from lt_train.methods.rotation import four_rotations
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    FEATURES,
    make_images,
    make_labels,
    make_method,
    progress_of,
)


def rotation_method(all_four: bool = False) -> Method:
    rotation, knn = RotationConfig(all_four), KnnConfig(3, 0.01)
    method = make_method(Config(method="rotation", rotation=rotation, knn=knn))
    method.rotation_head = nn.Linear(FEATURES, 4)
    return method


def loss_of(method: Method, images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(method.rotation_head(method.backbone(images)), turns)


def test_rotations_are_numpys_quarter_turns():
    images = make_images(3)
    for turns, rotated in enumerate(four_rotations(images)):
        np.testing.assert_array_equal(rotated.numpy(), np.rot90(images.numpy(), turns, (2, 3)))


def test_each_image_is_rotated_by_its_label():
    method, images = rotation_method(), make_images(64)
    turns = method._turns(np.arange(64), 7)
    pairs = zip(images, turns)
    rotated = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in pairs])
    batch = make_batch([images], torch.full((64,), -1))
    outputs = method(batch, progress_of(method, 7))
    torch.testing.assert_close(outputs["loss"], loss_of(method, rotated, turns))


def test_all_four_rotations_of_every_image():
    method, images = rotation_method(all_four=True), make_images(5)
    rotated = [torch.rot90(images, turn, (2, 3)) for turn in range(4)]
    losses = [loss_of(method, rotated[turn], torch.full((5,), turn)) for turn in range(4)]
    batch = make_batch([images], torch.zeros(5, dtype=torch.int64))
    outputs = method(batch, progress_of(method, 0))
    torch.testing.assert_close(outputs["loss"], torch.stack(losses).mean())


def test_the_spread_is_that_of_the_features_of_rotated_images():
    method, images = rotation_method(all_four=True), make_images(5)
    batch = make_batch([images], torch.zeros(5, dtype=torch.int64))
    rotated = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    unit = F.normalize(method.backbone(rotated), dim=1)
    spread = (unit - unit.mean(0)).square().mean(0).sqrt().mean()
    found = method(batch, progress_of(method, 0))["feature_std"]
    torch.testing.assert_close(found, spread)


def test_turns_are_uniform_and_follow_from_the_place_in_the_global_batch():
    method, places = rotation_method(), np.arange(256)
    turns = torch.stack([method._turns(places, step) for step in range(100)])
    counts = turns.flatten().bincount(minlength=4)
    chi_square = ((counts - 6400) ** 2 / 6400).sum()
    assert len(counts) == 4 and chi_square < 20  # of 3 degrees of freedom: 1 in 5,000
    assert len(turns.unique(dim=0)) == 100
    shares = [np.asarray(rank_share(256, rank, 3)) for rank in range(3)]
    parts = [method._turns(share, 8) for share in shares]
    assert list(map(len, parts)) == list(map(len, shares))
    assert torch.cat(parts).equal(turns[8])


def test_a_constant_head_tells_a_quarter_of_the_rotations_and_features_are_judged_by_neighbours():
    """k-NN: each test image is a training image, so its nearest neighbour's vote is right."""
    method = rotation_method().eval()
    nn.init.zeros_(method.rotation_head.weight)
    images, labels = make_images(9), make_labels(9)
    rows = {"train": [slice(0, 9)], "val": [slice(0, 4), slice(4, 8), slice(8, 9)]}

    def load(split: str):
        return [make_batch([images[part]], labels[part]) for part in rows[split]]

    with torch.no_grad():
        metrics = method.evaluate(load, "val")
    assert metrics["rotation_top1"] == 25 and metrics["knn_top1"] == 100 and metrics["samples"] == 9
    assert "knn_ece" not in metrics
