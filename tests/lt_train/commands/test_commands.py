"""What is done with a run afterwards: evaluate, heads, pseudo_label and then semi, and which
weights a run ends with.
"""

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from data_prep.inspect import problems
from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.__main__ import COMMANDS, main
from lt_train.commands.open_run import open_run
from lt_train.commands.posthoc import (
    TAUS,
    Features,
    Head,
    choose_tau,
    class_means,
    collect,
    make_heads,
)
from lt_train.config.load import load_config
from lt_train.data.manifest import Manifest, add_columns
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import exit_status
from lt_train.methods.experts import MeanOfExperts
from lt_train.models.heads import CosineClassifier, ScaledClassifier
from lt_train.training.best_weights import BestWeights
from lt_train.training.trainer import Trainer
from tests.helpers.pictures import encode

CLASSES, TRAIN, HELD_OUT = 4, [24, 12, 6, 3], 6  # 45 images: 5 steps of 9 an epoch
SMALL = (
    "global_batch_size=9",
    "run.log_every=1",
    "run.checkpoint_every=5",
    "run.keep_checkpoints=9",
    "run.evaluate_every=1",
)
SMALL += (
    "epochs=4",
    "optim.warmup_epochs=0",
    "data.eval_batch_size=16",
    "engine.precision=fp32",
    "moco.queue_size=18",
    "knn.k=5",
)
LIMIT = 240  # seconds that any one command may take


def images(labels: np.ndarray, seed: int) -> list[bytes]:
    """Noise with a tint that tells the class, but not always."""
    generator = np.random.default_rng(seed)
    tints = (
        generator.normal(0, 30, (len(labels), 1, 1, 3))
        + 40 * np.eye(CLASSES, 3)[labels][:, None, None]
    )
    pixels = np.clip(generator.normal(110, 40, (len(labels), 32, 32, 3)) + tints, 0, 255).astype(
        np.uint8
    )
    return [encode(Image.fromarray(image), "PNG") for image in pixels]


class Encoded:
    def __init__(self, contents: list[bytes]):
        self.contents = contents

    def read(self, index: int) -> bytes:
        return self.contents[index]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """A rank: for small networks on a busy machine, threads that wait for each other cost twenty
    times what they give.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        yield


@pytest.fixture(scope="module")
def tinted(prepare) -> Path:
    labels = {
        "train": np.repeat(np.arange(CLASSES), TRAIN),
        **dict.fromkeys(("val", "test"), np.repeat(np.arange(CLASSES), HELD_OUT)),
    }
    return prepare(
        {
            split: (images(of_split, seed), of_split)
            for seed, (split, of_split) in enumerate(labels.items())
        },
        samples_per_shard=16,
    )


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
    write(
        make_plan(Source("unlabeled", classes, {"train": split}), tmp_path / "unlabeled", 0, 8),
        1,
        0.0,
        "tests",
        lambda images, size: None,
    )
    return tmp_path / "unlabeled"


def words(config: str, root: Path, folder: Path, *more: str) -> list[str]:
    return [config, f"data.root={root}", f"run.dir={folder}", *SMALL, *more]


def run(*arguments: str | Path) -> None:
    """The command in this process."""
    assert main([*map(str, arguments)]) == 0


def refused(capsys, *arguments: str | Path) -> str:
    """The one line of a command that a user's mistake ends with status 2."""
    capsys.readouterr()
    assert exit_status("lt_train", lambda: main([*map(str, arguments)])) == 2
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("lt_train: error:")]
    assert len(lines) == 1 and "Traceback" not in errors
    return lines[0]


