"""The classifier: what it computes, with mixed images and margins too, and what it trains."""

import math

import pytest
import torch
from torch.nn import functional as F

from lt_train.config.schema import ClassifierConfig, Config, LossConfig, ModelConfig
from lt_train.methods.mixup import mix_images
from lt_train.models.heads import CosineClassifier
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import (
    COUNTS,
    FEATURES,
    make_images,
    make_labels,
    make_method,
    new_method,
    progress_of,
    random_batch,
    statistics_of,
    take_steps,
    unchanged,
    weights_of,
)

CONFIG = Config(model=ModelConfig("resnet32_cifar"))


def test_classifier_loss_is_cross_entropy():
    method, batch = new_method(CONFIG), random_batch(0)
    outputs = method(batch, progress_of(method, 0))
    logits = method.predict(batch.views[0]).double().tolist()
    rows = list(zip(logits, batch.label))
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
    assert float(outputs["loss"].detach()) == pytest.approx(sum(losses) / 6, rel=1e-5)
    right = [max(range(3), key=row.__getitem__) == label for row, label in rows]
    assert float(outputs["train_top1"]) == pytest.approx(100 * sum(right) / 6)


def test_classifier_trains_everything():
    method = new_method(CONFIG)
    weights, statistics = weights_of(method), statistics_of(method)
    take_steps(method, 2)
    assert not any(unchanged(weights, weights_of(method)))
    assert not any(unchanged(statistics, statistics_of(method)))


def test_ldams_margins_are_in_units_of_the_cosine():
    loss, classifier = LossConfig("ldam", max_margin=0.4), ClassifierConfig("cosine", scale=20.0)
    method = make_method(Config(loss=loss, classifier=classifier))
    method.classifier = CosineClassifier(FEATURES, 3, 20.0)
    images, labels = make_images(6), make_labels(6)
    features = method.backbone(images)
    cosines = F.cosine_similarity(features[:, None], method.classifier.weight[None], dim=2)
    margins = 0.4 * (COUNTS / 5) ** -0.25
    expected = F.cross_entropy(20 * (cosines - F.one_hot(labels, 3) * margins), labels)
    outputs = method(make_batch([images], labels), progress_of(method, 0))
    torch.testing.assert_close(outputs["loss"], expected)


@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_the_loss_of_mixed_images_is_that_of_both_labels_by_their_shares(weights):
    classifier = ClassifierConfig(mixup_alpha=1.0)
    method = make_method(Config(classifier=classifier, loss=LossConfig(class_weights=weights)))
    batch = make_batch([make_images(6)], torch.tensor([0, 2, 1, 1, 0, 0]))
    images, share = mix_images(batch.views[0], classifier, 0, 4)
    by_class = torch.ones(3) if weights == "none" else 1 / COUNTS
    logits = method.predict(images)
    first, second = (
        F.cross_entropy(logits, labels, by_class) for labels in (batch.label, batch.label.flip(0))
    )
    loss = method(batch, progress_of(method, 4))["loss"]
    torch.testing.assert_close(loss, share * first + (1 - share) * second)
