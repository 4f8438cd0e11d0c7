"""A run's weights are damaged at random: each time they are refused, or are the same. Files of
strangers, put together at random: the very network is loaded, or nothing is.

``LT_TRAIN_TRIALS`` asks for more trials, ``LT_TRAIN_SEED`` for others.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lt_train.errors import UserError
from lt_train.models.backbones import CifarResNet
from lt_train.models.namings import CHILDREN
from lt_train.models.weights import (
    BACKBONE_FILE,
    CLASSIFIER_FILE,
    export_weights,
    load_weights,
)
from lt_train.training.best_weights import BestWeights
from tests.helpers.damage import DAMAGES
from tests.helpers.networks import assert_same_state, randomize
from tests.helpers.trials import SEED, trials

TRIALS = trials(60)
BEST_FILE = "best.pt"


def network(seed: int) -> nn.Module:
    """Small, so that every part of a file is hit, and with statistics."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(6, 5))
    return randomize(body, seed)


def write(folder: Path) -> None:
    """The files of a finished run that keeps its best weights."""
    about = {"method": "classifier", "backbone": "small", "steps": "12"}
    for file in (BACKBONE_FILE, CLASSIFIER_FILE):
        export_weights(network(1), folder / file, about)
    BestWeights(folder, "val").offer(10, 70.5, network(1))


def restore(folder: Path, into: nn.Module) -> None:
    assert BestWeights(folder, "val").restore(into) == 10


READERS: dict[str, Callable[[Path, nn.Module], object]] = {
    BACKBONE_FILE: lambda folder, into: load_weights(into, folder),
    CLASSIFIER_FILE: lambda folder, into: load_weights(into, folder, CLASSIFIER_FILE),
    BEST_FILE: restore,
}


@pytest.mark.parametrize("file", READERS)
def test_damage_is_refused_or_changes_nothing(file, tmp_path):
    write(tmp_path)
    path, draw, refused = tmp_path / file, random.Random(SEED), 0
    content, expected = path.read_bytes(), network(1).state_dict()
    for trial in range(TRIALS):
        damage = draw.choice(DAMAGES)
        path.write_bytes(damage(content, draw))
        loaded = network(2)
        try:
            READERS[file](tmp_path, loaded)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error), (trial, damage)
            assert_same_state(loaded.state_dict(), network(2).state_dict())
            refused += 1
        else:
            assert_same_state(loaded.state_dict(), expected)
    assert refused, "no trial has hit anything but padding"
    path.write_bytes(content)
    READERS[file](tmp_path, network(2))


# files of strangers

PARTS = ["state_dict", "model", "module", "backbone", "encoder", "net", "0", "student", "ema"]
TRAINED_AND_COPY = [("encoder_q", "encoder_k"), ("online", "target"), ("backbone", "momentum")]


def as_children(name: str) -> str:
    """The name in an nn.Sequential of the network's parts."""
    places = {part: place for place, part in CHILDREN.items()}
    first, dot, rest = name.partition(".")
    return f"{places[first]}{dot}{rest}"


def stranger(draws: random.Random, state: dict, copy: dict) -> tuple[dict, bool]:
    """A file's content, and whether the network is whole in it."""
    head = [".".join(draws.choices(PARTS, k=draws.randint(0, 3)))]
    rename = draws.choice([str, as_children])
    networks = {"": state}
    if draws.random() < 0.5:
        networks = dict(zip(draws.choice(TRAINED_AND_COPY), (state, copy)))
    content = {}
    for part, network in networks.items():
        for name, tensor in network.items():
            content[".".join(filter(None, [*head, part, rename(name)]))] = tensor
    content["fc.bias"] = torch.rand(3)
    whole = draws.random() < 0.7
    if not whole:
        for name in [name for name in content if name.endswith(draws.choice(["bias", "weight"]))]:
            del content[name]
    names = list(content)
    draws.shuffle(names)
    return {name: content[name] for name in names}, whole


def test_a_strangers_network_is_loaded_whole_or_not_at_all(tmp_path):
    draws, path = random.Random(SEED), tmp_path / "stranger.pth"
    state, copy, before = (
        randomize(CifarResNet(blocks_per_stage=1), seed).state_dict() for seed in (1, 2, 3)
    )
    for trial in range(trials(20)):
        content, whole = stranger(draws, state, copy)
        torch.save(content, path)
        loaded = randomize(CifarResNet(blocks_per_stage=1), 3)
        try:
            load_weights(loaded, path)
        except UserError as error:
            assert not whole and "\n" not in str(error) and str(path) in str(error), (trial, error)
            assert_same_state(loaded.state_dict(), before)
        else:
            assert whole, trial
            assert_same_state(loaded.state_dict(), state)