def torchrun(*arguments: str | Path) -> str:
    """The command on 2 ranks; what it says."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "lt_train",
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(folder: Path, name: str = "result.json") -> dict:
    return json.loads((folder / name).read_text())


def evaluated(folder: Path, *more: str | Path) -> dict:
    run("evaluate", folder, *more)
    return read(folder, "evaluation.json")["metrics"]


def logged(folder: Path, split: str, step: int) -> dict:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (record,) = (
        record for record in records if record.get("split") == split and record["step"] == step
    )
    return {name: value for name, value in record.items() if name not in ("step", "split")}


def scalars(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"step-{step:08d}" / "state.pt", weights_only=True)[
        "method"
    ]


@pytest.fixture(scope="module")
def trained(tinted, tmp_path_factory) -> Path:
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


# evaluate


def test_a_finished_runs_metrics_are_those_of_its_result_and_nothing_else_is_written(copied):
    before = content(copied)
    assert evaluated(copied) == read(copied)["metrics"]
    after = content(copied)
    assert after.pop("evaluation.json") and after == before


@pytest.mark.parametrize("step", [5, 15])
def test_a_checkpoints_metrics_are_those_that_training_has_logged(step, copied):
    assert scalars(evaluated(copied, "--step", str(step), "--split", "val")["val"]) == logged(
        copied, "val", step
    )
    assert read(copied, "evaluation.json")["step"] == step


def test_an_unfinished_run_is_evaluated_at_its_newest_checkpoint(copied):
    for name in ("result.json", "backbone.safetensors", "classifier.safetensors"):
        (copied / name).unlink()
    shutil.rmtree(copied / "checkpoints" / "step-00000020")
    assert scalars(evaluated(copied)["val"]) == logged(copied, "val", 15)


def test_without_checkpoints_the_exported_weights_serve(copied):
    shutil.rmtree(copied / "checkpoints")
    assert evaluated(copied) == read(copied)["metrics"]


def test_another_set_of_the_same_classes_needs_no_training_split(copied, prepare):
    labels = np.repeat(np.arange(CLASSES), 5)
    other = prepare({"test": (images(labels, 5), labels)})
    run("evaluate", copied, f"data.root={other}", "--out", copied / "other.json")
    metrics = read(copied, "other.json")["metrics"]
    assert list(metrics) == ["test"] and metrics["test"]["samples"] == 20
    per_class = metrics["test"][
        "per_class"
    ]  # many, medium and few are by the run's own class counts, 24, 12, 6 and 3
    assert metrics["test"]["many_shot"] is None and metrics["test"]["medium_shot"] == per_class[0]
    assert metrics["test"]["few_shot"] == pytest.approx(np.mean(per_class[1:]), abs=1e-3)
    assert not (copied / "evaluation.json").exists()


@pytest.mark.parametrize("method", ["moco", "rotation"])
def test_self_supervised_runs_are_evaluated_by_their_neighbours(method, tinted, tmp_path, capsys):
    folder = tmp_path / "run"
    run(*words(f"{method}_cifar10_lt", tinted, folder, "max_steps=3"))
    result = read(folder)["metrics"]
    assert evaluated(folder) == result and result["test"]["knn_top1"] is not None
    assert "no classifier" in refused(capsys, "heads", folder)
    assert "no classifier" in refused(capsys, "pseudo_label", folder, "--data", tinted)
    shutil.rmtree(folder / "checkpoints")
    again = evaluated(folder)["test"]
    assert {name: value for name, value in again.items() if name.startswith("knn")} == {
        name: value for name, value in result["test"].items() if name.startswith("knn")
    }
    assert ("untrained head" in capsys.readouterr().err) == (method == "rotation")


BAD_EVALUATIONS = {
    "no such folder": (["{run}/nowhere"], "is not a run"),
    "a file": (["{run}/config.yaml"], "is not a run"),
    "wrong step": (
        ["{run}", "--step", "7"],
        "no intact checkpoint of step 7; it has 5, 10, 15, 20",
    ),
    "no such split": (["{run}", "--split", "nope"], "has no split 'nope'; it has train, val, test"),
    "neither split": (["{run}", "data.val_split=a", "data.test_split=b"], "--split"),
    "no labels": (["{run}", "data.root={unlabeled}", "--split", "train"], "has no labels"),
    "data gone": (["{run}", "data.root={run}/gone"], "there is no such folder"),
    "other classes": (["{run}", "data.root={other}"], "other classes"),
    "misspelt key": (["{run}", "data.rot=x"], "did you mean 'data.root'"),
    "no override": (["{run}", "5"], "not of the form key=value"),
    "unwritable": (["{run}", "--out", "{run}/config.yaml/x"], "cannot write"),
}


@pytest.mark.parametrize("case", BAD_EVALUATIONS)
def test_a_mistake_in_evaluate_is_one_line_and_changes_nothing(
    case, copied, unlabeled, prepare, capsys
):
    arguments, message = BAD_EVALUATIONS[case]
    other = prepare(
        {
            "train": (images(np.arange(3), 0), np.arange(3)),
            "test": (images(np.arange(3), 1), np.arange(3)),
        }
    )
    before = content(copied)
    line = refused(
        capsys,
        "evaluate",
        *(argument.format(run=copied, unlabeled=unlabeled, other=other) for argument in arguments),
    )
    assert message in line and content(copied) == before


def test_a_run_without_any_weights_and_one_with_a_damaged_checkpoint(copied, capsys):
    state = copied / "checkpoints" / "step-00000005" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    assert "no intact checkpoint of step 5; it has 10, 15, 20" in refused(
        capsys, "evaluate", copied, "--step", "5"
    )
    shutil.rmtree(copied / "checkpoints")
    (copied / "backbone.safetensors").unlink()
    assert "neither a checkpoint nor" in refused(capsys, "evaluate", copied)
    assert "neither a checkpoint nor" in refused(capsys, "heads", copied)


# heads


def reference(folder: Path) -> tuple[dict, dict]:
    """Features and labels of a run's splits, and its classifier's weights, read anew."""
    config, method = open_run(folder, [], World())
    data = RunData(config, World())
    with torch.no_grad():
        parts = {
            split: [
                (method.backbone(batch["views"][0]), batch["label"])
                for batch in data.evaluate(split)
            ]
            for split in ("train", "val", "test")
        }
    return {
        split: [torch.cat(column) for column in zip(*pairs)] for split, pairs in parts.items()
    }, load_file(folder / "classifier.safetensors")


def balanced(scores: torch.Tensor, labels: torch.Tensor) -> float:
    right = scores.argmax(1) == labels
    return float(
        np.mean([100 * right[labels == label].double().mean() for label in range(CLASSES)])
    )


def test_heads_follow_their_formulas_and_tau_is_chosen_on_validation(copied, capsys):
    run("heads", copied)
    assert "chosen on the validation split" in capsys.readouterr().err
    written = read(copied, "posthoc.json")
    found = {head["name"]: head for head in written["heads"]}
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
    assert written["selected_on"] == "val" and list(found) == [
        "as trained",
        "tau-norm",
        "logit adjustment",
        "NCM, cosine",
        "NCM, Euclidean",
    ]
    for name, score in scores.items():
        tau = None
        if name in ("tau-norm", "logit adjustment"):
            by_tau = {
                tau: round(balanced(score(parts["val"][0], tau), parts["val"][1]), 4)
                for tau in TAUS
            }
            tau = min(tau for tau in TAUS if by_tau[tau] == max(by_tau.values()))
            assert found[name]["parameter"] == f"tau {tau:g}"
        for split in ("val", "test"):
            assert found[name]["metrics"][split]["balanced"] == pytest.approx(
                balanced(score(parts[split][0], tau), parts[split][1]), abs=1e-3
            )
            assert ("ece" in found[name]["metrics"][split]) == (not name.startswith("NCM"))
    trained_metrics = found["as trained"]["metrics"]
    assert {split: trained_metrics[split]["per_class"] for split in ("val", "test")} == {
        split: metrics["per_class"] for split, metrics in read(copied)["metrics"].items()
    }
    assert len({head["metrics"]["test"]["balanced"] for head in written["heads"]}) > 1, (
        "all heads alike prove nothing"
    )


def test_without_validation_tau_is_1_and_choosing_on_test_is_said(copied, capsys):
    for override in ("data.val_split=none", "data.val_split=test"):
        run("heads", copied, override)
        assert "there is no validation split: tau is 1" in capsys.readouterr().err
        written = read(copied, "posthoc.json")
        assert written["selected_on"] == "none" and {
            head["parameter"] for head in written["heads"]
        } == {None, "tau 1"}
        assert all(list(head["metrics"]) == ["test"] for head in written["heads"])
    run("heads", copied, "--select-on-test")
    assert "TEST split: no fair estimate" in capsys.readouterr().err
    written = read(copied, "posthoc.json")
    assert written["selected_on"] == "test"
    parts, classifier = reference(copied)
    by_tau = {
        tau: balanced(
            parts["test"][0]
            @ (classifier["weight"] / classifier["weight"].norm(dim=1, keepdim=True) ** tau).T,
            parts["test"][1],
        )
        for tau in TAUS
    }
    tau_norm = written["heads"][1]
    assert tau_norm["metrics"]["test"]["balanced"] == pytest.approx(max(by_tau.values()), abs=1e-3)


@pytest.mark.parametrize(
    "classifier",
    [CosineClassifier(8, 4, 30.0), ScaledClassifier(8, 4), MeanOfExperts([nn.Linear(8, 4)])],
    ids=lambda head: type(head).__name__,
)
def test_classifiers_without_one_matrix_have_no_tau_norm(classifier):
    heads = make_heads(
        classifier, torch.randn(4, 8), torch.tensor(TRAIN), torch.autocast("cpu", enabled=False)
    )
    assert [head.name for head in heads] == [
        "as trained",
        "logit adjustment",
        "NCM, cosine",
        "NCM, Euclidean",
    ]


def test_a_class_that_was_never_trained_is_nobodys_nearest():
    means = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    heads = make_heads(
        nn.Linear(2, 3), means, torch.tensor([5, 5, 0]), torch.autocast("cpu", enabled=False)
    )
    for head in heads[-2:]:
        assert head.score(torch.tensor([[0.1, 0.2], [-1.0, -2.0]]), None).argmax(1).tolist() == [
            1,
            0,
        ]


def test_the_smaller_of_equal_taus_is_taken():
    split = Features(torch.randn(8, 4), torch.arange(8) % 4)
    assert (
        choose_tau(
            Head("same", lambda features, tau: features, has_tau=True), split, torch.tensor(TRAIN)
        )
        == 0.0
    )
    assert (
        choose_tau(
            Head("same", lambda features, tau: features, has_tau=True), None, torch.tensor(TRAIN)
        )
        == 1.0
    )


def test_class_means_and_features_without_samples():
    batches = [
        {"views": [torch.tensor([[1.0, 2.0], [3.0, 4.0]])], "label": torch.tensor([1, 1])},
        {"views": [torch.tensor([[5.0, 5.0]])], "label": torch.tensor([0])},
    ]
    assert class_means(_Identity(), batches, 3, torch.device("cpu")).tolist() == [
        [5, 5],
        [2, 3],
        [0, 0],
    ]
    assert collect(_Identity(), [], torch.device("cpu")).features.shape == (0, 2)


class _Identity(nn.Identity):
    out_features = 2


BAD_HEADS = {
    "no such folder": (["{run}/nowhere"], "is not a run"),
    "neither split": (
        ["{run}", "data.val_split=a", "data.test_split=b"],
        "neither a split 'a' nor 'b'",
    ),
    "no test to choose on": (["{run}", "--select-on-test", "data.test_split=b"], "no split 'b'"),
    "no labels": (["{run}", "data.root={unlabeled}", "data.test_split=train"], "has no labels"),
    "data gone": (["{run}", "data.root={run}/gone"], "there is no such folder"),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_a_mistake_in_heads_is_one_line_and_changes_nothing(case, copied, unlabeled, capsys):
    arguments, message = BAD_HEADS[case]
    before = content(copied)
    line = refused(
        capsys,
        "heads",
        *(argument.format(run=copied, unlabeled=unlabeled) for argument in arguments),
    )
    assert message in line and content(copied) == before


# which weights a run ends with


@pytest.fixture
def rigged(monkeypatch) -> Callable[[dict[int, float]], None]:
    """Function that says what accuracy each step's weights shall seem to have."""
    offer = BestWeights.offer

    def rig(by_step: dict[int, float]) -> None:
        monkeypatch.setattr(
            BestWeights,
            "offer",
            lambda self, step, metric, method: offer(self, step, by_step[step], method),
        )

    return rig


