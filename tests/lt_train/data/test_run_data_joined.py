"""Two data sets sampled as one, and columns that are added to a prepared set's manifest."""

import io
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from data_prep.inspect import problems
from data_prep.reading.source import Source, SourceSplit
from lt_train.config.schema import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data import manifest as on_disk
from lt_train.data.manifest import (
    UNLABELED,
    Manifest,
    add_columns,
    class_index,
    read_dataset,
    write_dataset,
)
from lt_train.data.run_data import RunData, check_bad_samples
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.files import file_sha256
from lt_train.training.trainer import Trainer
from tests.helpers.pictures import encode
from tests.helpers.sources import prepared

WHOLE = ViewConfig(size=32, crop="center", resize=32, flip_probability=0.0)
CLASSES = [f"class_{label}" for label in range(4)]
HIDDEN = np.array([0, 1, 2, 3, 0, 0, 1, 3, 2, 0, 1])  # of the unlabeled images, by key
PSEUDO = np.array([0, 1, 2, 3, 0, 1, -1, 3, 2, 0, 0])  # two are wrong and one image was damaged
CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.5, 0.95, 0.4, 0.0, 0.5, 0.6, 0.99, 0.3], np.float32)


class Greys:
    """Image number i is of one grey level, 20 * i."""

    def read(self, index: int) -> bytes:
        return encode(Image.new("RGB", (32, 32), (20 * index,) * 3), "PNG")


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory) -> Path:
    """11 images without labels, with the columns hidden_label, pseudo_label and confidence."""
    keys = [f"u{index:02d}" for index in range(len(HIDDEN))]
    split = SourceSplit(
        None, keys, Greys(), {"hidden_label": HIDDEN.astype(np.int32)}, deal_by=HIDDEN
    )
    root = prepared(
        Source("unlabeled", CLASSES, {"train": split}),
        tmp_path_factory.mktemp("unlabeled") / "set",
        4,
    )
    order = numbers(Manifest(root, "train"))
    add_columns(
        root,
        "train",
        {
            "pseudo_label": pa.array(PSEUDO[order], pa.int32()),
            "confidence": pa.array(CONFIDENCE[order]),
        },
        "tests",
    )
    return root


@pytest.fixture
def copy(unlabeled, tmp_path) -> Path:
    return Path(shutil.copytree(unlabeled, tmp_path / "copy"))


@pytest.fixture
def both(small, unlabeled) -> Manifest:
    pool = Manifest(unlabeled, "train")
    return Manifest(small.root, "train").joined(
        pool.relabeled(pool.column("hidden_label"), CLASSES)
    )


def numbers(part: Manifest) -> list[int]:
    """The number of each sample's image, by sample_id."""
    return [int(part.key(sample_id).removeprefix("u")) for sample_id in range(len(part))]


def configure(small, root, **changes) -> Config:
    data = DataConfig(root=str(small.root), loader="resident", eval_batch_size=4)
    second = {
        "share": None,
        "label_column": "pseudo_label",
        **{
            key: changes.pop(key)
            for key in list(changes)
            if key in UnlabeledConfig.__dataclass_fields__
        },
    }
    config = Config(
        data=data,
        unlabeled=UnlabeledConfig(root=str(root), **second),
        view=WHOLE,
        eval_view=WHOLE,
        seed=5,
        global_batch_size=10,
    )
    return replace(config, **changes)


