"""The command posthoc: its classifiers against their formulas, and how tau is chosen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lt_train.commands.open_run import open_run
from lt_train.commands.posthoc import (
    TAUS,
    Features,
    PosthocClassifier,
    choose_tau,
    collect,
    make_classifiers,
)
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods.experts import MeanOfExperts
from lt_train.models.heads import CosineClassifier, ScaledClassifier
from tests.helpers.commands import (
    CLASSES,
    TRAIN,
    content,
    evaluated,
    read,
    refused,
    run,
    scalars,
    torchrun,
)

FULL_PRECISION = torch.autocast("cpu", enabled=False)


def reference(folder: Path) -> tuple[dict, dict]:
    """Features and labels of a run's splits, and its classifier's weights, read anew."""
    config, method = open_run(folder, [], World())
    data, parts = RunData(config, World()), {}
    for split in ("train", "val", "test"):
        with torch.no_grad():
            pairs = [
                (method.backbone(batch.views[0]), batch.label) for batch in data.evaluate(split)
            ]
        parts[split] = [torch.cat(column) for column in zip(*pairs)]
    return parts, load_file(folder / "classifier.safetensors")


def balanced(scores: torch.Tensor, labels: torch.Tensor) -> float:
    right = scores.argmax(1) == labels
    by_class = [100 * right[labels == label].double().mean() for label in range(CLASSES)]
    return float(np.mean(by_class))


def test_classifiers_follow_their_formulas_and_tau_is_chosen_on_validation(copied, capsys):
    run("posthoc", copied)
    assert "chosen on the validation split" in capsys.readouterr().err
    written = read(copied, "posthoc.json")
    found = {entry["name"]: entry for entry in written["classifiers"]}
    parts, classifier = reference(copied)
    weight, bias = classifier["weight"], classifier["bias"]
    features, labels = parts["train"]
    means = torch.stack([features[labels == label].mean(0) for label in range(CLASSES)])
    prior = torch.tensor(TRAIN) / sum(TRAIN)
    scores = {
        "as trained": lambda x, _: x @ weight.T + bias,
        "tau-norm": lambda x, tau: x @ (weight / weight.norm(dim=1, keepdim=True) ** tau).T,
        "logit adjustment": lambda x, tau: x @ weight.T + bias - tau * prior.log(),
        "NCM, cosine": lambda x, _: F.cosine_similarity(x[:, None], means[None], dim=2),
        "NCM, Euclidean": lambda x, _: -(x[:, None] - means[None]).norm(dim=2),
    }
    assert written["selected_on"] == "val" and list(found) == list(scores)
    for name, score in scores.items():
        tau = None
        if name in ("tau-norm", "logit adjustment"):
            features, labels = parts["val"]
            by_tau = {tau: round(balanced(score(features, tau), labels), 4) for tau in TAUS}
            tau = min(tau for tau in TAUS if by_tau[tau] == max(by_tau.values()))
            assert found[name]["parameter"] == f"tau {tau:g}"
        for split in ("val", "test"):
            metrics, (features, labels) = found[name]["metrics"][split], parts[split]
            expected = balanced(score(features, tau), labels)
            assert metrics["balanced"] == pytest.approx(expected, abs=1e-3)
            assert ("ece" in metrics) == (not name.startswith("NCM"))
    as_trained, result = found["as trained"]["metrics"], read(copied)["metrics"]
    assert set(result) == {"val", "test"}
    assert all(as_trained[split]["per_class"] == result[split]["per_class"] for split in result)
    accuracies = {entry["metrics"]["test"]["balanced"] for entry in written["classifiers"]}
    assert len(accuracies) > 1, "all classifiers alike prove nothing"


def test_without_validation_tau_is_1_and_choosing_on_test_is_said(copied, capsys):
    for override in ("data.val_split=none", "data.val_split=test"):
        run("posthoc", copied, override)
        assert "there is no validation split: tau is 1" in capsys.readouterr().err
        written = read(copied, "posthoc.json")
        parameters = {entry["parameter"] for entry in written["classifiers"]}
        assert written["selected_on"] == "none" and parameters == {None, "tau 1"}
        assert all(list(entry["metrics"]) == ["test"] for entry in written["classifiers"])
    run("posthoc", copied, "--select-on-test")
    assert "TEST split: no fair estimate" in capsys.readouterr().err
    written = read(copied, "posthoc.json")
    assert written["selected_on"] == "test"
    parts, classifier = reference(copied)
    (features, labels), weight = parts["test"], classifier["weight"]
    norms = weight.norm(dim=1, keepdim=True)
    by_tau = [balanced(features @ (weight / norms**tau).T, labels) for tau in TAUS]
    tau_norm = written["classifiers"][1]
    assert tau_norm["metrics"]["test"]["balanced"] == pytest.approx(max(by_tau), abs=1e-3)


@pytest.mark.parametrize(
    "head",
    [CosineClassifier(8, 4, 30.0), ScaledClassifier(8, 4), MeanOfExperts([nn.Linear(8, 4)])],
    ids=lambda head: type(head).__name__,
)
def test_heads_without_one_matrix_have_no_tau_norm(head):
    classifiers = make_classifiers(head, torch.randn(4, 8), torch.tensor(TRAIN), FULL_PRECISION)
    names = ["as trained", "logit adjustment", "NCM, cosine", "NCM, Euclidean"]
    assert [classifier.name for classifier in classifiers] == names


def test_a_class_that_was_never_trained_is_nobodys_nearest():
    means = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    counts = torch.tensor([5, 5, 0])
    classifiers = make_classifiers(nn.Linear(2, 3), means, counts, FULL_PRECISION)
    for classifier in classifiers[-2:]:
        scores = classifier.score(torch.tensor([[0.1, 0.2], [-1.0, -2.0]]), None)
        assert scores.argmax(1).tolist() == [1, 0]


def test_the_smaller_of_equal_taus_is_taken():
    split = Features(torch.randn(8, 4), torch.arange(8) % 4)
    same = PosthocClassifier("same", lambda features, tau: features, has_tau=True)
    assert choose_tau(same, split, torch.tensor(TRAIN)) == 0.0
    assert choose_tau(same, None, torch.tensor(TRAIN)) == 1.0


class _Identity(nn.Identity):
    out_features = 2


def test_features_without_samples():
    assert collect(_Identity(), [], torch.device("cpu")).features.shape == (0, 2)


BAD_POSTHOC = {
    "no such folder": (["{run}/nowhere"], "is not a run"),
    "neither split": (
        ["{run}", "data.val_split=a", "data.test_split=b"],
        "neither a split 'a' nor 'b'",
    ),
    "no test to choose on": (["{run}", "--select-on-test", "data.test_split=b"], "no split 'b'"),
    "no labels": (["{run}", "data.root={unlabeled}", "data.test_split=train"], "has no labels"),
    "data gone": (["{run}", "data.root={run}/gone"], "there is no such folder"),
}


@pytest.mark.parametrize("case", BAD_POSTHOC)
def test_a_mistake_in_posthoc_is_one_line_and_changes_nothing(case, copied, unlabeled, capsys):
    arguments, message = BAD_POSTHOC[case]
    before = content(copied)
    places = {"run": copied, "unlabeled": unlabeled}
    line = refused(capsys, "posthoc", *(argument.format(**places) for argument in arguments))
    assert message in line and content(copied) == before


@pytest.mark.slow
def test_two_ranks_evaluate_alike(copied):
    crops = ("--crops", "5", "eval_view.resize=40")
    alone = evaluated(copied, *crops)
    torchrun("evaluate", copied, *crops)
    both = read(copied, "evaluation.json")["metrics"]
    for split, metrics in alone.items():
        assert both[split]["confusion"] == metrics["confusion"]
        assert scalars(both[split]) == pytest.approx(scalars(metrics), abs=1e-3)
    run("posthoc", copied)
    by_one = read(copied, "posthoc.json")["classifiers"]
    torchrun("posthoc", copied)
    by_two = read(copied, "posthoc.json")["classifiers"]
    assert len(by_one) == len(by_two)
    for one, two in zip(by_one, by_two):
        assert (one["name"], one["parameter"]) == (two["name"], two["parameter"])
        for split, metrics in one["metrics"].items():
            assert two["metrics"][split]["confusion"] == metrics["confusion"]
            assert scalars(two["metrics"][split]) == pytest.approx(scalars(metrics), abs=1e-3)
