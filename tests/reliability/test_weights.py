"""A run's weights are damaged at random: each time they are refused, or are the same.

``LT_TRAIN_TRIALS`` asks for more trials, ``LT_TRAIN_SEED`` for others.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from lt_train.errors import UserError
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
