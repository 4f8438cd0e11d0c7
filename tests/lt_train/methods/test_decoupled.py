"""cRT and LWS: what of a finished run they start from, and what they train."""

import pytest
import torch

from lt_train.config.schema import Config, DecoupledConfig, ModelConfig
from lt_train.methods.base import Method
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights, load_weights
from tests.helpers.small_methods import (
    new_method,
    progress_of,
    random_batch,
    state_of,
    statistics_of,
    take_steps,
    unchanged,
    weights_of,
)


def make_method(name: str, freeze_bn_stats: bool = True) -> Method:
    model = ModelConfig("resnet32_cifar", init_from="a finished run")
    return new_method(Config(method=name, model=model, decoupled=DecoupledConfig(freeze_bn_stats)))


@pytest.mark.parametrize("freeze", [True, False], ids=["statistics frozen", "statistics follow"])
def test_crt_trains_the_classifier_alone(freeze):
    method = make_method("crt", freeze)
    weights, statistics = weights_of(method.backbone), statistics_of(method.backbone)
    classifier = state_of(method.classifier)
    method.eval().train()  # what an evaluation in between does
    take_steps(method, 3)
    assert all(unchanged(weights, weights_of(method.backbone)))
    kept = unchanged(statistics, statistics_of(method.backbone))
    assert kept == [freeze] * len(statistics)
    assert not any(unchanged(classifier, state_of(method.classifier)))

    method(random_batch(9), progress_of(method, 9))["loss"].backward()
    with_gradient = {
        name for name, parameter in method.named_parameters() if parameter.grad is not None
    }
    assert with_gradient == {"classifier.weight", "classifier.bias"}


def test_lws_trains_one_number_a_class_and_starts_as_the_old_classifier(tmp_path):
    old, method = make_method("classifier").eval(), make_method("lws")
    torch.nn.init.normal_(old.classifier.weight)
    files = {BACKBONE_FILE: old.backbone, CLASSIFIER_FILE: old.classifier}
    assert method.starting_weights().keys() == files.keys()
    for file, module in method.starting_weights().items():
        export_weights(files[file], tmp_path / file, {})
        load_weights(module, tmp_path, file)
    images = random_batch(0).views[0]
    assert method.eval().predict(images).equal(old.predict(images))

    before = state_of(method.train())
    take_steps(method, 2)
    changed = [name for name, value in method.state_dict().items() if not value.equal(before[name])]
    assert changed == ["classifier.scale"]
    factors = torch.tensor([2.0, 0.5, 1.0])
    with torch.no_grad():
        method.classifier.scale.copy_(factors)
    torch.testing.assert_close(method.eval().predict(images), factors * old.predict(images))


def test_crt_starts_with_a_new_classifier():
    assert list(make_method("crt").starting_weights()) == [BACKBONE_FILE]
