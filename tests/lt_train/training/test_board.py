"""What TensorBoard reads of a run, also of one that was cut off and goes on."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lt_train.config.load import to_yaml
from lt_train.config.schema import Config, OptimConfig
from lt_train.training.board import settings
from lt_train.training.monitor import Monitor
from tests.helpers.boards import Shown, compared

CONFIG = Config(data=replace(Config().data, root="a set"), optim=OptimConfig(lr=0.25))
VALUES = {"loss": 1.5, "lr": 0.25, "images_per_s": 10.0, "seconds_left": 3.0, "last_step": 9}
METRICS = {"samples": 7, "top1": 40.0, "few_shot": None, "per_class": [40.0]}


def picture(value: int) -> dict[str, np.ndarray]:
    return {"views/view_1": np.full((2, 3, 3), value, np.uint8)}


def attempt(folder: Path, first_step: int, last_step: int, config: Config = CONFIG) -> None:
    """A run, or what goes on with it, that evaluates at the end and shows its number in pictures
    of its first step.
    """
    with Monitor(folder, first_step, 9, enabled=True) as monitor:
        monitor.begin(config)
        monitor.show(first_step + 1, lambda: picture(10 * first_step + last_step))
        for step in range(first_step + 1, last_step + 1):
            monitor.record(step, {**VALUES, "loss": 100.0 * last_step + step})
        monitor.evaluated(last_step, "val", METRICS)
        monitor.end()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs beside each other. One was killed twice, once before its first checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    for attempted in ((0, 3), (0, 5), (4, 6)):
        attempt(folder / "killed", *attempted)
    other = replace(CONFIG, method="moco", optim=OptimConfig(lr=0.5))
    attempt(folder / "other", 0, 2, other)
    return folder


def test_curves_are_grouped_and_of_no_step_twice(folder):
    curves = Shown(folder / "killed").scalars()
    kept = [(step, 500.0 + step) for step in range(1, 5)]
    assert curves["train/loss"] == [*kept, (5, 605.0), (6, 606.0)]
    assert curves["val/top1"] == [(6, 40.0)]
    assert curves.keys() == {"train/loss", "train/lr", "train/images_per_s", "val/top1"}


def test_pictures_of_a_step_are_those_of_the_last_attempt_at_it(folder):
    (found,) = Shown(folder / "killed").images().values()
    assert found.keys() == {1, 5}
    assert (found[1] == 5).all() and (found[5] == 46).all() and found[1].shape == (2, 3, 3)


def test_the_config_and_the_command_line_are_texts(folder):
    texts = Shown(folder / "killed").texts()
    assert [step for step, _ in texts["config"]] == [1, 5]
    lines = texts["config"][0][1].splitlines(keepends=True)
    assert "".join(line.removeprefix("    ") for line in lines) == to_yaml(CONFIG)
    assert sys.orig_argv[-1] in texts["command"][-1][1]


def test_runs_are_compared_by_what_they_learn_from_and_their_last_metrics(folder):
    """Whichever metrics and settings the first of them has."""
    found = compared(folder)
    assert found.keys() == {"killed", "other"}
    assert [own["optim.lr"] for own, _ in found.values()] == [0.25, 0.5]
    assert [own["method"] for own, _ in found.values()] == ["classifier", "moco"]
    for name, loss in (("killed", 606.0), ("other", 202.0)):
        metrics = found[name][1]
        assert metrics["train/loss"] == loss and metrics["val/top1"] == 40


def test_settings_are_what_changes_what_is_learnt():
    found = settings(CONFIG)
    assert found["seed"] == 0 and found["optim.nesterov"] == "false"
    assert found["model.mean"] == "[0.485, 0.456, 0.406]"
    assert not {"data.root", "run.log_every", "engine.name", "second_view"} & found.keys()


def test_where_nothing_is_recorded_nothing_is_drawn(tmp_path):
    with Monitor(tmp_path, 0, 9, enabled=False) as monitor:
        monitor.begin(CONFIG)
        monitor.show(1, lambda: pytest.fail("drawn"))
        assert not monitor.evaluated(1, "val", METRICS)
        monitor.end()
    assert not list(tmp_path.iterdir())
