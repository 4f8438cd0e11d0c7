"""The command score: its scores against their definition, and the files that hold them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.commands.score import open_sourcing, score_pool
from lt_train.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    RunConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.scores import ScoreStore
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.methods.base import Counts
from lt_train.methods.sourcing import Sourcing
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights
from tests.helpers.loading import PIXEL_MEAN, PIXEL_STD
from tests.helpers.pictures import encode

KNOWN = 3
SIZES = (7, 7, 6)  # samples of the pool's shards


def noise(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)


class Noise:
    def read(self, index: int) -> bytes:
        return encode(Image.fromarray(noise(index)), "PPM" if index % 2 else "PNG")


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pool") / "pool"
    keys = [str(index) for index in range(sum(SIZES))]
    source = Source("pool", [], {"train": SourceSplit(None, keys, Noise())})
    write(make_plan(source, out, 0, 7), 1, 0.0, "tests", lambda images, size: None)
    sizes = [shard.samples for shard in read_dataset(out).splits["train"].shards]
    assert sizes == sorted(SIZES)
    return out


@pytest.fixture(scope="module")
def config(tmp_path_factory, pool) -> Config:
    """A finished run, with weights that are only drawn."""
    run = tmp_path_factory.mktemp("run")
    view = ViewConfig(size=32, crop="center", resize=32, flip_probability=0.0)
    config = Config(
        method="sourcing",
        run=RunConfig(dir=str(run)),
        data=DataConfig(root="labeled", loader="resident", eval_batch_size=4),
        unlabeled=UnlabeledConfig(root=str(pool)),
        view=view,
        eval_view=view,
        model=ModelConfig("resnet32_cifar"),
        engine=EngineConfig(precision="fp32"),
    )
    torch.manual_seed(0)
    method = Sourcing(config, Counts.of(torch.full((KNOWN,), 10)))
    export_weights(method.backbone, run / BACKBONE_FILE, {})
    export_weights(method.classifier, run / CLASSIFIER_FILE, {})
    result = {"classes": ["a", "b", "c"], "class_counts": [10] * KNOWN}
    (run / "result.json").write_text(json.dumps(result))
    return config


def expected_scores(config: Config, pool: Path) -> tuple[np.ndarray, np.ndarray]:
    """By the definition, an image at a time: the likeliest of the known classes, its share of all
    four.
    """
    method, _ = open_sourcing(config, World())
    manifest = Manifest(pool, "train")
    labels, scores = [], []
    for sample_id in range(len(manifest)):
        pixels = noise(int(manifest.key(sample_id)))
        normalized = (pixels - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
        image = torch.from_numpy(normalized.astype(np.float32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            odds = np.exp(method.predict(image)[0].double().numpy())
        labels.append(odds[:KNOWN].argmax())
        scores.append(odds[:KNOWN].max() / odds.sum())
    return np.array(labels), np.array(scores)


def score(config: Config, pool: Path, store: ScoreStore, shards: range) -> None:
    method, classes = open_sourcing(config, World())
    store.begin(classes, "model")
    score_pool(config, World(), method, pool, store, shards, "")


def joined(store: ScoreStore) -> tuple[np.ndarray, np.ndarray]:
    firsts, labels, scores = zip(*store.read(KNOWN))
    assert list(firsts) == np.cumsum([0, *map(len, labels[:-1])]).tolist()
    return np.concatenate(labels), np.concatenate(scores)


def test_scores_are_the_likeliest_known_class_and_its_probability(config, pool, tmp_path):
    store = ScoreStore(tmp_path / "scores", read_dataset(pool))
    score(config, pool, store, range(3))
    labels, scores = joined(store)
    expected_labels, expected = expected_scores(config, pool)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    table = pa.ipc.open_file((tmp_path / "scores" / "train-000000.arrow").read_bytes()).read_all()
    assert table.schema.names == ["sourced_label", "score"]


def test_slices_together_are_the_whole_and_finished_shards_are_not_scored_again(
    config, pool, tmp_path
):
    whole, parts = (ScoreStore(tmp_path / name, read_dataset(pool)) for name in ("whole", "parts"))
    score(config, pool, whole, range(3))
    score(config, pool, parts, range(3)[1::2])
    with pytest.raises(UserError, match="2 of 3 shards are not scored yet"):
        list(parts.read(KNOWN))
    before = (tmp_path / "parts" / "train-000001.arrow").stat()
    score(config, pool, parts, range(3))
    after = (tmp_path / "parts" / "train-000001.arrow").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    for name in ("train-000000.arrow", "train-000001.arrow", "train-000002.arrow"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_damaged_image_gets_no_label_and_the_others_keep_theirs(
    config, pool, tmp_path, damaged_copy
):
    damaged = damaged_copy(pool, [2, 9])
    store = ScoreStore(tmp_path / "scores", read_dataset(damaged))
    score(config, damaged, store, range(3))
    labels, scores = joined(store)
    expected_labels, expected = expected_scores(config, pool)
    assert labels[[2, 9]].tolist() == [-1, -1] and scores[[2, 9]].tolist() == [0, 0]
    intact = np.setdiff1d(np.arange(sum(SIZES)), [2, 9])
    np.testing.assert_array_equal(labels[intact], expected_labels[intact])
    np.testing.assert_allclose(scores[intact], expected[intact], rtol=1e-4)


def test_scores_of_another_pool_or_model_are_not_mixed(config, pool, tmp_path, small):
    store = ScoreStore(tmp_path / "scores", read_dataset(pool))
    score(config, pool, store, range(3))
    with pytest.raises(UserError, match="another model"):
        store.begin(["a", "b", "c"], "other model")
    with pytest.raises(UserError, match="3 classes, not 10"):
        list(store.read(10))
    with pytest.raises(UserError, match="of another pool"):
        list(ScoreStore(tmp_path / "scores", read_dataset(small.root)).read(KNOWN))
    with pytest.raises(UserError, match="holds no scores"):
        list(ScoreStore(tmp_path / "nowhere", read_dataset(pool)).read(KNOWN))


def with_another_score(content: bytes) -> bytes:
    scores = pa.ipc.open_file(content).read_all()["score"].to_numpy()
    assert content.count(scores.tobytes()) == 1
    return content.replace(scores.tobytes(), (scores / 2).tobytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:50], "cannot read .*train-000001.arrow"),
        (lambda content: b"", "cannot read .*train-000001.arrow"),
        (with_another_score, "train-000001.arrow does not match its own checksum"),
    ],
)
def test_a_damaged_score_file_is_named(config, pool, tmp_path, damage, message):
    store = ScoreStore(tmp_path / "scores", read_dataset(pool))
    score(config, pool, store, range(3))
    path = tmp_path / "scores" / "train-000001.arrow"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        list(store.read(KNOWN))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff", b'{"pool": "x", "classes": null, "model": "m"}']
)
def test_a_damaged_description_of_scores_is_named(pool, tmp_path, content):
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(UserError, match="scores.json is damaged"):
        list(ScoreStore(tmp_path, read_dataset(pool)).read(KNOWN))


def test_only_a_finished_sourcing_run_can_score(config, tmp_path):
    with pytest.raises(UserError, match="sourcing method, not of 'classifier'"):
        open_sourcing(replace(config, method="classifier"), World())
    with pytest.raises(UserError, match="not a finished run"):
        open_sourcing(replace(config, run=RunConfig(dir=str(tmp_path))), World())
