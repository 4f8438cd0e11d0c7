"""The classifier methods, and accuracy against torchmetrics."""

import math

import pytest
import torch

from lt_train.config.schema import Config, DecoupledConfig, ModelConfig, OptimConfig
from lt_train.data.order import batch_slice
from lt_train.distributed import World
from lt_train.methods import METHODS
from lt_train.methods.base import Method
from lt_train.methods.metrics import Accuracy, gather_rows
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights, load_weights
from lt_train.training.optim import make_optimizer
from tests.helpers.ranks import one_thread, run_on_ranks  # noqa: F401

CLASS_COUNTS = torch.tensor([150, 40, 7])


def make_method(name: str, freeze_bn_stats: bool = True, method: str = "crt") -> Method:
    torch.manual_seed(0)
    config = Config(
        method=name,
        model=ModelConfig("resnet32_cifar", init_from="a finished run"),
        decoupled=DecoupledConfig(method, freeze_bn_stats),
    )
    return METHODS[name](config, CLASS_COUNTS).train()


def make_batch(step: int, size: int = 6) -> dict:
    generator = torch.Generator().manual_seed(step)
    views = [torch.randn(size, 3, 16, 16, generator=generator)]
    return {"views": views, "label": torch.randint(0, 3, (size,), generator=generator)}


def train(method: Method, steps: int) -> None:
    optimizer = make_optimizer(OptimConfig(), method)
    for step in range(steps):
        method(make_batch(step), step)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(module: torch.nn.Module, statistics: bool) -> dict[str, torch.Tensor]:
    """Copies of batch norm's running statistics, or of all other entries of the state."""
    state = module.state_dict()
    return {
        name: value.clone()
        for name, value in state.items()
        if ("running" in name or "num_batches" in name) == statistics
    }


def unchanged(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[bool]:
    return [before[name].equal(after[name]) for name in before]


def random_scores(samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(samples)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    return (
        torch.randn(samples, classes, generator=generator).scatter_add_(
            1, labels[:, None], torch.ones(samples, 1)
        ),
        labels,
    )


def accuracy_of(
    scores: torch.Tensor, labels: torch.Tensor, class_counts: list[int] | torch.Tensor
) -> dict:
    accuracy = Accuracy(torch.as_tensor(class_counts), torch.device("cpu"))
    for rows in torch.arange(len(labels)).split(13):
        accuracy.update(scores[rows], labels[rows])
    return accuracy.compute()


# methods


def test_classifier_loss_is_cross_entropy():
    method = make_method("classifier")
    batch = make_batch(0)
    outputs = method(batch, 0)
    logits = method.predict(batch["views"][0]).double().tolist()
    losses = [
        math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, batch["label"])
    ]
    assert float(outputs["loss"].detach()) == pytest.approx(sum(losses) / 6, rel=1e-5)
    right = [
        max(range(3), key=row.__getitem__) == label for row, label in zip(logits, batch["label"])
    ]
    assert float(outputs["train_top1"]) == pytest.approx(100 * sum(right) / 6)


def test_classifier_trains_everything():
    method = make_method("classifier")
    before = state_of(method, False), state_of(method, True)
    train(method, 2)
    assert not any(
        unchanged(before[0], state_of(method, False)) + unchanged(before[1], state_of(method, True))
    )


@pytest.mark.parametrize(
    "freeze_bn_stats", [True, False], ids=["statistics frozen", "statistics follow"]
)
def test_crt_trains_the_classifier_alone(freeze_bn_stats):
    method = make_method("decoupled", freeze_bn_stats)
    weights, statistics = state_of(method.backbone, False), state_of(method.backbone, True)
    classifier = state_of(method.classifier, False)
    method.eval().train()  # what an evaluation in between does
    train(method, 3)
    assert all(unchanged(weights, state_of(method.backbone, False)))
    assert unchanged(statistics, state_of(method.backbone, True)) == [freeze_bn_stats] * len(
        statistics
    )
    assert not any(unchanged(classifier, state_of(method.classifier, False)))

    method(make_batch(9), 9)["loss"].backward()
    with_gradient = {
        name for name, parameter in method.named_parameters() if parameter.grad is not None
    }
    assert with_gradient == {"classifier.weight", "classifier.bias"}


def test_lws_trains_one_number_a_class_and_starts_as_the_old_classifier(tmp_path):
    old, method = make_method("classifier").eval(), make_method("decoupled", method="lws")
    torch.nn.init.normal_(old.classifier.weight)
    files = {BACKBONE_FILE: old.backbone, CLASSIFIER_FILE: old.classifier}
    assert method.starting_weights().keys() == files.keys()
    for file, module in method.starting_weights().items():
        export_weights(files[file], tmp_path / file, {})
        load_weights(module, tmp_path, file)
    images = make_batch(0)["views"][0]
    assert method.eval().predict(images).equal(old.predict(images))

    before = {name: value.clone() for name, value in method.train().state_dict().items()}
    train(method, 2)
    assert [
        name for name, value in method.state_dict().items() if not value.equal(before[name])
    ] == ["classifier.scale"]
    factors = torch.tensor([2.0, 0.5, 1.0])
    with torch.no_grad():
        method.classifier.scale.copy_(factors)
    torch.testing.assert_close(method.eval().predict(images), factors * old.predict(images))


def test_crt_starts_with_a_new_classifier():
    assert list(make_method("decoupled").starting_weights()) == [BACKBONE_FILE]


# accuracy


@pytest.mark.parametrize("classes", [3, 5, 12])
def test_accuracy_equals_torchmetrics(classes):
    from torchmetrics.classification import (
        MulticlassAccuracy,  # not above: ranks import this module too, and it is slow
    )

    scores, labels = random_scores(500, classes)
    actual = accuracy_of(scores, labels, [10] * classes)

    def reference(**options) -> torch.Tensor:
        return 100 * MulticlassAccuracy(classes, **options)(scores, labels)

    assert actual["samples"] == 500
    assert actual["top1"] == pytest.approx(float(reference(average="micro")), abs=1e-3)
    assert actual["top5"] == pytest.approx(
        float(reference(average="micro", top_k=min(5, classes))), abs=1e-3
    )
    assert actual["per_class"] == pytest.approx(reference(average=None).tolist(), abs=1e-3)


def test_shot_groups_follow_training_counts():
    counts = [101, 100, 99, 20, 19, 0]
    labels = torch.arange(6).repeat_interleave(4)
    right = [4, 3, 2, 1, 1, 0]  # of four samples of each class
    predicted = torch.cat(
        [
            torch.tensor([label] * hits + [(label + 1) % 6] * (4 - hits))
            for label, hits in enumerate(right)
        ]
    )
    actual = accuracy_of(torch.nn.functional.one_hot(predicted, 6).float(), labels, counts)
    assert actual["many_shot"] == 100
    assert actual["medium_shot"] == 50
    assert actual["few_shot"] == 12.5
    assert actual["per_class"] == [100, 75, 50, 25, 25, 0]


def test_groups_and_classes_without_samples_have_no_accuracy():
    actual = accuracy_of(torch.eye(3)[:2], torch.tensor([0, 1]), [500, 300, 5])
    assert (actual["many_shot"], actual["medium_shot"], actual["few_shot"]) == (100, None, None)
    assert actual["per_class"] == [100, 100, None]


def test_balanced_accuracy_is_the_mean_over_classes_and_confusion_counts_pairs():
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

    scores, labels = random_scores(400, 5)
    actual = accuracy_of(scores, labels, [10] * 5)
    assert actual["balanced"] == pytest.approx(
        100 * float(MulticlassAccuracy(5, average="macro")(scores, labels)), abs=1e-3
    )
    assert actual["confusion"] == MulticlassConfusionMatrix(5)(scores, labels).tolist()
    seen = accuracy_of(
        scores[labels != 3], labels[labels != 3], [10] * 5
    )  # a class that the split lacks
    assert seen["balanced"] == pytest.approx(
        sum(actual["per_class"][label] for label in (0, 1, 2, 4)) / 4, abs=1e-3
    )


def test_calibration_error_equals_torchmetrics():
    from torchmetrics.classification import MulticlassCalibrationError

    scores, labels = random_scores(700, 4)
    for logits in (scores, 20 * scores, scores / 20):
        expected = 100 * float(
            MulticlassCalibrationError(4, n_bins=15, norm="l1")(logits.softmax(1), labels)
        )
        assert accuracy_of(logits, labels, [10] * 4)["ece"] == pytest.approx(expected, abs=1e-3)


def test_calibration_error_by_hand():
    """Four predictions at 0.9, three right, and two at 0.6, none right: (4 * |0.75 - 0.9| + 2 * |0
    - 0.6|) / 6.
    """
    confidence, right = (
        torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6]),
        torch.tensor([1, 1, 1, 0, 0, 0]),
    )
    scores = torch.stack([confidence, 1 - confidence], 1).log() + 3
    assert accuracy_of(scores, 1 - right, [10, 10])["ece"] == pytest.approx(
        100 * (4 * 0.15 + 2 * 0.6) / 6, abs=1e-3
    )


