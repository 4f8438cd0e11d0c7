"""Pictures of a run: the views that networks see, and figures of classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lt_train.config.schema import (
    ClassifierConfig,
    Config,
    EngineConfig,
    LossConfig,
    ModelConfig,
    RotationConfig,
)
from lt_train.data.pixels import normalize, scale_of
from lt_train.methods.base import Method
from lt_train.training.pictures import GAP, SAMPLES, class_pictures, first_seen, view_pictures
from tests.helpers.batches import make_batch
from tests.helpers.small_methods import COUNTS, FEATURES, make_method, progress_of

SIDE, NAMES = 8, ["a", "b", "c"]
DRW = LossConfig("ldam", class_weights="effective_number", weights_from_epoch=1.0)
METRICS = {"top1": 50.0, "per_class": [50.0, 20.0, None], "confusion": np.eye(3).tolist()}


def pixels_of(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, SIDE, SIDE, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def cut(picture: np.ndarray) -> torch.Tensor:
    """The images (N, H, W, 3) of a row."""
    parts = [picture[:, start : start + SIDE] for start in range(0, picture.shape[1], SIDE + GAP)]
    return torch.from_numpy(np.stack(parts))


@pytest.mark.parametrize(("size", "rows"), [(3, [0, 1, 2]), (8, range(8)), (20, None)])
@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.1, 0.5, 0.93)])
def test_views_are_the_pixels_of_the_batch(size, rows, mean):
    """Level for level, however a backbone wants them; of a large batch, samples from all of it."""
    method, pixels = make_method(Config()), [pixels_of(size, seed) for seed in range(2)]
    method.config = replace(method.config, model=ModelConfig("resnet32_cifar", mean=mean))
    scale = scale_of(method.config.model)
    batch = make_batch([normalize(view, scale) for view in pixels], torch.arange(size) % 3)
    found = view_pictures(method, batch, progress_of(method, 0))
    assert list(found) == ["views/view_1", "views/view_2"]
    rows = list(rows or [0, 2, 5, 7, 10, 12, 15, 17])
    for picture, view in zip(found.values(), pixels):
        shown = min(size, SAMPLES)
        assert picture.shape == (SIDE, shown * (SIDE + GAP) - GAP, 3)
        assert cut(picture).equal(view[rows])


SEEN = {
    "mixed": Config(classifier=ClassifierConfig(mixup_alpha=1.0, cutmix_alpha=1.0)),
    "mixed, in parts": Config(
        classifier=ClassifierConfig(mixup_alpha=1.0), engine=EngineConfig(accumulate=2)
    ),
    "rotated": Config(method="rotation"),
    "rotated, all four": Config(method="rotation", rotation=RotationConfig(True)),
}


@pytest.mark.parametrize("name", SEEN)
def test_views_are_shown_as_the_network_gets_them_and_nothing_random_is_used_up(name):
    config = SEEN[name]
    method, given = make_method(config), []
    if config.method == "rotation":
        method.rotation_head = nn.Linear(FEATURES, 4)
    batch = make_batch([torch.randn(8, 3, SIDE, SIDE)], torch.arange(8) % 3)
    progress, before = progress_of(method, 5), torch.get_rng_state()
    kept = batch.views[0].clone()
    seen = method.seen(part := batch.parts(config.engine.accumulate)[0], progress)
    view_pictures(method, batch, progress)
    assert torch.get_rng_state().equal(before) and batch.views[0].equal(kept)
    method.backbone.register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
    method(part, progress)
    assert len(given) == 1 and given[0].equal(seen[0])
    assert not seen[0][-4:].equal(part.views[0][-4:])


def test_features_are_no_views():
    batch = make_batch([torch.randn(4, 5)], torch.zeros(4, dtype=torch.int64))
    assert view_pictures(make_method(Config()), batch, progress_of(make_method(Config()), 0)) == {}


def test_the_first_batch_is_seen_before_it_is_used_and_none_is_lost():
    events = []
    for batch in first_seen(iter([1, 2, 3]), lambda batch: events.append(("seen", batch))):
        events.append(batch)
    assert events == [("seen", 1), 1, 2, 3]
    assert list(first_seen([], events.append)) == [] and len(events) == 4


def drawn(method: Method, metrics: dict, step: int) -> dict[str, np.ndarray]:
    return class_pictures(method, "val", metrics, NAMES, progress_of(method, step))


def test_weights_are_drawn_while_they_count_and_confusion_where_there_is_one():
    method = make_method(Config(loss=DRW, global_batch_size=int(COUNTS.sum())))
    figures = {"val/accuracy_by_class", "val/confusion"}
    before, after = drawn(method, METRICS, 0), drawn(method, METRICS, 1)
    assert before.keys() == figures and after.keys() == {*figures, "train/class_weights"}
    for pixels in after.values():
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert min(pixels.shape[:2]) > 400 and pixels.min() < 100 and pixels[0, 0].min() == 255
    of_many_classes = {"top1": 50.0, "per_class": [50.0, None, 0.0]}
    assert drawn(method, of_many_classes, 0).keys() == {"val/accuracy_by_class"}
    assert drawn(method, {"knn_per_class": [1.0, 2.0, 3.0]}, 1) == {}


def test_what_was_measured_is_what_is_drawn():
    method = make_method(Config())
    one, same = (drawn(method, METRICS, 0) for _ in range(2))
    other = drawn(method, {**METRICS, "per_class": [90.0, 20.0, None]}, 0)
    assert {tag for tag in one if not np.array_equal(one[tag], other[tag])} == {
        "val/accuracy_by_class"
    }
    assert all(np.array_equal(one[tag], same[tag]) for tag in one)
