"""Finished runs to export: of random weights, in a run's own files."""

from pathlib import Path

import torch

from lt_train.config.load import load_config
from lt_train.config.schema import METHODS, code_of
from lt_train.distributed import World
from lt_train.methods.base import Counts, Method
from lt_train.models.trainable import restrict
from lt_train.training.run_folder import RunFolder
from tests.helpers.networks import randomize

COUNTS = [500, 120, 60, 30, 10, 5]
NAMES = ["cat", "dog", "fox", "owl", "ray", "yak"]


def finish_run(folder: Path, *words: str, names: list[str] = NAMES) -> Method:
    """Leave a run's folder as training does; returns the method, ready to evaluate."""
    where = (f"run.dir={folder}", "data.root=elsewhere")
    config = load_config("classifier_cifar10_lt", [*where, *words])
    method = code_of(METHODS, config.method)(config, Counts.of(torch.tensor(COUNTS)))
    restrict(method.encoders(), config)
    randomize(method, 3)
    files = RunFolder(config, World())
    files.claim()
    files.finish(method, {"steps": 12, "classes": names, "class_counts": COUNTS}, {})
    return method.eval()