def test_scores_that_are_no_logits_have_no_calibration():
    accuracy = Accuracy(CLASS_COUNTS, torch.device("cpu"), logits=False)
    accuracy.update(*random_scores(20, 3))
    assert "ece" not in accuracy.compute()


def test_a_prediction_of_no_class_is_wrong_and_has_no_column():
    """As of the sourcing method, which has one output more than there are classes."""
    predicted, labels = torch.tensor([0, 3, 3, 2, 3]), torch.tensor([0, 0, 2, 2, 1])
    actual = accuracy_of(torch.nn.functional.one_hot(predicted, 4).float(), labels, CLASS_COUNTS)
    assert actual["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert actual["top1"] == 40 and actual["per_class"] == [50, 0, 50]


def test_many_classes_have_no_confusion_matrix():
    scores, labels = random_scores(30, 101)
    assert "confusion" not in accuracy_of(scores, labels, [1] * 101)


def share_of_samples(world: World, samples: int) -> tuple[dict, torch.Tensor]:
    """Accuracy and all labels, gathered, when every rank has its slice of the samples."""
    scores, labels = random_scores(samples, 3)
    rows = batch_slice(0, samples, world.rank, world.size)
    return accuracy_of(scores[rows], labels[rows], CLASS_COUNTS), gather_rows(labels[rows])


def share_of_seven_and_of_three(world: World) -> list[tuple[dict, torch.Tensor]]:
    return [share_of_samples(world, samples) for samples in (7, 3)]


@pytest.mark.slow
def test_each_sample_counts_once_over_ranks():
    """Seven samples on four ranks: one or two each; three samples: one rank has none."""
    on_ranks = run_on_ranks(4, share_of_seven_and_of_three)
    for case, samples in enumerate((7, 3)):
        scores, labels = random_scores(samples, 3)
        expected = accuracy_of(scores, labels, CLASS_COUNTS)
        assert expected["samples"] == samples
        for result in on_ranks:
            assert result[case][0] == expected
            assert result[case][1].equal(labels)