def assert_ended_with(folder: Path, step: int, select: str) -> None:
    result, best = read(folder), checkpoint(folder, step)
    assert (
        result["selected_on"] == select
        and result["selected_step"] == step
        and result["steps"] == 20
    )
    for name, tensor in load_file(folder / "backbone.safetensors").items():
        assert torch.equal(tensor, best[f"backbone.{name}"])
    assert torch.equal(
        load_file(folder / "classifier.safetensors")["weight"], best["classifier.weight"]
    )
    assert evaluated(folder, "--step", str(step)) == result["metrics"] == evaluated(folder)


@pytest.mark.parametrize("select", ["val", "test"])
def test_the_best_weights_are_kept_and_reported(select, tinted, tmp_path, rigged):
    rigged({5: 10.0, 10: 60.0, 15: 60.0, 20: 20.0})
    folder = tmp_path / "run"
    run(*words("classifier_cifar10_lt", tinted, folder, f"run.select={select}"))
    assert_ended_with(folder, 10, select)
    assert logged(folder, select, 5)["top1"] is not None
    assert scalars(read(folder)["metrics"]["val"]) != scalars(
        evaluated(folder, "--step", "20")["val"]
    )


def test_a_run_that_is_cut_off_and_resumed_ends_with_the_same_best(tinted, tmp_path, rigged):
    calm, cut = tmp_path / "calm", tmp_path / "cut"
    rigged({5: 30.0, 10: 60.0, 15: 20.0, 20: 40.0})
    run(*words("classifier_cifar10_lt", tinted, calm, "run.select=val"))
    rigged({5: 30.0, 10: 60.0})
    with pytest.raises(KeyError, match="15"):
        main(words("classifier_cifar10_lt", tinted, cut, "run.select=val"))
    shutil.rmtree(
        cut / "checkpoints" / "step-00000010"
    )  # as if it had been cut off after the best and before its checkpoint
    assert (cut / "best.pt").is_file() and not (cut / "result.json").exists()
    rigged({10: 60.0, 15: 20.0, 20: 40.0})
    run(*words("classifier_cifar10_lt", tinted, cut, "run.select=val"))
    assert_ended_with(cut, 10, "val")
    assert read(cut)["metrics"] == read(calm)["metrics"]
    first, second = (load_file(folder / "backbone.safetensors") for folder in (calm, cut))
    assert first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def test_a_new_run_in_an_old_folder_and_another_split_do_not_take_the_old_best(
    tinted, tmp_path, rigged
):
    folder = tmp_path / "run"
    options = words("classifier_cifar10_lt", tinted, folder)
    rigged({5: 90.0, 10: 80.0})
    run(*options, "run.select=val", "max_steps=10")
    assert read(folder)["selected_step"] == 5
    rigged({5: 1.0, 10: 3.0, 15: 4.0})
    run(*options, "run.select=test", "max_steps=15")  # goes on from 10
    assert read(folder)["selected_on"] == "test" and read(folder)["selected_step"] == 15
    (folder / "result.json").unlink()
    rigged({5: 2.0, 10: 3.0, 15: 1.0, 20: 2.5})
    run(*options, "run.select=test", "resume.enabled=false")
    assert_ended_with(folder, 10, "test")


