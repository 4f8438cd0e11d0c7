"""Which weights a run is opened with: its best, a checkpoint's, or those that it has exported."""

import shutil

import pytest
import torch

from lt_train.commands.open_run import open_run, state_digest
from lt_train.config.load import load_config
from lt_train.config.schema import Config, ModelConfig, UnlabeledConfig
from lt_train.distributed import World
from tests.helpers.commands import evaluated, logged, read, refused, run, scalars, words
from tests.helpers.small_methods import new_method


def test_an_unfinished_run_is_evaluated_at_its_newest_checkpoint(copied):
    for name in ("result.json", "backbone.safetensors", "classifier.safetensors"):
        (copied / name).unlink()
    shutil.rmtree(copied / "checkpoints" / "step-00000020")
    assert scalars(evaluated(copied)["val"]) == logged(copied, "val", 15)


def test_a_run_on_a_draw_is_known_to_be_one_before_it_is_finished(tinted, tmp_path, capsys):
    """By the draw's own numbers of images a class."""
    folder = tmp_path / "run"
    run(*words("classifier_cifar10_lt", tinted, folder, "max_steps=5", "data.max_samples=20"))
    assert "train 20 images of 4 classes" in capsys.readouterr().err
    result = read(folder)
    assert sum(result["class_counts"]) == result["train_samples"] == 20
    (folder / "result.json").unlink()
    _, method = open_run(folder, [], World())
    assert method.class_counts.tolist() == result["class_counts"]


def test_without_checkpoints_the_exported_weights_serve(copied):
    shutil.rmtree(copied / "checkpoints")
    assert evaluated(copied) == read(copied)["metrics"]


def test_a_run_without_any_weights_and_one_with_a_damaged_checkpoint(copied, capsys):
    state = copied / "checkpoints" / "step-00000005" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    line = refused(capsys, "evaluate", copied, "--step", "5")
    assert "no intact checkpoint of step 5; it has 10, 15, 20" in line
    shutil.rmtree(copied / "checkpoints")
    (copied / "backbone.safetensors").unlink()
    assert "neither a checkpoint nor" in refused(capsys, "evaluate", copied)
    assert "neither a checkpoint nor" in refused(capsys, "posthoc", copied)


def test_a_finished_runs_best_weights_serve_whatever_its_config_says_later(
    tinted, tmp_path, rigged
):
    folder = tmp_path / "run"
    rigged({5: 90.0, 10: 80.0})
    options = words("classifier_cifar10_lt", tinted, folder, "max_steps=10")
    run(*options, "run.select=val")
    run(*options)  # is done already, but saves the config
    assert load_config(str(folder / "config.yaml")).run.select == "last"
    assert evaluated(folder) == read(folder)["metrics"]


def test_weights_are_known_by_what_class_scores_come_from():
    """FixMatch's trained network is in checkpoints alone: with it, the run's pseudo-labels would be
    those of other weights once its checkpoints are gone.
    """
    pool = UnlabeledConfig("pool")
    method = new_method(Config(method="fixmatch", unlabeled=pool, model=ModelConfig("resnet10")))
    digest = state_digest(method)
    with torch.no_grad():
        method.trained[1].bias.add_(1)
    assert state_digest(method) == digest
    with torch.no_grad():
        method.classifier.bias.add_(1)
    assert state_digest(method) != digest


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "it does not hold an object"),
        ("null", "it does not hold an object"),
        ("[" * 10**5, "it is nested too deeply"),
        ("\xff", "can't decode"),
        ('{"class_counts": "many"}', "'class_counts' cannot be \"many\""),
        ('{"class_counts": [1, 2.5, 3, 4]}', "'class_counts' cannot be [1, 2.5, 3, 4]"),
        ('{"class_counts": [[1, 2], [3]]}', "'class_counts' cannot be [[1, 2], [3]]"),
        ('{"class_counts": [-1, 2, 3, 4]}', "'class_counts' cannot be [-1, 2, 3, 4]"),
        ('{"classes": 4}', "'classes' cannot be 4"),
        ('{"selected_on": ["val"]}', "'selected_on' cannot be"),
    ],
)
def test_an_odd_result_is_one_line(copied, capsys, content, told):
    (copied / "result.json").write_bytes(content.encode("latin-1"))
    line = refused(capsys, "evaluate", copied)
    assert f"{copied}/result.json is damaged: " in line and told in line


def test_a_result_that_cannot_be_read_is_not_passed_over(copied, capsys):
    (copied / "result.json").unlink()
    (copied / "result.json").mkdir()
    assert "result.json: Is a directory" in refused(capsys, "evaluate", copied)


def test_what_a_user_keeps_beside_checkpoints_is_not_opened(copied, capsys):
    best = copied / "checkpoints" / "step-best"
    shutil.copytree(copied / "checkpoints" / "step-00000005", best)
    assert evaluated(copied) == read(copied)["metrics"]
    assert "it has 5, 10, 15, 20" in refused(capsys, "evaluate", copied, "--step", "7")
