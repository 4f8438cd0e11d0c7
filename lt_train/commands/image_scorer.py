"""What scores images for the command predict: a run's own classifier or one made after training,
calibrated if that is asked for.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lt_train.commands.open_run import check_labeled
from lt_train.commands.posthoc import make_classifiers, training_means
from lt_train.data.batch import Batch
from lt_train.data.dataset import read_dataset
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.files import read_sealed
from lt_train.methods.base import Method
from lt_train.methods.calibration import Temperature

# by what the command line calls them, classifiers that posthoc makes
POSTHOC = {
    "tau_norm": "tau-norm",
    "logit_adjustment": "logit adjustment",
    "ncm_cosine": "NCM, cosine",
    "ncm_euclidean": "NCM, Euclidean",
}
WITH_TAU = ("tau_norm", "logit_adjustment")
TAU = re.compile(r"tau ([0-9.]+)")  # as posthoc.json has it


@dataclass(frozen=True)
class Scorer:
    """``score``: images (B, 3, H, W) -> class scores (B, C) float32. ``about``: what to tell of it.

    ``temperature``: by which scores are divided before their softmax; None: they are no logits, and
    stay as they are.
    """

    score: Callable[[torch.Tensor], torch.Tensor]
    temperature: float | None = 1.0
    about: tuple[str, ...] = ()

    def scores(self, batch: Batch) -> torch.Tensor:
        """Of several views of an image their mean, as evaluation has it."""
        return torch.stack([self.score(view).float() for view in batch.views]).mean(0)

    def best(self, batch: Batch, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest classes (B, top) and their probabilities, or else scores, (B, top)."""
        values = self.scores(batch)
        if self.temperature is not None:
            values = (values / self.temperature).softmax(1)
        values, classes = values.topk(top, dim=1)
        return classes, values


def needs_data(arguments: argparse.Namespace) -> bool:
    """Whether the run's data set is needed to score images."""
    name, _ = arguments.classifier or (None, None)
    return arguments.calibrated or name in POSTHOC.keys() - {*WITH_TAU}


def make_scorer(
    arguments: argparse.Namespace,
    method: Method,
    data: RunData | None,
    precision: torch.autocast,
    world: World,
) -> Scorer:
    """What the command line asks for, within ``precision``. Collective.

    ``data``: the run's own, where :func:`needs_data` says so.
    """
    score, is_logits, about = method.predict, True, []
    if arguments.classifier is not None:
        score, is_logits, told = _posthoc(arguments, method, data, precision, world)
        about.append(told)
    temperature = 1.0 if is_logits else None
    if arguments.calibrated:
        temperature, told = _fitted(Scorer(score), data, arguments.crops)
        about.append(told)
    return Scorer(score, temperature, tuple(about))


def _posthoc(
    arguments: argparse.Namespace,
    method: Method,
    data: RunData | None,
    precision: torch.autocast,
    world: World,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], bool, str]:
    """What a post-hoc classifier scores images by, whether that is logits, and its name."""
    name, tau = arguments.classifier
    if name in WITH_TAU and tau is None:
        tau = _chosen_tau(arguments.run, name)
    means = None if name in WITH_TAU else training_means(method, data)
    counts = method.class_counts.to(world.device)
    made = make_classifiers(method.classifier, means, counts, precision)
    found = [classifier for classifier in made if classifier.name == POSTHOC[name]]
    if not found:
        raise UserError(
            f"--classifier {name} scales the weights of a linear classifier, and {arguments.run}"
            " has another one"
        )

    def score(images: torch.Tensor) -> torch.Tensor:
        features = method.backbone(images).float()
        with torch.autocast(world.device.type, enabled=False):
            return found[0].score(features, tau)

    return score, found[0].logits, POSTHOC[name] + ("" if tau is None else f" with tau {tau:g}")


def _chosen_tau(run: Path, name: str) -> float:
    """What the command posthoc has chosen."""
    advice = f"run python -m lt_train posthoc {run} first, or give it, as in --classifier {name}=1"
    try:
        entries = read_sealed(run / "posthoc.json", advice).get("classifiers", [])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} has no posthoc.json with the tau of {name}: {advice}") from None
    texts = [entry["parameter"] for entry in entries if entry["name"] == POSTHOC[name]]
    tau = TAU.fullmatch(texts[0] or "") if texts else None
    if tau is None:
        raise UserError(f"{run}/posthoc.json has no tau of {name}: {advice}")
    return float(tau[1])


def _fitted(scorer: Scorer, data: RunData, crops: int) -> tuple[float, str]:
    """The temperature for the validation split, and what to tell of it. Collective."""
    root, split = data.config.data.root, data.config.data.val_split
    if split not in read_dataset(root).splits:
        raise UserError(
            f"--calibrated fits a temperature on a validation split, and {root} has no '{split}';"
            " name another labeled split with data.val_split=NAME"
        )
    check_labeled(data.manifest(split))
    temperature = Temperature(data.world.device)
    for batch in data.evaluate(split, crops):
        temperature.update(scorer.scores(batch), batch.label)
    fitted = temperature.compute()
    return fitted, f"temperature {fitted:g} (fitted on {split})"


def parse_classifier(text: str) -> tuple[str, float | None]:
    """``NAME`` or ``NAME=TAU``; for argparse."""
    name, given, number = text.partition("=")
    if name not in POSTHOC:
        raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(POSTHOC)}")
    if not given:
        return name, None
    if name not in WITH_TAU:
        raise argparse.ArgumentTypeError(f"{name} has no tau")
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", number):
        raise argparse.ArgumentTypeError(f"the tau '{number}' is no number of 0 or more")
    return name, float(number)