def test_without_selection_nothing_is_kept_and_a_missing_split_is_one_line(
    trained, tinted, tmp_path, capsys
):
    assert (
        not (trained / "best.pt").exists()
        and read(trained)["selected_on"] == "last"
        and read(trained)["selected_step"] == 20
    )
    for select in ("val", "test"):
        line = refused(
            capsys,
            *words(
                "classifier_cifar10_lt",
                tinted,
                tmp_path / "run",
                f"run.select={select}",
                f"data.{select}_split=nope",
            ),
        )
        assert (
            f"run.select={select}, but" in line and "no split 'nope'; use run.select=last" in line
        )
    assert not (tmp_path / "run").exists()


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


# classifiers that go on from a run's


def test_lws_goes_on_from_the_runs_classifier(trained, tinted, tmp_path, capsys):
    folder = tmp_path / "lws"
    options = words("lws_cifar10_lt", tinted, folder, f"model.init_from={trained}", "max_steps=2")
    run(*options)
    before, after = (
        load_file(trained / "classifier.safetensors"),
        load_file(folder / "classifier.safetensors"),
    )
    assert torch.equal(after["linear.weight"], before["weight"]) and torch.equal(
        after["linear.bias"], before["bias"]
    )
    assert not torch.equal(after["scale"], torch.ones(CLASSES))
    run("heads", folder)
    assert [head["name"] for head in read(folder, "posthoc.json")["heads"]][:2] == [
        "as trained",
        "logit adjustment",
    ]
    shutil.rmtree(folder / "checkpoints")
    assert evaluated(folder) == read(folder)["metrics"]
    line = refused(
        capsys,
        *words(
            "lws_cifar10_lt",
            tinted,
            tmp_path / "other",
            f"model.init_from={trained / 'backbone.safetensors'}",
        ),
    )
    assert "the run of a linear classifier" in line and "not a backbone alone" in line
    line = refused(
        capsys, *words("lws_cifar10_lt", tinted, tmp_path / "another", f"model.init_from={folder}")
    )
    assert "the run of a linear classifier" in line


