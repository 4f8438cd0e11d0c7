"""What a new classifier starts from: class means against their definition, and embeddings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from lt_train.config.schema import (
    BACKBONES,
    METHODS,
    ClassifierConfig,
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    UnlabeledConfig,
    ViewConfig,
    code_of,
)
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.methods.base import Counts, Method
from lt_train.training.classifier_init import read_prototypes, start_classifier
from tests.helpers.pictures import encode
from tests.helpers.small_methods import Pooled

SIZES = [7, 0, 3, 1]  # images of each class
LABELS = np.repeat(np.arange(4), SIZES)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def root(prepare) -> Path:
    """Noise; of one class there is no image."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(LABELS), 16, 16, 3), dtype=np.uint8)
    contents = [encode(Image.fromarray(image), "PNG") for image in pixels]
    return prepare({"train": (contents, LABELS)}, classes=4)


def started(
    root: Path, head: str, init: str, method: str = "classifier"
) -> tuple[Method, dict, RunData]:
    """A method on :class:`Pooled` with the start that ``init`` gives, the classifier's state before
    it, and the data.
    """
    BACKBONES["pooled"] = Pooled
    config = Config(
        method=method,
        data=DataConfig(str(root), loader="resident", eval_batch_size=3),
        eval_view=ViewConfig(size=16, crop="center", resize=16, flip_probability=0.0),
        model=ModelConfig("pooled"),
        classifier=ClassifierConfig(head, init=init),
        engine=EngineConfig(precision="fp32"),
        unlabeled=UnlabeledConfig(),
    )
    data = RunData(config, World())
    torch.manual_seed(0)
    counts = Counts.of(torch.from_numpy(data.train_set.class_counts.astype(np.int64)))
    made = code_of(METHODS, method)(config, counts)
    before = {name: value.clone() for name, value in made.classifier.state_dict().items()}
    start_classifier(made, data)
    del BACKBONES["pooled"]
    return made, before, data


def features_of(data: RunData) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(data.evaluate("train"))
    images = torch.cat([batch.views[0] for batch in batches])
    return Pooled()(images), torch.cat([batch.label for batch in batches])


def test_a_linear_classifier_starts_as_the_nearest_class_mean(root, caplog):
    caplog.set_level("INFO", "lt_train")
    method, before, data = started(root, "linear", "class_means")
    assert "the means of 3 classes; 1 without images keep random weights" in caplog.text
    features, labels = features_of(data)
    seen = [0, 2, 3]
    means = torch.stack([features[labels == label].mean(0) for label in seen])
    torch.testing.assert_close(method.classifier.weight[seen].detach(), means)
    others = torch.randn(50, Pooled.out_features)
    nearest = torch.cdist(others, means).argmin(1)
    assert method.classifier(others)[:, seen].argmax(1).equal(nearest)
    for name, value in method.classifier.state_dict().items():
        assert value[1].equal(before[name][1]), "it has no mean"
    assert method.training


def test_a_cosine_classifier_starts_from_means_on_the_unit_sphere(root):
    method, before, data = started(root, "cosine", "class_means")
    features, labels = features_of(data)
    features = F.normalize(features, dim=1)
    for label in (0, 2, 3):
        mean = F.normalize(features[labels == label].mean(0), dim=0)
        torch.testing.assert_close(method.classifier.weight[label].detach(), mean)
    assert method.classifier.weight[1].equal(before["weight"][1])


def test_what_fixmatch_trains_starts_as_its_average_does(root):
    method, before, _ = started(root, "linear", "class_means", "fixmatch")
    assert not method.classifier.weight.equal(before["weight"])
    for name, value in method.trained[1].state_dict().items():
        assert value.equal(method.classifier.state_dict()[name])


@pytest.mark.parametrize("method", ["experts", "lws"])
def test_other_heads_are_refused(root, method):
    with pytest.raises(UserError, match=f"that of the method {method} is none: unset it"):
        started(root, "linear", "class_means", method)


# embeddings from a file


@pytest.mark.parametrize("kind", ["a matrix", "by name"])
def test_embeddings_are_one_a_class_in_the_order_of_classes(tmp_path, kind):
    rows = torch.randn(3, 5)
    named = {name: row.clone() for name, row in zip(reversed(NAMES), rows.flip(0))}
    file = tmp_path / "text.safetensors"
    save_file({"text": rows.half()} if kind == "a matrix" else named, file)
    expected = rows.half().float() if kind == "a matrix" else rows
    assert read_prototypes(file, NAMES, 5).equal(expected)


def test_a_classifier_starts_from_embeddings(root, tmp_path):
    rows = torch.randn(4, Pooled.out_features)
    save_file({"text": rows}, tmp_path / "text.safetensors")
    method, _, _ = started(root, "cosine", str(tmp_path / "text.safetensors"))
    expected = 30 * F.cosine_similarity(rows[:, None], rows[None], dim=2)
    torch.testing.assert_close(method.classifier(rows).detach(), expected)


ROWS = torch.ones(3, 5)
WRONG = {
    "another width": ({"text": torch.ones(3, 4)}, r"a tensor of \(3, 4\).*want \(3, 5\)"),
    "another number": ({"text": torch.ones(4, 5)}, r"a tensor of \(4, 5\).*want \(3, 5\)"),
    "one number a class": ({"text": torch.ones(3)}, r"a tensor of \(3,\)"),
    "integers": ({"text": ROWS.long()}, "int64 numbers, which are no embeddings"),
    "not finite": ({"text": ROWS / torch.tensor([[1.0], [0], [1]])}, "class 'b' is zero or not"),
    "nothing": ({"text": ROWS * torch.tensor([[1.0], [1], [0]])}, "class 'c' is zero or not"),
    "a class missing": (
        {"a": torch.ones(5), "b": torch.ones(5)},
        r"2 tensors, .* 3 classes \(1 missing, 0 unknown; without 'c'\)",
    ),
    "another class": (
        {name: torch.ones(5) for name in "abcd"},
        r"\(0 missing, 1 unknown; unknown: 'd'\)",
    ),
    "a classifier": (
        {"weight": torch.ones(3, 5), "bias": torch.ones(3)},
        r"\(3 missing, 2 unknown; without 'a'; unknown: 'bias'\)",
    ),
    "a row too short": (
        {"a": torch.ones(5), "b": torch.ones(4), "c": torch.ones(5)},
        r"class 'b' is of \(4,\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_of_other_shapes_or_classes_is_one_line(tmp_path, case):
    tensors, message = WRONG[case]
    file = tmp_path / "text.safetensors"
    save_file(tensors, file)
    with pytest.raises(UserError, match=message) as caught:
        read_prototypes(file, NAMES, 5)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_damaged_is_one_line(tmp_path):
    file = tmp_path / "text.safetensors"
    with pytest.raises(UserError, match=f"classifier.init: there is no {file}"):
        read_prototypes(file, NAMES, 5)
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="damaged or cut off"):
        read_prototypes(file, NAMES, 5)


def test_of_class_means_damaged_images_are_left_out_up_to_a_share(root, damaged_copy):
    with pytest.raises(UserError, match="1 of 11 samples .* are damaged"):
        started(damaged_copy(root, [2]), "linear", "class_means")


def test_unlabeled_images_have_no_mean(prepare):
    black, white = (encode(Image.new("RGB", (16, 16), (v,) * 3), "PNG") for v in (0, 255))
    root = prepare({"train": ([black, white, white], [0, 1, -1])}, classes=2)
    method, _, data = started(root, "linear", "class_means")
    features, labels = features_of(data)
    torch.testing.assert_close(method.classifier.weight.detach(), features[labels >= 0])
