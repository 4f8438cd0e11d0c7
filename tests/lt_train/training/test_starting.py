"""Every method that trains its backbone can train a part of it alone."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from lt_train.config.load import load_config
from lt_train.config.schema import METHODS
from lt_train.distributed import World
from lt_train.models.backbones import make_backbone
from lt_train.models.weights import BACKBONE_FILE, export_weights
from lt_train.training.trainer import Trainer
from tests.golden.golden_runs import HERE, LOADERS, draw_sets
from tests.golden.golden_runs import METHODS as CASES
from tests.helpers.commands import checkpoint
from tests.helpers.networks import randomize
from tests.helpers.ranks import one_thread  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

FREEZE = [name for name, traits in METHODS.items() if traits.from_finished]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, str]:
    return draw_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A file with a backbone."""
    file = tmp_path_factory.mktemp("start") / "backbone.safetensors"
    export_weights(randomize(make_backbone("resnet32_cifar"), 0), file, {})
    return file


@pytest.mark.parametrize("name", [name for name in METHODS if name not in FREEZE])
def test_a_run_keeps_what_it_trains_and_ends_with_plain_weights(name, sets, start, tmp_path):
    settings = [word.format(**sets, runs=tmp_path) for word in CASES[name]]
    part = ["model.trainable=lora", "lora.rank=1", f"model.init_from={start}", "max_steps=2"]
    here = [f"data.root={sets['set']}", f"run.dir={tmp_path}", *LOADERS["resident"]]
    config = load_config(str(HERE / "base.yaml"), [*here, *settings, *part])
    trainer = Trainer(config, World())
    trainer.run()
    method, saved = trainer.engine.method, checkpoint(tmp_path, 2)
    backbones = [each for each in saved if ".layer" in each or ".conv1" in each]
    assert backbones and all("lora_" in each for each in backbones)
    trained = {each for each, value in method.named_parameters() if value.requires_grad}
    assert trained <= saved.keys()
    assert any(saved[each].any() for each in trained if "lora_B" in each)
    exported, before = load_file(tmp_path / BACKBONE_FILE), load_file(start)
    assert exported.keys() == before.keys()
    assert not exported["layer1.0.conv1.weight"].equal(before["layer1.0.conv1.weight"])
    assert exported["bn1.running_mean"].equal(before["bn1.running_mean"])