def test_starting_weights_of_lws_are_there_before_the_first_step(trained, tinted, tmp_path):
    trainer = Trainer(
        load_config(
            "lws_cifar10_lt", words("", tinted, tmp_path / "run", f"model.init_from={trained}")[1:]
        ),
        World(),
    )
    trainer.build()
    classifier = load_file(trained / "classifier.safetensors")
    images = torch.randn(2, 3, 32, 32)
    method = trainer.engine.method.eval()
    expected = F.linear(method.backbone(images), classifier["weight"], classifier["bias"])
    torch.testing.assert_close(method.predict(images), expected)


# pseudo-labels


def test_pseudo_labels_are_the_runs_predictions_and_their_worth_is_told(copied, unlabeled, capsys):
    shards = {name: digest for name, digest in content(unlabeled).items() if name.endswith(".tar")}
    run("pseudo_label", copied, "--data", unlabeled, "data.eval_batch_size=7")
    said = capsys.readouterr().err
    pool = Manifest(unlabeled, "train")
    config, method = open_run(copied, [], World())
    data = RunData(load_config(str(copied / "config.yaml"), [f"data.root={unlabeled}"]), World())
    with torch.no_grad():
        probabilities = torch.cat(
            [method.predict(batch["views"][0]).softmax(1) for batch in data.evaluate("train")]
        )
    assert pool.column("pseudo_label").tolist() == probabilities.argmax(1).tolist()
    assert pool.column("confidence").tolist() == pytest.approx(
        probabilities.amax(1).tolist(), abs=1e-5
    )
    right = 100 * (pool.column("pseudo_label") == pool.column("hidden_label")).mean()
    assert f"; {right:.1f} % of them are right" in said and 0 < right < 100
    assert list(problems(unlabeled)) == [] and shards.items() <= content(unlabeled).items()
    run(
        "pseudo_label",
        copied,
        "--data",
        unlabeled,
        "--column",
        "early",
        "--confidence-column",
        "sure",
        "--step",
        "5",
    )
    assert {"pseudo_label", "early", "sure", "hidden_label"} <= set(
        Manifest(unlabeled, "train").columns
    )


