"""What the tests of the commands share: data sets, and a run to give them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.methods.base import Method
from lt_train.training.best_weights import BestWeights
from tests.helpers.commands import CLASSES, HELD_OUT, TRAIN, Encoded, images, run, words


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """A rank: for small networks on a busy machine, threads that wait for each other cost twenty
    times what they give.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def tinted(prepare) -> Path:
    """A labeled set of CLASSES classes, with TRAIN training and HELD_OUT other images of each."""
    held_out = np.repeat(np.arange(CLASSES), HELD_OUT)
    labels = {"train": np.repeat(np.arange(CLASSES), TRAIN), "val": held_out, "test": held_out}
    splits = {
        split: (images(of_split, seed), of_split)
        for seed, (split, of_split) in enumerate(labels.items())
    }
    return prepare(splits, samples_per_shard=16)


@pytest.fixture
def unlabeled(tmp_path) -> Path:
    """30 images whose classes only the column hidden_label knows."""
    hidden = np.arange(30) % CLASSES
    split = SourceSplit(
        None,
        [f"u{index:02d}" for index in range(30)],
        Encoded(images(hidden, 9)),
        {"hidden_label": hidden.astype(np.int32)},
    )
    classes = [f"class_{label}" for label in range(CLASSES)]
    plan = make_plan(Source("unlabeled", classes, {"train": split}), tmp_path / "unlabeled", 0, 8)
    write(plan, 1, 0.0, "tests", lambda images, size: None)
    return tmp_path / "unlabeled"


@pytest.fixture(scope="package")
def trained(one_thread, tinted, tmp_path_factory) -> Path:
    """A classifier's finished run of 20 steps, with checkpoints and evaluations at 5, 10, 15 and
    20.
    """
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(*words("classifier_cifar10_lt", tinted, folder))
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """The run, moved to another place."""
    return Path(shutil.copytree(trained, tmp_path / "moved" / "run"))


@pytest.fixture
def rigged(monkeypatch) -> Callable[[dict[int, float]], None]:
    """Function that says what accuracy each step's weights shall seem to have."""
    offer = BestWeights.offer

    def rig(by_step: dict[int, float]) -> None:
        def rigged_offer(self, step: int, _metric: float, method: Method) -> None:
            offer(self, step, by_step[step], method)

        monkeypatch.setattr(BestWeights, "offer", rigged_offer)

    return rig
