"""Accuracy and calibration against torchmetrics."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_train.distributed import World, rank_share
from lt_train.methods.metrics import Accuracy, feature_std
from tests.helpers.ranks import run_on_ranks

# torchmetrics is imported in tests: ranks import this module too, and it is slow

CLASS_COUNTS = torch.tensor([150, 40, 7])


def random_scores(samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(samples)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    scores = torch.randn(samples, classes, generator=generator)
    return scores.scatter_add_(1, labels[:, None], torch.ones(samples, 1)), labels


def accuracy_of(
    scores: torch.Tensor, labels: torch.Tensor, class_counts: list[int] | torch.Tensor
) -> dict:
    return counted(scores, labels, class_counts).compute()


def counted(
    scores: torch.Tensor,
    labels: torch.Tensor,
    class_counts: list[int] | torch.Tensor,
    sample_ids: torch.Tensor | None = None,
) -> Accuracy:
    accuracy = Accuracy(torch.as_tensor(class_counts), torch.device("cpu"))
    for rows in torch.arange(len(labels)).split(13):
        ids = None if sample_ids is None else sample_ids[rows]
        accuracy.update(scores[rows], labels[rows], ids)
    return accuracy


@pytest.mark.parametrize("classes", [3, 5, 12])
def test_accuracy_equals_torchmetrics(classes):
    from torchmetrics.classification import MulticlassAccuracy

    scores, labels = random_scores(500, classes)
    actual = accuracy_of(scores, labels, [10] * classes)

    def reference(**options) -> torch.Tensor:
        return 100 * MulticlassAccuracy(classes, **options)(scores, labels)

    top1 = reference(average="micro")
    top5 = reference(average="micro", top_k=min(5, classes))
    assert actual["samples"] == 500
    assert actual["class_samples"] == labels.bincount(minlength=classes).tolist()
    assert actual["top1"] == pytest.approx(float(top1), abs=1e-3)
    assert actual["top5"] == pytest.approx(float(top5), abs=1e-3)
    assert actual["per_class"] == pytest.approx(reference(average=None).tolist(), abs=1e-3)


def test_shot_groups_follow_training_counts():
    counts = [101, 100, 99, 20, 19, 0]
    labels = torch.arange(6).repeat_interleave(4)
    right = [4, 3, 2, 1, 1, 0]  # of four samples of each class
    predicted = []
    for label, hits in enumerate(right):
        predicted += [label] * hits + [(label + 1) % 6] * (4 - hits)
    actual = accuracy_of(F.one_hot(torch.tensor(predicted), 6).float(), labels, counts)
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
    balanced = 100 * float(MulticlassAccuracy(5, average="macro")(scores, labels))
    assert actual["balanced"] == pytest.approx(balanced, abs=1e-3)
    assert actual["confusion"] == MulticlassConfusionMatrix(5)(scores, labels).tolist()
    kept = labels != 3  # a class that the split lacks
    seen = accuracy_of(scores[kept], labels[kept], [10] * 5)
    of_seen = [actual["per_class"][label] for label in (0, 1, 2, 4)]
    assert seen["balanced"] == pytest.approx(sum(of_seen) / 4, abs=1e-3)


def test_calibration_error_equals_torchmetrics():
    from torchmetrics.classification import MulticlassCalibrationError

    scores, labels = random_scores(700, 4)
    for logits in (scores, 20 * scores, scores / 20):
        reference = MulticlassCalibrationError(4, n_bins=15, norm="l1")
        expected = 100 * float(reference(logits.softmax(1), labels))
        assert accuracy_of(logits, labels, [10] * 4)["ece"] == pytest.approx(expected, abs=1e-3)


def test_calibration_error_by_hand():
    """Four predictions at 0.9, three right, and two at 0.6, none right:
    (4 * |0.75 - 0.9| + 2 * |0 - 0.6|) / 6.
    """
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    right = torch.tensor([1, 1, 1, 0, 0, 0])
    scores = torch.stack([confidence, 1 - confidence], 1).log() + 3
    expected = 100 * (4 * 0.15 + 2 * 0.6) / 6
    assert accuracy_of(scores, 1 - right, [10, 10])["ece"] == pytest.approx(expected, abs=1e-3)


def test_scores_that_are_no_logits_have_no_calibration():
    accuracy = Accuracy(CLASS_COUNTS, torch.device("cpu"), logits=False)
    accuracy.update(*random_scores(20, 3))
    assert "ece" not in accuracy.compute()


def test_a_prediction_of_no_class_is_wrong_and_has_no_column():
    """As of the sourcing method, which has one output more than there are classes."""
    predicted, labels = torch.tensor([0, 3, 3, 2, 3]), torch.tensor([0, 0, 2, 2, 1])
    actual = accuracy_of(F.one_hot(predicted, 4).float(), labels, CLASS_COUNTS)
    assert actual["confusion"] == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert actual["top1"] == 40 and actual["per_class"] == [50, 0, 50]


def test_many_classes_have_no_confusion_matrix():
    scores, labels = random_scores(30, 101)
    assert "confusion" not in accuracy_of(scores, labels, [1] * 101)


def test_what_each_image_was_taken_for_is_kept_where_images_have_numbers():
    scores, labels = random_scores(30, 3)
    ids = torch.arange(100, 130)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    accuracy = counted(scores[order], labels[order], CLASS_COUNTS, ids[order])
    found = accuracy.compute()["predictions"]
    assert found["sample_id"].tolist() == ids.tolist()
    assert found["label"].tolist() == labels.tolist()
    assert found["predicted"].tolist() == scores.argmax(1).tolist()
    sure = scores.softmax(1).amax(1)
    assert found["confidence"].tolist() == pytest.approx(sure.tolist(), abs=1e-6)
    assert "predictions" not in accuracy_of(scores, labels, CLASS_COUNTS)


def share_of_samples(world: World, samples: int) -> tuple[dict, list]:
    """Accuracy and predictions when every rank has its part of the samples."""
    scores, labels = random_scores(samples, 3)
    rows = np.asarray(rank_share(samples, world.rank, world.size))
    ids = torch.arange(samples)
    found = counted(scores[rows], labels[rows], CLASS_COUNTS, ids[rows]).compute()
    return found, found.pop("predictions").tolist()


def share_of_seven_and_of_three(world: World) -> list[tuple[dict, list]]:
    return [share_of_samples(world, samples) for samples in (7, 3)]


@pytest.mark.slow
def test_each_sample_counts_once_over_ranks():
    """Seven samples on four ranks: one or two each; three samples: one rank has none."""
    on_ranks = run_on_ranks(4, share_of_seven_and_of_three)
    for case, samples in enumerate((7, 3)):
        expected = share_of_samples(World(), samples)
        assert expected[0]["samples"] == samples
        assert [result[case] for result in on_ranks] == [expected] * 4


@pytest.mark.parametrize("dim", [2, 64])
def test_the_spread_of_features_tells_collapse(dim):
    """Whatever their lengths: along all axes, both ways, 1 / sqrt(D); all in one direction, 0."""
    axes = torch.eye(dim) * torch.linspace(0.1, 30, dim)[:, None]
    assert float(feature_std(torch.cat([axes, -axes]))) == pytest.approx(dim**-0.5)
    one = torch.linspace(0.1, 30, 5)[:, None] * torch.randn(dim)
    assert float(feature_std(one)) == pytest.approx(0, abs=1e-6)
    assert float(feature_std(one[:1])) == 0  # of a rank with a single sample