def test_pseudo_labels_are_not_made_twice_nor_replaced_unasked(copied, unlabeled, capsys):
    run("pseudo_label", copied, "--data", unlabeled)
    before = content(unlabeled)
    run("pseudo_label", copied, "--data", unlabeled)
    assert (
        "of these very weights already" in capsys.readouterr().err and content(unlabeled) == before
    )
    earlier = ("pseudo_label", copied, "--data", unlabeled, "--step", "5")
    assert "--replace makes it anew" in refused(capsys, *earlier) and content(unlabeled) == before
    run(*earlier, "--replace")
    assert content(unlabeled) != before and list(problems(unlabeled)) == []
    add_columns(
        unlabeled,
        "train",
        {"published": pa.array(np.zeros(len(Manifest(unlabeled, "train")), np.int32))},
        "data_prep",
    )
    assert "'published' by data_prep" in refused(
        capsys,
        "pseudo_label",
        copied,
        "--data",
        unlabeled,
        "--column",
        "published",
        "--confidence-column",
        "new",
    )


def test_damaged_samples_get_no_pseudo_label(copied, unlabeled, damaged_copy):
    root = damaged_copy(unlabeled, [4])
    run("pseudo_label", copied, "--data", root)
    pool = Manifest(root, "train")
    assert (
        np.flatnonzero(pool.column("pseudo_label") == -1).tolist() == [4]
        and pool.column("confidence")[4] == 0
    )


BAD_PSEUDO_LABELS = {
    "no such run": (["{run}/nowhere", "--data", "{unlabeled}"], "is not a run"),
    "no such set": (["{run}", "--data", "{run}/nowhere"], "there is no such folder"),
    "not a set": (["{run}", "--data", "{run}"], "not a prepared data set"),
    "no such split": (["{run}", "--data", "{unlabeled}", "--split", "val"], "has no split 'val'"),
    "the format's column": (["{run}", "--data", "{unlabeled}", "--column", "label"], "'label'"),
    "the truth": (["{run}", "--data", "{unlabeled}", "--column", "hidden_label"], "'hidden_label'"),
    "one name for two": (
        ["{run}", "--data", "{unlabeled}", "--column", "a", "--confidence-column", "a"],
        "two names",
    ),
    "wrong step": (
        ["{run}", "--data", "{unlabeled}", "--step", "3"],
        "no intact checkpoint of step 3",
    ),
    "other classes": (["{run}", "--data", "{other}"], "other classes"),
    "misspelt key": (
        ["{run}", "--data", "{unlabeled}", "data.eval_batch=3"],
        "did you mean 'data.eval_batch_size'",
    ),
}