def one_epoch(config: Config, world: World = World()) -> list[dict]:
    """Batches of the steps that hold the first epoch's positions, and at the end some of the
    second's.
    """
    data = RunData(config, world)
    return list(data.train(1, 0, -(-len(data.train_sets[0]) // config.global_batch_size)))


# the manifest of both


def test_both_sets_follow_each_other_with_labels_bytes_and_keys(both, small, unlabeled):
    parts = [Manifest(small.root, "train"), Manifest(unlabeled, "train")]
    assert len(both) == 23 + 11 and both.classes == CLASSES
    assert [both.key(index) for index in range(34)] == [
        part.key(index) for part in parts for index in range(len(part))
    ]
    own = numbers(both)
    assert both.labels.tolist() == [*small.labels[own[:23]], *HIDDEN[own[23:]]]
    for sample_id, number in enumerate(own):
        expected = (
            small.pixels[number] if sample_id < 23 else np.full((32, 32, 3), 20 * number, np.uint8)
        )
        np.testing.assert_array_equal(Image.open(io.BytesIO(both.read(sample_id))), expected)
    assert not both.bad and both.bytes == sum(part.bytes for part in parts)
    places = both.places(np.arange(34))
    assert [
        zlib.crc32(both.paths[shard].read_bytes()[start : start + size])
        for shard, start, size in places
    ] == both._crc32.tolist()


def test_the_class_index_covers_both_sets(both, small):
    ids, offsets = class_index(
        np.array([*small.labels[numbers(both)[:23]], *HIDDEN[numbers(both)[23:]]]), 4
    )
    assert (
        both.class_ids.tolist() == ids.tolist() and both.class_offsets.tolist() == offsets.tolist()
    )
    assert both.class_counts.tolist() == [12 + 4, 6 + 3, 3 + 2, 2 + 2]


def test_the_joined_sets_stay_as_they_were(small, unlabeled):
    parts = [Manifest(small.root, "train"), Manifest(unlabeled, "train")]
    before = [
        (
            part.places(np.arange(len(part))).tolist(),
            part.labels.tolist(),
            len(part.paths),
            part.bytes,
        )
        for part in parts
    ]
    parts[0].joined(parts[1])
    assert before == [
        (
            part.places(np.arange(len(part))).tolist(),
            part.labels.tolist(),
            len(part.paths),
            part.bytes,
        )
        for part in parts
    ]


def test_a_joined_set_can_be_cut_and_relabeled(both):
    rows = np.array([1, 22, 23, 33])
    part = both.subset(rows)
    assert [part.key(index) for index in range(4)] == [both.key(index) for index in rows]
    assert [bytes(part.read(index)) for index in range(4)] == [
        bytes(both.read(index)) for index in rows
    ]
    assert part.bytes == sum(len(part.read(index)) for index in range(4)) < both.bytes
    other = both.relabeled(np.full(34, 2), CLASSES).subset(slice(20, 26))
    assert other.class_counts.tolist() == [0, 0, 6, 0] and other.labels.tolist() == [2] * 6
    assert other.key(3) == both.key(23) and both.class_counts.sum() == 34


def test_a_column_that_only_one_side_has_is_one_clear_error(both):
    with pytest.raises(UserError, match="no column 'pseudo_label'"):
        both.column("pseudo_label")


@pytest.mark.parametrize("side", ["labeled", "unlabeled"])
def test_damage_on_either_side_is_replaced_within_the_class_and_named(
    side, small, unlabeled, damaged_copy, caplog
):
    root = damaged_copy(small.root if side == "labeled" else unlabeled, [3])
    roots = [root, unlabeled] if side == "labeled" else [small.root, root]
    pool = Manifest(roots[1], "train")
    both = Manifest(roots[0], "train").joined(pool.relabeled(pool.column("hidden_label"), CLASSES))
    bad = 3 if side == "labeled" else 26
    replacement, content = both.read_or_replace(bad)
    members = np.flatnonzero(both.labels == both.labels[bad]).tolist()
    assert replacement == members[(members.index(bad) + 1) % len(members)] and bytes(
        content
    ) == bytes(both.read(replacement))
    assert set(both.bad) == {bad} and both.key(bad) in caplog.text and str(root) in caplog.text
    with pytest.raises(UserError, match=f"1 of 34 samples of .*verify .*{root}"):
        check_bad_samples(1, both, 0.001)


# batches


def test_an_epoch_has_every_sample_of_both_sets_once_with_its_label(small, unlabeled):
    config = configure(small, unlabeled)
    kept = RunData(config, World()).unlabeled_set
    assert sorted(numbers(kept)) == [number for number in range(11) if PSEUDO[number] != UNLABELED]
    batches = one_epoch(config)
    ids = torch.cat([batch["sample_id"] for batch in batches])[:33]
    labels = torch.cat([batch["label"] for batch in batches])[:33]
    assert sorted(ids.tolist()) == list(range(33))
    wanted = [*small.labels[numbers(Manifest(small.root, "train"))], *PSEUDO[numbers(kept)]]
    assert labels.tolist() == [wanted[sample_id] for sample_id in ids.tolist()]
    assert {int(label) for label in labels} == {0, 1, 2, 3} and not torch.equal(
        ids.sort().values, ids
    )


def test_pixels_of_joined_batches_belong_to_their_sample_ids(small, unlabeled):
    data = RunData(configure(small, unlabeled), World())
    own = numbers(data.train_sets[0])
    for batch in data.train(1, 0, 4):
        for level, sample_id in zip(
            (batch["views"][0][:, 0, 0, 0] * 58.395 + 123.675).tolist(), batch["sample_id"].tolist()
        ):
            expected = (
                small.pixels[own[sample_id], 0, 0, 0] if sample_id < 23 else 20 * own[sample_id]
            )
            assert level == pytest.approx(int(expected), abs=0.01)


def test_every_number_of_ranks_draws_the_same_joined_batches(small, unlabeled):
    config = configure(small, unlabeled)
    for batch, *parts in zip(
        one_epoch(config), *(one_epoch(config, World(rank, 3)) for rank in range(3)), strict=True
    ):
        for key in ("sample_id", "label"):
            assert torch.equal(torch.cat([part[key] for part in parts]), batch[key])
    assert (
        RunData(config, World()).sample_ids(1).tolist()
        == one_epoch(config)[1]["sample_id"].tolist()
    )


@pytest.mark.parametrize("least", [0.5, 0.6, 0.97])
def test_less_sure_samples_are_left_out_and_no_others(small, unlabeled, least):
    kept = RunData(configure(small, unlabeled, min_confidence=least), World()).unlabeled_set
    assert (
        sorted(numbers(kept))
        == np.flatnonzero((CONFIDENCE >= np.float32(least)) & (PSEUDO >= 0)).tolist()
    )
    assert kept.labels.tolist() == PSEUDO[numbers(kept)].tolist()
    assert kept.class_counts.tolist() == np.bincount(PSEUDO[numbers(kept)], minlength=4).tolist()


def test_a_draw_is_of_the_samples_that_are_sure_enough(small, unlabeled):
    drawn = RunData(
        configure(small, unlabeled, min_confidence=0.6, max_samples=3), World()
    ).unlabeled_set
    assert len(drawn) == 3 and all(
        CONFIDENCE[number] >= np.float32(0.6) for number in numbers(drawn)
    )
    assert drawn.labels.tolist() == PSEUDO[numbers(drawn)].tolist()


def test_a_share_of_each_batch_is_pseudo_labeled(small, unlabeled):
    config = configure(small, unlabeled, share=0.5)
    data = RunData(config, World())
    own = numbers(data.unlabeled_set)
    for batch in data.train(1, 0, 5):
        of_pool = batch["sample_id"] >= 23
        assert int(of_pool.sum()) == 5
        assert batch["label"][of_pool].tolist() == [
            PSEUDO[own[index - 23]] for index in batch["sample_id"][of_pool].tolist()
        ]


def test_without_a_label_column_labels_of_the_second_set_are_not_used(small):
    data = RunData(configure(small, small.root, share=0.5, label_column=None), World())
    for batch in data.train(1, 0, 5):
        assert (
            batch["label"].tolist()[5:] == [UNLABELED] * 5 and min(batch["label"].tolist()[:5]) >= 0
        )
    assert data.unlabeled_set.class_counts.tolist() == [0] * 4


def test_a_pool_of_any_images_takes_the_labeled_sets_classes(small, copy):
    dataset = read_dataset(copy)
    part = replace(dataset.splits["train"], class_counts=[])
    write_dataset(copy, replace(dataset, classes=[], splits={"train": part}))
    assert Manifest(copy, "train").classes == []
    pool = RunData(configure(small, copy, share=0.5), World()).unlabeled_set
    assert (
        pool.classes == CLASSES
        and pool.class_counts.tolist() == np.bincount(PSEUDO[PSEUDO >= 0]).tolist()
    )


def test_class_counts_of_the_stage_are_of_either_set(small, unlabeled, tmp_path):
    config = configure(
        small,
        unlabeled,
        method="semi",
        model=ModelConfig(backbone="resnet32_cifar"),
        engine=EngineConfig(precision="fp32"),
        epochs=2.0,
    )
    trainer = Trainer(replace(config, run=replace(config.run, dir=str(tmp_path))), World())
    trainer.build()
    method = trainer.engine.method
    assert (
        method.class_counts.tolist() == [12, 6, 3, 2]
        and method.pseudo_counts.tolist() == np.bincount(PSEUDO[PSEUDO >= 0]).tolist()
    )
    assert (
        trainer.schedule.epoch(33) == pytest.approx(10) == method.epoch(33)
        and trainer.last_step == 7
    )


LABELS = {"keys": "key", "fractions": "confidence", "a class too many": "width"}


@pytest.mark.parametrize("case", LABELS)
def test_a_column_that_holds_no_labels_is_refused(case, small, unlabeled):
    with pytest.raises(
        UserError, match=f"label_column={LABELS[case]} .*does not hold labels of 4 classes"
    ):
        RunData(configure(small, unlabeled, label_column=LABELS[case]), World()).train_sets


def test_other_classes_no_such_column_and_nothing_left_are_one_line_each(small, unlabeled, prepare):
    other = prepare({"train": ([Greys().read(1)] * 3, [0, 1, 2])}, classes=3)
    cases = [
        (configure(small, other), "other classes"),
        (configure(small, small.root), "no column 'pseudo_label'"),
        (
            configure(small, unlabeled, min_confidence=0.5, confidence_column="sure"),
            "no column 'sure'",
        ),
        (
            configure(small, unlabeled, min_confidence=0.5, confidence_column="key"),
            "confidence_column=key .*does not hold fractions",
        ),
        (
            configure(small, unlabeled, min_confidence=0.999),
            "no sample with a pseudo_label of .*lower unlabeled.min_confidence",
        ),
        (configure(small, unlabeled, label_column="label"), "no sample with a label"),
        (configure(small, unlabeled, split="val"), "no split 'val'"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message) as error:
            RunData(config, World()).train_sets
        assert "\n" not in str(error.value)


# columns


def test_added_columns_replace_those_of_their_names_and_nothing_else(copy):
    before, shards = (
        Manifest(copy, "train"),
        {path: file_sha256(path) for path in copy.glob("*.tar")},
    )
    labels = np.arange(11, dtype=np.int32) % 4
    add_columns(
        copy, "train", {"pseudo_label": pa.array(labels), "margin": pa.array(labels / 7)}, "tests"
    )
    after = Manifest(copy, "train")
    assert (
        after.column("pseudo_label").tolist() == labels.tolist()
        and after.column("margin").tolist() == (labels / 7).tolist()
    )
    assert sorted(after.columns) == sorted([*before.columns, "margin"])
    for name in set(before.columns) - {"pseudo_label"}:
        assert after._table[name].to_pylist() == before._table[name].to_pylist()
    assert (
        shards == {path: file_sha256(path) for path in copy.glob("*.tar")}
        and list(problems(copy)) == []
    )
    assert before.dataset.splits["train"].class_counts == after.dataset.splits["train"].class_counts


def test_who_has_the_manifest_open_goes_on(copy):
    reader = Manifest(copy, "train")
    keys = [reader.key(index) for index in range(11)]
    add_columns(copy, "train", {"pseudo_label": pa.array(np.full(11, 3, np.int32))}, "tests")
    assert reader.column("pseudo_label").tolist() == PSEUDO[numbers(reader)].tolist()
    assert [reader.key(index) for index in range(11)] == keys and all(
        reader.read(index) is not None for index in range(11)
    )


def test_killed_between_manifest_and_checksum_the_same_call_mends_it(copy, monkeypatch):
    columns = {"pseudo_label": pa.array(np.full(11, 3, np.int32))}
    with monkeypatch.context() as patch:
        patch.setattr(on_disk, "write_dataset", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_columns(copy, "train", columns, "tests")
    assert list(problems(copy)) == ["train.arrow is not as it was written (sha256 differs)"]
    assert Manifest(copy, "train").column("pseudo_label").tolist() == [3] * 11
    add_columns(copy, "train", columns, "tests")
    assert list(problems(copy)) == [] and not list(copy.glob(".*"))


def test_an_empty_split_may_have_columns_too(prepare, photos):
    root = prepare({"train": ([photos["square"]], [0]), "val": ([], [])}, classes=1)
    add_columns(root, "val", {"pseudo_label": pa.array([], pa.int32())}, "tests")
    assert "pseudo_label" in Manifest(root, "val").columns and list(problems(root)) == []
