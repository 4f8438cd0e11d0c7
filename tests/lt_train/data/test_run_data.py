"""Batches of two data sets: every rank count sees the same global batches, of which the second set
has its share.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    RunConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data.run_data import RunData, labeled_batch
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.training.optim import Schedule
from lt_train.training.trainer import Trainer
from tests.helpers.pictures import encode

WHOLE = ViewConfig(size=32, crop="center", resize=32, flip_probability=0.0)
POOL_SIZE = 11


class PoolImages:
    """Image number i is of one grey level, 20 * i."""

    def read(self, index: int) -> bytes:
        return encode(Image.new("RGB", (32, 32), (20 * index,) * 3), "PPM")


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pool") / "pool"
    source = Source(
        "pool",
        [],
        {"train": SourceSplit(None, [f"{index:02d}" for index in range(POOL_SIZE)], PoolImages())},
    )
    write(make_plan(source, out, 0, 4), 1, 0.0, "tests", lambda images, size: None)
    return out


def configure(small, pool, **changes) -> Config:
    data = DataConfig(root=str(small.root), loader="resident", eval_batch_size=4)
    unlabeled = UnlabeledConfig(
        root=str(pool),
        **{key: changes.pop(key) for key in ("share", "max_samples") if key in changes},
    )
    return replace(
        Config(
            data=data,
            unlabeled=unlabeled,
            view=WHOLE,
            eval_view=WHOLE,
            seed=5,
            global_batch_size=10,
        ),
        **changes,
    )


def batches(config: Config, rank: int = 0, size: int = 1, steps: int = 6) -> list[dict]:
    return list(RunData(config, World(rank, size)).train(1, 0, steps))


@pytest.mark.parametrize(
    ("share", "labeled"), [(0.5, 5), (0.2, 8), (0.75, 2), (0.01, 9), (0.99, 1)]
)
def test_a_batch_has_the_stated_share_of_either_side(small, pool, share, labeled):
    config = configure(small, pool, share=share)
    assert labeled_batch(config) == labeled
    for batch in batches(config):
        of_pool = batch["sample_id"] >= len(small.labels)
        assert int((~of_pool).sum()) == labeled and len(of_pool) == 10
        assert (batch["label"][of_pool] == -1).all() and (batch["label"][~of_pool] >= 0).all()


def test_pixels_and_labels_belong_to_the_sample_ids(small, pool):
    factory = RunData(configure(small, pool), World())
    labeled, number = factory.train_set, len(small.labels)
    for batch in factory.train(1, 0, 6):
        grey = batch["views"][0][:, 0, 0, 0] * 58.395 + 123.675
        for level, label, sample_id in zip(
            grey.tolist(), batch["label"].tolist(), batch["sample_id"].tolist()
        ):
            if sample_id >= number:
                assert level == pytest.approx(
                    20 * int(factory.unlabeled_set.key(sample_id - number)), abs=0.01
                )
            else:
                original = int(labeled.key(sample_id))
                assert label == small.labels[original] and level == pytest.approx(
                    int(small.pixels[original, 0, 0, 0]), abs=0.01
                )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_ranks_sees_the_same_global_batches(small, pool, size):
    config = configure(small, pool)
    alone = batches(config)
    by_rank = [batches(config, rank, size) for rank in range(size)]
    for step, batch in enumerate(alone):
        together = torch.cat([parts[step]["sample_id"] for parts in by_rank])
        assert sorted(together.tolist()) == sorted(batch["sample_id"].tolist())
        sizes = [len(parts[step]["label"]) for parts in by_rank]
        assert max(sizes) - min(sizes) <= 1, "the sides' uneven shares even out"
    assert RunData(config, World()).sample_ids(3).tolist() == alone[3]["sample_id"].tolist()


def test_either_side_is_seen_whole_before_anything_is_seen_twice(small, pool):
    ids = torch.cat([batch["sample_id"] for batch in batches(configure(small, pool), steps=11)])
    labeled, of_pool = (
        ids[ids < len(small.labels)],
        ids[ids >= len(small.labels)] - len(small.labels),
    )
    assert sorted(labeled[: len(small.labels)].tolist()) == list(range(len(small.labels)))
    for lap in range(5):
        assert sorted(of_pool[lap * POOL_SIZE : (lap + 1) * POOL_SIZE].tolist()) == list(
            range(POOL_SIZE)
        )


def test_a_draw_of_the_pool_is_the_same_every_time_and_of_the_size_asked_for(small, pool):
    drawn = RunData(configure(small, pool, max_samples=4), World()).unlabeled_set
    again = RunData(configure(small, pool, max_samples=4), World()).unlabeled_set
    other = RunData(configure(small, pool, max_samples=4, seed=6), World()).unlabeled_set
    keys = [[part.key(index) for index in range(len(part))] for part in (drawn, again, other)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 4 and keys[0] != keys[2]
    assert len(RunData(configure(small, pool, max_samples=99), World()).unlabeled_set) == POOL_SIZE


def test_an_epoch_is_a_pass_over_the_labeled_samples(small, pool, tmp_path):
    config = configure(small, pool, share=0.2, method="sourcing", epochs=2.0)
    trainer = Trainer(replace(config, run=replace(config.run, dir=str(tmp_path))), World())
    assert trainer.schedule.epoch(23) == pytest.approx(23 * 8 / len(small.labels))
    assert trainer.last_step == round(2 * len(small.labels) / 8)
    alone = Schedule(replace(config, unlabeled=UnlabeledConfig()), len(small.labels))
    assert alone.epoch(23) == pytest.approx(23 * 10 / len(small.labels))


def test_a_pool_without_classes_adds_nothing_to_the_class_counts(small, pool, tmp_path):
    config = configure(
        small,
        pool,
        method="fixmatch",
        model=ModelConfig(backbone="resnet32_cifar"),
        run=RunConfig(dir=str(tmp_path)),
        engine=EngineConfig(precision="fp32"),
    )
    trainer = Trainer(config, World())
    trainer.build()
    assert trainer.engine.method.pseudo_counts.tolist() == [0] * 4
    assert trainer.engine.method.criterion.log_prior.exp().tolist() == pytest.approx(
        [12 / 23, 6 / 23, 3 / 23, 2 / 23]
    )


def test_two_sets_whose_folders_have_one_name_are_staged_apart(small, pool, tmp_path):
    roots = [
        Path(shutil.copytree(root, tmp_path / kind / "set"))
        for kind, root in (("labeled", small.root), ("pool", pool))
    ]
    config = configure(small, pool)
    staged = replace(
        config,
        data=replace(config.data, root=str(roots[0]), cache_dir=str(tmp_path / "scratch")),
        unlabeled=replace(config.unlabeled, root=str(roots[1])),
    )
    for batch, expected in zip(batches(staged), batches(config), strict=True):
        assert all(
            torch.equal(batch[key], expected[key]) for key in ("label", "sample_id")
        ) and torch.equal(batch["views"][0], expected["views"][0])


def test_a_classifier_on_an_unlabeled_set_is_refused(pool, tmp_path):
    config = Config(data=DataConfig(root=str(pool), loader="resident"), view=WHOLE, eval_view=WHOLE)
    with pytest.raises(UserError, match="unlabeled: only moco and rotation"):
        Trainer(replace(config, run=replace(config.run, dir=str(tmp_path))), World())


def test_ppm_is_decoded_like_any_other_image(prepare):
    """Raw pixels take a shorter way; a PPM with a comment in its header takes Pillow's."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    plain = encode(Image.fromarray(pixels[0]), "PPM")
    commented = encode(Image.fromarray(pixels[1]), "PPM").replace(b"P6\n", b"P6\n# made by hand\n")
    root = prepare({"train": ([plain, commented], [0, 0])})
    config = Config(
        data=DataConfig(root=str(root), loader="resident"),
        view=WHOLE,
        eval_view=WHOLE,
        global_batch_size=2,
    )
    factory = RunData(config, World())
    (batch,) = factory.train(1, 0, 1)
    for view, sample_id in zip(batch["views"][0], batch["sample_id"].tolist()):
        grey = (
            view * torch.tensor((58.395, 57.12, 57.375))[:, None, None]
            + torch.tensor((123.675, 116.28, 103.53))[:, None, None]
        ).round()
        np.testing.assert_array_equal(
            grey.permute(1, 2, 0).numpy(), pixels[int(factory.train_set.key(sample_id))]
        )
