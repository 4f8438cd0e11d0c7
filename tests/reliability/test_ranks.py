"""A run that was cut off and went on ends as one that never was, on any number of ranks.

Two ranks cannot show it: what they add up comes out the same in either order. On four too with
``LT_TRAIN_TRIALS=2``.
"""

from pathlib import Path

import pytest
import torch

from lt_train.config.load import load_config
from lt_train.distributed import World
from lt_train.training.trainer import Trainer
from tests.golden.golden_runs import HERE, draw_sets
from tests.helpers.all_methods import RUNS, settings_of
from tests.helpers.commands import checkpoint
from tests.helpers.ranks import run_on_ranks
from tests.helpers.trials import trials

pytestmark = pytest.mark.slow

STEPS, CUT = 5, 2  # global steps in all, and before the run is cut off


def train_whole_and_cut(world: World, sets: dict[str, str], folder: Path) -> dict[str, list[dict]]:
    """By method, the metrics of the undisturbed run and of the one that was cut off."""
    torch.set_num_threads(1)
    metrics = {}
    for name in RUNS:
        settings = settings_of(name, sets, folder)
        whole, cut = folder / name, folder / f"{name}, cut off"
        parts = [(whole, STEPS), (cut, CUT), (cut, STEPS)]
        results = []
        for run, steps in parts:
            where = [f"run.dir={run}", f"max_steps={steps}"]
            config = load_config(str(HERE / "base.yaml"), [*settings, *where])
            results.append(Trainer(config, world).run())
        metrics[name] = [results[0]["metrics"], results[2]["metrics"]]
    return metrics


@pytest.mark.parametrize("ranks", [3, 4][: trials(1)])
def test_every_method_ends_as_if_it_had_not_been_cut_off(ranks, tmp_path):
    (tmp_path / "sets").mkdir()
    sets = draw_sets(tmp_path / "sets")
    found = run_on_ranks(ranks, train_whole_and_cut, sets, tmp_path, timeout=600)
    for name in RUNS:
        whole = checkpoint(tmp_path / name, STEPS)
        cut = checkpoint(tmp_path / f"{name}, cut off", STEPS)
        assert [key for key, value in whole.items() if not value.equal(cut[key])] == [], name
        for metrics in found:
            undisturbed, disturbed = metrics[name]
            assert undisturbed == disturbed == found[0][name][0], name