@pytest.mark.parametrize("case", BAD_PSEUDO_LABELS)
def test_a_mistake_in_pseudo_label_is_one_line_and_changes_nothing(
    case, copied, unlabeled, prepare, capsys
):
    arguments, message = BAD_PSEUDO_LABELS[case]
    other = prepare({"train": (images(np.arange(3), 0), np.arange(3))})
    before = content(copied), content(unlabeled)
    line = refused(
        capsys,
        "pseudo_label",
        *(argument.format(run=copied, unlabeled=unlabeled, other=other) for argument in arguments),
    )
    assert message in line and (content(copied), content(unlabeled)) == before


@pytest.mark.slow
def test_pseudo_labels_of_two_ranks_train_a_semi_run_that_survives_sigkill(
    trained, tinted, unlabeled, tmp_path
):
    two = Path(shutil.copytree(unlabeled, tmp_path / "two"))
    run("pseudo_label", trained, "--data", unlabeled)
    assert "% of them are right" in torchrun("pseudo_label", trained, "--data", two)
    assert content(two) == content(unlabeled), "the very columns"
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    options = [f"unlabeled.root={two}", "data.val_split=none", "unlabeled.min_confidence=0.3"]
    run(*words("semi_cifar10_lt", tinted, calm, *options))
    command = [
        sys.executable,
        "-m",
        "lt_train",
        *words("semi_cifar10_lt", tinted, killed, *options),
    ]
    process, deadline = (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
        time.monotonic() + LIMIT,
    )
    while len(list((killed / "checkpoints").glob("step-*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 and "resumed from step" in done.stderr
    steps = read(calm)["steps"]
    kept = int((Manifest(two, "train").column("confidence") >= np.float32(0.3)).sum())
    assert steps == math.floor(4 * (45 + kept) / 9 + 0.5) > 20 and read(calm)["train_samples"] == 45
    first, second = checkpoint(calm, steps), checkpoint(killed, steps)
    assert len(first) > 50 and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )
    assert read(killed)["metrics"] == read(calm)["metrics"] == evaluated(calm)


@pytest.mark.slow
def test_two_ranks_evaluate_alike(copied):
    alone, result = evaluated(copied), read(copied)["metrics"]
    torchrun("evaluate", copied)
    assert read(copied, "evaluation.json")["metrics"] == alone == result
    run("heads", copied)
    heads = read(copied, "posthoc.json")
    torchrun("heads", copied)
    together = read(copied, "posthoc.json")
    assert [(head["name"], head["parameter"]) for head in together["heads"]] == [
        (head["name"], head["parameter"]) for head in heads["heads"]
    ]
    for one, two in zip(heads["heads"], together["heads"]):
        for split, metrics in one["metrics"].items():
            assert two["metrics"][split]["confusion"] == metrics["confusion"]
            assert scalars(two["metrics"][split]) == pytest.approx(scalars(metrics), abs=1e-3)


@pytest.mark.slow
def test_deepspeed_runs_are_evaluated_too(tinted, tmp_path):
    folder = tmp_path / "run"
    torchrun(
        *words("classifier_cifar10_lt", tinted, folder, "engine.name=deepspeed", "max_steps=10")
    )
    assert scalars(evaluated(folder, "--step", "5")["val"]) == pytest.approx(
        logged(folder, "val", 5), abs=1e-3
    )
    assert {split: metrics["confusion"] for split, metrics in evaluated(folder).items()} == {
        split: metrics["confusion"] for split, metrics in read(folder)["metrics"].items()
    }


# help


def test_help_lists_the_commands_and_does_without_torch():
    code = (
        "import sys\nfrom lt_train.__main__ import main\ntry:\n    main(['--help'])\nexcept"
        " SystemExit:\n    sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0
    assert all(
        f"  {name} " in done.stdout and description in done.stdout
        for name, description in COMMANDS.items()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and f"lt_train {command}" in capsys.readouterr().out
