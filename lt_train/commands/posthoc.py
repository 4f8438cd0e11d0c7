"""``python -m lt_train posthoc RUN_DIR``: classifiers that need no training, from one pass over a
finished run's features.

tau-normalisation and nearest class mean (Kang et al. 2020), and post-hoc logit adjustment (Menon et
al. 2021). tau is chosen on the validation split, by the mean of the classes' accuracies; without
such a split it is 1, unless --select-on-test chooses on the test split, as some published numbers
do.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.commands.open_run import check_classifier, check_labeled, open_run
from lt_train.commands.results import JSON, print_json, write_metrics
from lt_train.console import say, setup_logging, show
from lt_train.data.batch import Loader
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.methods.metrics import Accuracy, class_means, collect_features
from lt_train.training.precision import autocast
from lt_train.training.preface import tell_evaluation

OTHER_DATA = ("data.root=", "data.train_split=", "data.test_split=", "data.max_samples=")
TAUS = [round(0.1 * step, 1) for step in range(21)]
SHOWN = {  # metrics in the printed table, and their columns
    "top1": "top-1",
    "balanced": "balanced",
    "many_shot": "many",
    "medium_shot": "medium",
    "few_shot": "few",
    "ece": "ECE",
}
ABOUT_TAU = {  # by the split that it was selected on
    "val": "tau was chosen on the validation split",
    "none": "there is no validation split: tau is 1; --select-on-test chooses on the test split",
    "test": "tau was chosen on the TEST split: no fair estimate",
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
    with distributed.joined() as world:
        setup_logging(world.is_main)
        _measure(arguments, world)
    return 0


def _measure(arguments: argparse.Namespace, world: World) -> None:
    config, method = open_run(arguments.run, arguments.overrides, world)
    check_classifier(arguments.run, config)
    data = RunData(config, world)
    splits = _splits(data, arguments.select_on_test)
    if arguments.out is None and any(word.startswith(OTHER_DATA) for word in arguments.overrides):
        raise UserError(
            "other data than the run's own: name a file for its numbers with --out; reports take"
            " posthoc.json for the run's own"
        )
    selected_on = "val" if "val" in splits else "none"
    if arguments.select_on_test:
        selected_on = "test"
    tell_evaluation(data, (config.data.train_split, *splits.values()))
    classifiers = evaluate_classifiers(method, data, splits, selected_on)
    if world.is_main:
        path = arguments.out or arguments.run / "posthoc.json"
        root = config.data.root
        content = {"data": root, "selected_on": selected_on, "classifiers": classifiers}
        if arguments.json:
            print_json(content)
        else:
            _show(path, content)
        write_metrics(path, content)


def _splits(data: RunData, select_on_test: bool) -> dict[str, str]:
    """The names of the splits to evaluate on: of "val" and "test", those that there are."""
    config = data.config.data
    have = data.train_set.dataset.splits
    wanted = {"val": config.val_split, "test": config.test_split}
    splits = {part: name for part, name in wanted.items() if name in have}
    if not splits:
        raise UserError(
            f"{config.root} has neither a split '{config.val_split}' nor"
            f" '{config.test_split}' to evaluate on"
        )
    if config.val_split == config.test_split:
        del splits["val"]  # it would choose on the test split without a word
    if select_on_test and "test" not in splits:
        raise UserError(f"--select-on-test: {config.root} has no split '{config.test_split}'")
    for name in (config.train_split, *splits.values()):
        check_labeled(data.manifest(name))
    return splits


@torch.no_grad()
def evaluate_classifiers(
    method: Method, data: RunData, splits: dict[str, str], selected_on: str
) -> list[dict]:
    """An entry of posthoc.json for each classifier: its name, parameter and metrics by split.

    ``splits``: names of the splits that are "val" and "test". tau is chosen on the one of them that
    ``selected_on`` says, if it is there. Collective.
    """
    counts, device = method.class_counts, data.world.device
    precision = autocast(data.config, data.world)
    with precision:
        means = training_means(method, data)
        parts = {
            part: collect(method.backbone, data.evaluate(name), device)
            for part, name in splits.items()
        }
    entries = []
    for classifier in make_classifiers(method.classifier, means, counts, precision):
        tau = None
        if classifier.has_tau:
            tau = choose_tau(classifier, parts.get(selected_on), counts)
        entries.append(
            {
                "name": classifier.name,
                "parameter": None if tau is None else f"tau {tau:g}",
                "metrics": {
                    splits[part]: measure(classifier, features, tau, counts)
                    for part, features in parts.items()
                },
            }
        )
    return entries


def training_means(method: Method, data: RunData) -> torch.Tensor:
    """The mean feature (C, D) of each class over the training split. Collective."""
    counts, train = method.class_counts, data.evaluate(data.config.data.train_split)
    width, device = method.backbone.out_features, data.world.device
    means, _ = class_means(method.backbone, train, width, len(counts), device)
    return means


def make_classifiers(
    head: nn.Module,
    means: torch.Tensor | None,
    class_counts: torch.Tensor,
    precision: torch.autocast,
) -> list[PosthocClassifier]:
    """The ``head`` as it was trained, computed in ``precision``, and every post-hoc classifier in
    its place.

    ``means`` (C, D): of the classes' features, without which there is no nearest one;
    ``class_counts`` (C,): training samples.
    """
    classifiers = _of_head(head, class_counts, precision)
    return classifiers if means is None else [*classifiers, *_of_means(means, class_counts)]


def _of_head(
    head: nn.Module, class_counts: torch.Tensor, precision: torch.autocast
) -> list[PosthocClassifier]:
    log_prior = (class_counts.clamp(min=1) / class_counts.clamp(min=1).sum()).log()

    def trained(features: torch.Tensor, _tau: float | None = None) -> torch.Tensor:
        with precision:
            return head(features).float()

    def adjusted(features: torch.Tensor, tau: float) -> torch.Tensor:
        return trained(features) - tau * log_prior.to(features.device)

    classifiers = [
        PosthocClassifier("as trained", trained),
        PosthocClassifier("logit adjustment", adjusted, has_tau=True),
    ]
    # a cosine classifier's weights have no norms, and other heads have no one matrix
    if isinstance(head, nn.Linear):
        norms = head.weight.norm(dim=1)

        def normalized(features: torch.Tensor, tau: float) -> torch.Tensor:
            return features @ head.weight.T / norms**tau  # without the bias, as the paper has it

        classifiers.insert(1, PosthocClassifier("tau-norm", normalized, has_tau=True))
    return classifiers


def _of_means(means: torch.Tensor, class_counts: torch.Tensor) -> list[PosthocClassifier]:
    unit_means = F.normalize(means, dim=1)
    unseen = (class_counts == 0).to(means.device)  # they have no mean

    def nearest_by_cosine(features: torch.Tensor, _tau: None) -> torch.Tensor:
        similarity = F.normalize(features, dim=1) @ unit_means.T
        return similarity.masked_fill(unseen, -torch.inf)

    def nearest_by_distance(features: torch.Tensor, _tau: None) -> torch.Tensor:
        return (-torch.cdist(features, means)).masked_fill(unseen, -torch.inf)

    return [
        PosthocClassifier("NCM, cosine", nearest_by_cosine, logits=False),
        PosthocClassifier("NCM, Euclidean", nearest_by_distance, logits=False),
    ]


def choose_tau(
    classifier: PosthocClassifier, split: Features | None, class_counts: torch.Tensor
) -> float:
    """The tau of the best balanced accuracy on ``split``, the smaller one of equals; 1 without a
    split. Collective.
    """
    if split is None:
        return 1.0

    def rank(tau: float) -> tuple[float, float]:
        return measure(classifier, split, tau, class_counts)["balanced"] or 0.0, -tau

    return max(TAUS, key=rank)


def measure(
    classifier: PosthocClassifier, split: Features, tau: float | None, class_counts: torch.Tensor
) -> dict:
    """Metrics of the classifier over all ranks' parts of a split. Collective."""
    accuracy = Accuracy(class_counts, split.features.device, classifier.logits)
    for features, labels in zip(split.features.split(4096), split.labels.split(4096)):
        if len(labels):
            accuracy.update(classifier.score(features, tau), labels)
    return accuracy.compute()


def collect(backbone: nn.Module, loader: Loader, device: torch.device) -> Features:
    """The backbone's features of this rank's part of a split."""

    def embed(images: torch.Tensor) -> torch.Tensor:
        return backbone(images).float()

    return Features(*collect_features(embed, loader, backbone.out_features, device))


def _show(path: Path, content: dict) -> None:
    table = Table("classifier", "split", *SHOWN.values())
    for entry in content["classifiers"]:
        name, parameter = entry["name"], entry["parameter"]
        shown = name if parameter is None else f"{name} ({parameter})"
        for split, metrics in entry["metrics"].items():
            values = [metrics.get(metric) for metric in SHOWN]
            table.add_row(
                shown, split, *("-" if value is None else f"{value:.2f}" for value in values)
            )
    show(table)
    say(f"{ABOUT_TAU[content['selected_on']]}; all numbers: {path}")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
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
    parser.add_argument("--json", **JSON)
    return parser.parse_intermixed_args(words)
