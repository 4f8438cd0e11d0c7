"""``python -m lt_train posthoc RUN_DIR``: classifiers that need no training, from one pass over a
finished run's features.

tau-normalisation and nearest class mean (Kang et al. 2020), and post-hoc logit adjustment (Menon et
al. 2021). tau is chosen on the validation split, by the mean of the classes' accuracies; a set
without one gets tau 1, unless the named switch chooses on the test split, as some published numbers
do.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from lt_train import distributed
from lt_train.commands.open_run import check_classifier, check_labeled, open_run, write_metrics
from lt_train.console import console, setup_logging
from lt_train.data.run_data import RunData
from lt_train.distributed import all_reduce_
from lt_train.errors import UserError
from lt_train.methods.metrics import Accuracy, collect_features
from lt_train.training.engine import autocast

OTHER_DATA = ("data.root=", "data.train_split=", "data.test_split=")
TAUS = [round(0.1 * step, 1) for step in range(21)]
SHOWN = {
    "top1": "top-1",
    "balanced": "balanced",
    "many_shot": "many",
    "medium_shot": "medium",
    "few_shot": "few",
    "ece": "ECE",
}


@dataclass(frozen=True)
class PosthocClassifier:
    """``score``: features (B, D) and tau -> class scores (B, C)."""

    name: str
    score: Callable[[torch.Tensor, float | None], torch.Tensor]
    has_tau: bool = False
    logits: bool = True  # whether a softmax of the scores means anything


@dataclass(frozen=True)
class Features:
    """This rank's part of a split: ``features`` (B, D) float32, ``labels`` (B,)."""

    features: torch.Tensor
    labels: torch.Tensor


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    world = distributed.start()
    setup_logging(world.is_main)
    config, method = open_run(arguments.run, arguments.overrides, world)
    check_classifier(arguments.run, config)
    data = RunData(config, world)
    have = data.train_set.dataset.splits
    names = {
        name: split
        for name, split in (("val", config.data.val_split), ("test", config.data.test_split))
        if split in have
    }
    if not names:
        raise UserError(
            f"{config.data.root} has neither a split '{config.data.val_split}' nor"
            f" '{config.data.test_split}' to evaluate on"
        )
    if config.data.val_split == config.data.test_split:
        del names["val"]  # it would choose on the test split without a word
    if arguments.select_on_test and "test" not in names:
        raise UserError(
            f"--select-on-test: {config.data.root} has no split '{config.data.test_split}'"
        )
    for split in (config.data.train_split, *names.values()):
        check_labeled(data.manifest(split))
    if arguments.out is None and any(word.startswith(OTHER_DATA) for word in arguments.overrides):
        raise UserError(
            "other data than the run's own: name a file for its numbers with --out; reports take"
            " posthoc.json for the run's own"
        )
    with torch.no_grad():
        with autocast(config, world):
            means = class_means(
                method.backbone,
                data.evaluate(config.data.train_split),
                len(method.class_counts),
                world.device,
            )
            splits = {
                name: collect(method.backbone, data.evaluate(split), world.device)
                for name, split in names.items()
            }
        selected_on = "test" if arguments.select_on_test else "val" if "val" in splits else "none"
        found = []
        for one in make_classifiers(
            method.classifier, means, method.class_counts, autocast(config, world)
        ):
            tau = (
                choose_tau(one, splits.get(selected_on), method.class_counts)
                if one.has_tau
                else None
            )
            metrics = {
                names[split]: measure(one, part, tau, method.class_counts)
                for split, part in splits.items()
            }
            found.append(
                {
                    "name": one.name,
                    "parameter": None if tau is None else f"tau {tau:g}",
                    "metrics": metrics,
                }
            )
    if world.is_main:
        _report(
            arguments.out or arguments.run / "posthoc.json",
            {"data": config.data.root, "selected_on": selected_on, "classifiers": found},
        )
    distributed.stop()
    return 0


