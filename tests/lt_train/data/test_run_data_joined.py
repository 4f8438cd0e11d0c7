"""Batches of a labeled and a pseudo-labeled set, sampled as one or by shares."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lt_train.config.schema import Config, EngineConfig, ModelConfig, RunConfig, UnlabeledConfig
from lt_train.data.batch import Batch
from lt_train.data.dataset import read_dataset, write_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.data.tables import UNLABELED, write_manifest
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.training.trainer import Trainer
from tests.helpers import loading
from tests.helpers.loading import WHOLE, grey_levels
from tests.helpers.pools import CLASSES, CONFIDENCE, PSEUDO, Greys, numbers


def configure(small, root: Path, **changes) -> Config:
    """Changes of ``unlabeled`` or of the whole config; both sets are one unless told."""
    names = {field.name for field in fields(UnlabeledConfig)}
    second = {"share": None, "label_column": "pseudo_label"}
    second |= {name: changes.pop(name) for name in names & changes.keys()}
    common = {"method": "semi", "unlabeled": UnlabeledConfig(str(root), **second)}
    return loading.configure(small.root, "resident", WHOLE, **{**common, **changes})


def one_epoch(config: Config, world: World = loading.ALONE) -> list[Batch]:
    """Batches of the steps that hold the first epoch's positions, and at the end some of the
    second's.
    """
    data = RunData(config, world)
    return list(data.train(0, -(-data.positions_per_epoch // config.global_batch_size)))


def test_an_epoch_has_every_sample_of_both_sets_once_with_its_label(small, pseudo_labeled):
    config = configure(small, pseudo_labeled)
    kept = RunData(config, World()).unlabeled_set
    assert sorted(numbers(kept)) == [number for number in range(11) if PSEUDO[number] != UNLABELED]
    batches = one_epoch(config)
    ids, found = loading.sample_ids(batches)[:33], loading.labels(batches)[:33]
    assert sorted(ids) == list(range(33)) != ids
    wanted = [*small.labels[numbers(Manifest(small.root, "train"))], *PSEUDO[numbers(kept)]]
    assert found == [wanted[sample_id] for sample_id in ids]
    assert set(found) == {0, 1, 2, 3}


def test_pixels_of_joined_batches_belong_to_their_sample_ids(small, pseudo_labeled):
    data = RunData(configure(small, pseudo_labeled), World())
    own = numbers(data.train_sets[0])
    expected = np.array([*small.pixels[own[:23], 0, 0, 0], *(20 * np.array(own[23:]))])
    for batch in data.train(0, 4):
        levels = grey_levels([batch])[:, 0, 0, 0]
        np.testing.assert_allclose(levels, expected[batch.sample_id.numpy()], rtol=0, atol=0.01)


def test_every_number_of_ranks_draws_the_same_joined_batches(small, pseudo_labeled):
    config = configure(small, pseudo_labeled)
    alone, by_rank = one_epoch(config), [one_epoch(config, World(rank, 3)) for rank in range(3)]
    for batch, parts in zip(alone, zip(*by_rank, strict=True), strict=True):
        assert torch.equal(torch.cat([part.sample_id for part in parts]), batch.sample_id)
        assert torch.equal(torch.cat([part.label for part in parts]), batch.label)
    assert RunData(config, World()).sample_ids(1).tolist() == alone[1].sample_id.tolist()


@pytest.mark.parametrize("least", [0.5, 0.6, 0.97])
def test_less_sure_samples_are_left_out_and_no_others(small, pseudo_labeled, least):
    kept = RunData(configure(small, pseudo_labeled, min_confidence=least), World()).unlabeled_set
    is_sure = np.greater_equal(CONFIDENCE, np.float32(least))
    assert sorted(numbers(kept)) == np.flatnonzero(is_sure & (PSEUDO >= 0)).tolist()
    assert kept.labels.tolist() == PSEUDO[numbers(kept)].tolist()
    assert kept.class_counts.tolist() == np.bincount(PSEUDO[numbers(kept)], minlength=4).tolist()


def test_a_draw_is_of_the_samples_that_are_sure_enough(small, pseudo_labeled):
    config = configure(small, pseudo_labeled, min_confidence=0.6, max_samples=3)
    drawn = RunData(config, World()).unlabeled_set
    assert len(drawn) == 3 and (CONFIDENCE[numbers(drawn)] >= np.float32(0.6)).all()
    assert drawn.labels.tolist() == PSEUDO[numbers(drawn)].tolist()


def test_a_share_of_each_batch_is_pseudo_labeled(small, pseudo_labeled):
    config = configure(small, pseudo_labeled, share=0.5)
    data = RunData(config, World())
    own = numbers(data.unlabeled_set)
    for batch in data.train(0, 5):
        of_pool = batch.sample_id >= 23
        assert int(of_pool.sum()) == 5
        drawn = [own[sample_id - 23] for sample_id in batch.sample_id[of_pool].tolist()]
        assert batch.label[of_pool].tolist() == PSEUDO[drawn].tolist()


def test_without_a_label_column_labels_of_the_second_set_are_not_used(small):
    config = configure(small, small.root, share=0.5, label_column=None, method="sourcing")
    data = RunData(config, World())
    for batch in data.train(0, 5):
        assert batch.label[5:].tolist() == [UNLABELED] * 5 and (batch.label[:5] >= 0).all()
    assert data.unlabeled_set.class_counts.tolist() == [0] * 4


def test_a_pool_of_any_images_takes_the_labeled_sets_classes(small, pseudo_labeled, tmp_path):
    copy = shutil.copytree(pseudo_labeled, tmp_path / "copy")
    dataset = read_dataset(copy)
    table = pa.ipc.open_file((copy / "train.arrow").read_bytes()).read_all()
    counts = write_manifest(copy, "train", [table], table.schema, 0)
    part = replace(dataset.splits["train"], class_counts=counts, tables={})
    write_dataset(copy, replace(dataset, classes=[], splits={"train": part}))
    assert Manifest(copy, "train").classes == []
    pool = RunData(configure(small, copy, share=0.5), World()).unlabeled_set
    assert pool.classes == CLASSES
    assert pool.class_counts.tolist() == np.bincount(PSEUDO[PSEUDO >= 0]).tolist()


def test_class_counts_of_the_method_are_of_either_set(small, pseudo_labeled, tmp_path):
    config = configure(
        small,
        pseudo_labeled,
        model=ModelConfig(backbone="resnet32_cifar"),
        engine=EngineConfig(precision="fp32"),
        run=RunConfig(dir=str(tmp_path)),
        epochs=2.0,
    )
    trainer = Trainer(config, World())
    trainer.build()
    counts = trainer.engine.method.counts
    assert trainer.engine.method.class_counts.tolist() == [12, 6, 3, 2]
    assert counts.labeled.tolist() == [12, 6, 3, 2]
    assert counts.pseudo_labeled.tolist() == np.bincount(PSEUDO[PSEUDO >= 0]).tolist()
    assert trainer.schedule.epoch(33) == pytest.approx(10) and trainer.last_step == 7


LABELS = {"keys": "key", "fractions": "confidence", "a class too many": "width"}


@pytest.mark.parametrize("case", LABELS)
def test_a_column_that_holds_no_labels_is_refused(case, small, pseudo_labeled):
    message = f"label_column={LABELS[case]} .*does not hold labels of 4 classes"
    data = RunData(configure(small, pseudo_labeled, label_column=LABELS[case]), World())
    with pytest.raises(UserError, match=message):
        len(data.train_sets)


def test_other_classes_no_such_column_and_nothing_left_are_one_line_each(
    small, pseudo_labeled, prepare
):
    other = prepare({"train": ([Greys("PNG").read(1)] * 3, [0, 1, 2])}, classes=3)
    no_fractions = "confidence_column=key .*does not hold fractions"
    none_sure = "no sample with a pseudo_label of .*lower unlabeled.min_confidence"
    cases = [
        (other, {}, "other classes"),
        (small.root, {}, "no column 'pseudo_label'"),
        (pseudo_labeled, {"min_confidence": 0.5, "confidence_column": "sure"}, "no column 'sure'"),
        (pseudo_labeled, {"min_confidence": 0.5, "confidence_column": "key"}, no_fractions),
        (pseudo_labeled, {"min_confidence": 0.999}, none_sure),
        (pseudo_labeled, {"label_column": "label"}, "no sample with a label"),
        (pseudo_labeled, {"split": "val"}, "no split 'val'"),
    ]
    for root, settings, message in cases:
        data = RunData(configure(small, root, **settings), World())
        with pytest.raises(UserError, match=message) as error:
            len(data.train_sets)
        assert "\n" not in str(error.value)
