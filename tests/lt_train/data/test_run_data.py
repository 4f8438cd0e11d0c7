"""Batches of two data sets: any number of ranks sees the same global batches, of which the second
set has its share.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lt_train.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    RunConfig,
    UnlabeledConfig,
    labeled_batch,
)
from lt_train.data.batch import Batch
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData, check_bad_samples, decodes_on_gpu
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.training.optim import Schedule
from lt_train.training.same_run import data_digests
from lt_train.training.trainer import Trainer
from tests.helpers import loading
from tests.helpers.loading import WHOLE, grey_levels
from tests.helpers.pools import POOL_SIZE, numbers


def configure(
    small, pool: Path, share: float = 0.5, max_samples: int | None = None, **changes
) -> Config:
    unlabeled = UnlabeledConfig(str(pool), share=share, max_samples=max_samples)
    common = {"method": "sourcing", "unlabeled": unlabeled}
    return loading.configure(small.root, "resident", WHOLE, **{**common, **changes})


def batches(config: Config, rank: int = 0, size: int = 1, steps: int = 6) -> list[Batch]:
    return list(RunData(config, World(rank, size)).train(0, steps))


@pytest.mark.parametrize(
    ("share", "labeled"), [(0.5, 5), (0.2, 8), (0.75, 2), (0.01, 9), (0.99, 1)]
)
def test_a_batch_has_the_stated_share_of_either_side(small, pool, share, labeled):
    config = configure(small, pool, share=share)
    assert labeled_batch(config) == labeled
    for batch in batches(config):
        of_pool = batch.sample_id >= len(small.labels)
        assert int((~of_pool).sum()) == labeled and len(of_pool) == 10
        assert (batch.label[of_pool] == -1).all() and (batch.label[~of_pool] >= 0).all()


def test_pixels_and_labels_belong_to_the_sample_ids(small, pool):
    data = RunData(configure(small, pool), World())
    number = len(small.labels)
    for batch in data.train(0, 6):
        levels = grey_levels([batch])[:, 0, 0, 0]
        for level, label, sample_id in zip(levels, batch.label.tolist(), batch.sample_id.tolist()):
            if sample_id >= number:
                expected = 20 * int(data.unlabeled_set.key(sample_id - number))
            else:
                original = int(data.train_set.key(sample_id))
                expected = int(small.pixels[original, 0, 0, 0])
                assert label == small.labels[original]
            assert level == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_any_number_of_ranks_sees_the_same_global_batches(small, pool, size):
    config = configure(small, pool)
    alone = batches(config)
    by_rank = [batches(config, rank, size) for rank in range(size)]
    for step, batch in enumerate(alone):
        together = torch.cat([parts[step].sample_id for parts in by_rank])
        assert sorted(together.tolist()) == sorted(batch.sample_id.tolist())
        sizes = [len(parts[step]) for parts in by_rank]
        assert max(sizes) - min(sizes) <= 1, "the sides' uneven shares even out"
    assert RunData(config, World()).sample_ids(3).tolist() == alone[3].sample_id.tolist()


def test_either_side_is_seen_whole_before_anything_is_seen_twice(small, pool):
    ids, number = loading.sample_ids(batches(configure(small, pool), steps=11)), len(small.labels)
    labeled = [sample_id for sample_id in ids if sample_id < number]
    of_pool = [sample_id - number for sample_id in ids if sample_id >= number]
    assert sorted(labeled[:number]) == list(range(number))
    for lap in range(5):
        seen = of_pool[lap * POOL_SIZE : (lap + 1) * POOL_SIZE]
        assert sorted(seen) == list(range(POOL_SIZE))


def test_a_draw_of_the_pool_is_the_same_every_time_and_of_the_size_asked_for(small, pool):
    drawn = numbers(RunData(configure(small, pool, max_samples=4), World()).unlabeled_set)
    again = numbers(RunData(configure(small, pool, max_samples=4), World()).unlabeled_set)
    other = numbers(RunData(configure(small, pool, max_samples=4, seed=6), World()).unlabeled_set)
    assert drawn == again and len(set(drawn)) == 4 and drawn != other
    assert len(RunData(configure(small, pool, max_samples=99), World()).unlabeled_set) == POOL_SIZE


@pytest.mark.parametrize("loader", ["dali", "resident"])
def test_a_draw_of_the_training_set_is_all_that_is_known_of_it(small, loader):
    """To sampling, counting, and evaluating on the training split; other splits stay whole."""
    config = loading.configure(small.root, loader, WHOLE)

    def data_of(max_samples: int | None, seed: int = 5) -> RunData:
        data = replace(config.data, max_samples=max_samples)
        return RunData(replace(config, data=data, seed=seed), World())

    data, whole = data_of(9), data_of(None)
    part = data.train_set
    keys = [part.key(index) for index in range(9)]
    assert keys == sorted(set(keys), key=[whole.train_set.key(i) for i in range(23)].index)
    assert data.positions_per_epoch == len(part) == part.class_counts.sum() == 9
    seen = torch.cat([batch.sample_id for batch in data.train(0, 9)]).reshape(10, 9)
    assert all(sorted(epoch) == list(range(9)) for epoch in seen.tolist())
    evaluated = torch.cat([batch.label for batch in data.evaluate("train")])
    assert evaluated.tolist() == small.labels[list(map(int, keys))].tolist()
    assert len(data.manifest("val")) == 23
    assert data_digests(data) == data_digests(data_of(9)) != data_digests(whole)
    other = data_of(9, seed=6).train_set
    assert keys != [other.key(index) for index in range(9)]
    assert data_digests(data_of(99)) == data_digests(whole)


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
    method = trainer.engine.method
    assert method.counts.pseudo_labeled.tolist() == [0] * 4
    prior = [12 / 23, 6 / 23, 3 / 23, 2 / 23]
    assert method.criterion.log_prior.exp().tolist() == pytest.approx(prior)


def test_two_sets_whose_folders_have_one_name_are_cached_apart(small, pool, tmp_path):
    labeled = shutil.copytree(small.root, tmp_path / "labeled" / "set")
    unlabeled = shutil.copytree(pool, tmp_path / "pool" / "set")
    config = configure(small, pool)
    cached = replace(
        config,
        data=replace(config.data, root=str(labeled), cache_dir=str(tmp_path / "scratch")),
        unlabeled=replace(config.unlabeled, root=str(unlabeled)),
    )
    loading.assert_same_batches(batches(cached), batches(config))


def test_a_classifier_on_an_unlabeled_set_is_refused(pool, tmp_path):
    config = Config(data=DataConfig(root=str(pool), loader="resident"), view=WHOLE, eval_view=WHOLE)
    with pytest.raises(UserError, match="unlabeled: only moco and rotation"):
        Trainer(replace(config, run=replace(config.run, dir=str(tmp_path))), World())


def test_too_many_damaged_samples_stop_the_run(small):
    manifest = Manifest(small.root, "train")
    for bad, share in ((0, 0.0), (2, 0.1), (23, 1.0)):
        check_bad_samples(bad, manifest, share)
    with pytest.raises(UserError, match="3 of 23 samples"):
        check_bad_samples(3, manifest, 0.1)


@pytest.mark.parametrize(
    ("decode", "on_gpu"), [("auto", (False, True)), ("cpu", (False, False)), ("gpu", (None, True))]
)
def test_images_are_decoded_where_the_key_says(small, decode, on_gpu):
    """Without a GPU, and with one; None: refused, before anything is read."""
    config = loading.configure(small.root, "dali", WHOLE)
    config = replace(config, data=replace(config.data, decode=decode))
    for device, expected in zip(("cpu", "cuda:0"), on_gpu):
        world = World(device=torch.device(device))
        if expected is None:
            with pytest.raises(UserError, match="data.decode=gpu, but torch finds no GPU"):
                RunData(replace(config, data=replace(config.data, cache_dir="nowhere")), world)
            resident = replace(config, data=replace(config.data, loader="resident"))
            RunData(resident, world)
        else:
            assert decodes_on_gpu(config, world.device) == expected
