"""What a run has learnt from beside its own training set."""

from dataclasses import replace
from pathlib import Path

import pytest

from lt_train.config.schema import ClassifierConfig, Config, ModelConfig, UnlabeledConfig
from lt_train.run_files import write_result
from lt_train.training.outside_data import outside_data

OWN = {"data.root": "aaaa"}
TIMM = "timm/tf_efficientnet_lite0"


def test_a_run_from_scratch_has_none():
    assert outside_data(Config(), OWN) == []
    means = replace(Config(), classifier=ClassifierConfig(init="class_means"))
    assert outside_data(means, OWN) == []


def test_weights_embeddings_and_unlabeled_images_are_told(tmp_path):
    file = tmp_path / "text.safetensors"
    file.write_bytes(b"")
    config = Config(
        model=ModelConfig(TIMM, pretrained=True),
        classifier=ClassifierConfig(init=str(file)),
        unlabeled=UnlabeledConfig("sets/pool"),
    )
    others = ["class embeddings text.safetensors", "unlabeled images of pool"]
    assert outside_data(config, OWN) == [f"weights of {TIMM}", *others]
    named = replace(config, model=replace(config.model, init_from="weights/vit.pth"))
    assert outside_data(named, OWN) == ["weights vit.pth", *others]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"data": OWN, "outside_data": []}, []),
        ({"data": OWN, "outside_data": ["weights vit.pth"]}, ["weights vit.pth"]),
        ({"data": {"data.root": "bbbb"}, "outside_data": []}, ["images of the run first"]),
        ({}, []),  # an earlier version's
    ],
)
def test_a_stage_has_what_the_run_had_that_it_starts_from(tmp_path, result, expected):
    folder = tmp_path / "first"
    folder.mkdir()
    write_result(folder, result)
    config = Config(model=ModelConfig(init_from=str(folder), pretrained=True))
    assert outside_data(config, OWN) == expected


def test_a_run_goes_before_the_name_of_published_weights(tmp_path):
    """As training does, which starts from ``model.init_from`` then."""
    config = Config(model=ModelConfig(TIMM, pretrained=True, init_from=str(tmp_path)))
    assert outside_data(config, OWN) == []
    assert Path(config.model.init_from).is_dir()