def make_classifiers(
    classifier: nn.Module,
    means: torch.Tensor,
    class_counts: torch.Tensor,
    precision: torch.autocast,
) -> list[PosthocClassifier]:
    """Every post-hoc classifier for a classifier as it was trained, in that ``precision``.

    ``means`` (C, D): of the classes' features.
    """
    log_prior = (class_counts.clamp(min=1) / class_counts.clamp(min=1).sum()).log().to(means.device)
    unit_means = F.normalize(means, dim=1)
    unseen = (class_counts == 0).to(means.device)  # they have no mean

    def trained(features: torch.Tensor) -> torch.Tensor:
        with precision:
            return classifier(features).float()

    def nearest(similarity: torch.Tensor) -> torch.Tensor:
        return similarity.masked_fill(unseen, -torch.inf)

    classifiers = [
        PosthocClassifier("as trained", lambda features, _: trained(features)),
        PosthocClassifier(
            "logit adjustment",
            lambda features, tau: trained(features) - tau * log_prior,
            has_tau=True,
        ),
        PosthocClassifier(
            "NCM, cosine",
            lambda features, _: nearest(F.normalize(features, dim=1) @ unit_means.T),
            logits=False,
        ),
        PosthocClassifier(
            "NCM, Euclidean",
            lambda features, _: nearest(-torch.cdist(features, means)),
            logits=False,
        ),
    ]
    if isinstance(
        classifier, nn.Linear
    ):  # a cosine classifier's weights have no norms, and other classifiers no one matrix
        norms = classifier.weight.norm(dim=1)
        # without the bias, as the paper has it
        classifiers.insert(
            1,
            PosthocClassifier(
                "tau-norm",
                lambda features, tau: features @ classifier.weight.T / norms**tau,
                has_tau=True,
            ),
        )
    return classifiers


def choose_tau(one: PosthocClassifier, split: Features | None, class_counts: torch.Tensor) -> float:
    """The tau of the best balanced accuracy on ``split``, the smaller one of equals; 1 without a
    split. Collective.
    """
    if split is None:
        return 1.0
    return max(
        TAUS, key=lambda tau: (measure(one, split, tau, class_counts)["balanced"] or 0.0, -tau)
    )


def measure(
    one: PosthocClassifier, split: Features, tau: float | None, class_counts: torch.Tensor
) -> dict:
    """Metrics of the one over all ranks' parts of a split. Collective."""
    accuracy = Accuracy(class_counts, split.features.device, one.logits)
    for features, labels in zip(split.features.split(4096), split.labels.split(4096)):
        if len(labels):
            accuracy.update(one.score(features, tau), labels)
    return accuracy.compute()


def collect(backbone: nn.Module, loader: Iterable[dict], device: torch.device) -> Features:
    """The backbone's features of this rank's part of a split."""
    return Features(
        *collect_features(
            lambda images: backbone(images).float(), loader, backbone.out_features, device
        )
    )


def class_means(
    backbone: nn.Module, loader: Iterable[dict], classes: int, device: torch.device
) -> torch.Tensor:
    """Mean feature of each class (C, D) over all ranks, without keeping the features; 0 for classes
    without samples. Collective.
    """
    sums = torch.zeros(
        classes, backbone.out_features + 1, dtype=torch.float64, device=device
    )  # the last column counts
    for batch in loader:
        features = F.pad(backbone(batch.views[0]).double(), (0, 1), value=1.0)
        sums.index_add_(0, batch.label, features)
    all_reduce_(sums)
    return (sums[:, :-1] / sums[:, -1:].clamp(min=1)).float()


def _report(path: Path, content: dict) -> None:
    write_metrics(path, content)
    table = Table("classifier", "split", *SHOWN.values())
    for one in content["classifiers"]:
        name = one["name"] if one["parameter"] is None else f"{one['name']} ({one['parameter']})"
        for split, metrics in one["metrics"].items():
            table.add_row(
                name,
                split,
                *("-" if metrics.get(key) is None else f"{metrics[key]:.2f}" for key in SHOWN),
            )
    console.print(table)
    about = {
        "val": "tau was chosen on the validation split",
        "none": (
            "there is no validation split: tau is 1; --select-on-test chooses on the test split"
        ),
        "test": "tau was chosen on the TEST split: no fair estimate",
    }
    console.print(f"{about[content['selected_on']]}; all numbers: {path}", highlight=False)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lt_train posthoc",
        description=(
            "Evaluate tau-normalisation, nearest class mean and post-hoc logit adjustment on a"
            " classifier's run. Writes RUN_DIR/posthoc.json."
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="e.g. data.root=DIR")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="(default: RUN_DIR/posthoc.json, which reports read)",
    )
    parser.add_argument(
        "--select-on-test",
        action="store_true",
        help="choose tau on the test split, as some published numbers do; marked in the output",
    )
    return parser.parse_intermixed_args(words)
