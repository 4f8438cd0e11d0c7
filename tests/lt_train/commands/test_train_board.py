"""What TensorBoard shows of a training, from its start to its end and over a restart."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.boards import Shown, compared
from tests.helpers.commands import CLASSES, read, run, words

SETTINGS = ["+ldam_drw", "loss.weights_from_epoch=2", "run.log_every=2", "epochs=3"]


@pytest.fixture(scope="module")
def folder(tinted, tmp_path_factory) -> Path:
    """A run of 15 steps, evaluated at 5, 10 and 15, that was killed after step 5 and went on; class
    weights count from step 10 on, which makes step 11.
    """
    folder = tmp_path_factory.mktemp("shown") / "run"
    command = words("classifier_cifar10_lt", tinted, folder, *SETTINGS)
    run(*command)
    (folder / "result.json").unlink()
    for step in (10, 15):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    run(*command)
    return folder


def test_views_are_shown_at_the_start_and_where_it_goes_on(folder):
    (picture,) = [each for tag, each in Shown(folder).images().items() if tag.startswith("views/")]
    assert list(picture) == [1, 6]
    assert {pixels.shape for pixels in picture.values()} == {(32, 8 * 34 - 2, 3)}


def test_figures_are_drawn_when_it_is_evaluated_and_weights_once_they_count(folder):
    found = {tag: list(steps) for tag, steps in Shown(folder).images().items()}
    del found["views/view_1"]
    assert found == {
        "val/accuracy_by_class": [5, 10, 15],
        "val/confusion": [5, 10, 15],
        "test/accuracy_by_class": [15],
        "test/confusion": [15],
        "train/class_weights": [15],
    }


def test_norms_are_curves_and_what_readers_of_the_log_need_is_not(folder):
    curves = Shown(folder).scalars()
    steps = [2, 4, 5, 6, 8, 10, 12, 14, 15]
    for name in ("loss", "grad_norm", "weight_norm"):
        assert [step for step, _ in curves[f"train/{name}"]] == steps
        assert all(value > 0 for _, value in curves[f"train/{name}"])
    assert not [tag for tag in curves if tag.endswith(("last_step", "seconds_left", "samples"))]


def test_the_run_is_compared_by_its_final_metrics(folder):
    ((settings, metrics),) = compared(folder.parent).values()
    final = read(folder)["metrics"]
    assert len(final["test"]["per_class"]) == CLASSES
    for split in ("val", "test"):
        for name in ("top1", "balanced"):
            assert metrics[f"{split}/{name}"] == pytest.approx(final[split][name])
    assert settings["loss.name"] == "ldam" and settings["loss.weights_from_epoch"] == 2
