"""Images whose bytes are as they were written, but that do not decode: in a set that was made with
--no-decode-check, or by another version of a decoder.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_train.config.schema import Config, ViewConfig
from lt_train.data import dali_loader, resident_loader
from lt_train.data.image_files.check import Checked, Checker
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData, check_bad_samples
from lt_train.distributed import World
from lt_train.errors import UserError
from tests.helpers.loading import (
    ALONE,
    WHOLE,
    all_ranks,
    assert_same_batches,
    configure,
    evaluate,
    keys,
    sample_ids,
    train,
)
from tests.helpers.pictures import encode, smooth_image

LABELS = [0] * 8 + [1] * 6 + [2] * 3
BAD = [3, 8, 9, 16]  # keys
SIDE = 128


@pytest.fixture(scope="module")
def half_broken(prepare) -> Path:
    """JPEGs of three classes in both splits, of some of which the lowest part is missing."""
    generator = np.random.default_rng(0)
    contents = [encode(smooth_image(generator, SIDE, SIDE), "JPEG", quality=95) for _ in LABELS]
    for key in BAD:
        contents[key] = contents[key][: len(contents[key]) * 3 // 4]
    splits = dict.fromkeys(("train", "val"), (contents, LABELS))
    return prepare(splits, checker=Checker(decode=False))


@pytest.fixture(params=["dali", "resident"])
def config(half_broken, request) -> Config:
    """Whole images, or nearly."""
    view = ViewConfig(size=SIDE, crop="pad", resize=SIDE)
    whole = replace(WHOLE, size=SIDE, resize=SIDE)
    return configure(half_broken, request.param, view, eval_view=whole, global_batch_size=17)


def test_training_replaces_them_by_the_next_of_their_class(config, caplog):
    """As it does damaged ones, on any number of ranks."""
    manifest = Manifest(config.data.root, "train")
    data = RunData(config, ALONE)
    batches = list(data.train(0, 3))
    by_key = {int(manifest.key(sample_id)): sample_id for sample_id in range(len(manifest))}
    bad = {by_key[key] for key in BAD}
    sampler_order = data.train(0, 3).plan.sample_ids(range(3)).tolist()
    expected = [following(manifest, wanted, bad) for wanted in sampler_order]
    assert sample_ids(batches) == expected and len(expected) == 51
    assert data.train_set.bad.keys() == bad
    assert all("does not decode" in reason for reason in data.train_set.bad.values())
    named = [record.message for record in caplog.records if "bad sample" in record.message]
    assert len(named) == len(BAD), "each once"
    assert_same_batches(batches, all_ranks(config, 2, 1)[:3])


def following(manifest: Manifest, sample_id: int, bad: set[int]) -> int:
    members = np.flatnonzero(manifest.labels == manifest.labels[sample_id]).tolist()
    order = members[members.index(sample_id) :] + members
    return next(candidate for candidate in order if candidate not in bad)


def test_evaluation_leaves_them_out(config):
    batches = evaluate(config)
    assert keys(config, batches, "val") != list(range(17))
    assert sorted(keys(config, batches, "val")) == [key for key in range(17) if key not in BAD]


def test_too_many_of_them_name_the_key_that_allows_them(config):
    data = RunData(config, ALONE)
    list(data.train(0, 2))
    with pytest.raises(UserError, match=r"4 of 17 .* data\.max_bad_share=0\.001"):
        data.check_bad()
    check_bad_samples(len(data.train_set.bad), data.train_set, 0.25)


def test_what_is_trained_on_does_not_depend_on_what_was_seen_before(half_broken):
    """Of an image that is cut off, an upper part decodes: a run that goes on from a later step, or
    another rank, must not know more or less of it than the one that met the lower part.
    """
    view = ViewConfig(size=24, scale=(0.05, 0.2))
    config = configure(half_broken, "dali", view, global_batch_size=17)
    undisturbed = train(config, last=8)
    manifest = Manifest(half_broken, "train")
    used = {int(manifest.key(sample_id)) for sample_id in sample_ids(undisturbed)}
    assert used & set(BAD), "some parts decode"
    planned = RunData(config, ALONE).train(0, 8).plan.sample_ids(range(8)).tolist()
    assert sample_ids(undisturbed) != planned, "some do not"
    for step in range(8):
        assert_same_batches(undisturbed[step:], train(config, first=step, last=8))
    assert [batch.sample_id.tolist() for batch in all_ranks(config, 2, 1)] == [
        batch.sample_id.tolist() for batch in train(config, last=4)
    ]
    on_ranks = [train(config, World(rank, 3), last=8) for rank in range(3)]
    assert_same_ids(undisturbed, on_ranks)


def assert_same_ids(alone: list, on_ranks: list[list]) -> None:
    for whole, *parts in zip(alone, *on_ranks, strict=True):
        assert torch.cat([part.sample_id for part in parts]).tolist() == whole.sample_id.tolist()


def test_an_error_that_no_image_is_to_blame_for_is_raised_as_it_is(small, monkeypatch):
    def broken(*_):
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(dali_loader, "_torch_resize", broken)
    with pytest.raises(RuntimeError, match="the machine is on fire"):
        train(configure(small.root, "dali", ViewConfig(size=24)))


def test_memory_that_is_lacking_is_no_fault_of_an_image(half_broken, small, monkeypatch):
    def lacking(*_):
        raise MemoryError("for 3 GB")

    monkeypatch.setattr(resident_loader, "_decode", lacking)
    with pytest.raises(MemoryError):
        train(configure(small.root, "resident", WHOLE))
    monkeypatch.setattr(dali_loader, "OUT_OF_MEMORY", dali_loader.re.compile("decode"))
    with pytest.raises(RuntimeError, match="decode"):
        train(configure(half_broken, "dali", ViewConfig(size=SIDE, scale=(0.9, 1.0))))


class Lying(Checker):
    """Every image is 32 x 32 pixels, it says."""

    def decided(self, looked: Sequence[Checked]) -> list[Checked]:
        return [replace(image, width=32, height=32) for image in looked]


@pytest.mark.parametrize("loader", ["dali", "resident"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_an_image_of_another_size_than_the_manifests_is_bad(prepare, loader, image_format):
    """Crops are drawn by the manifest's sizes."""
    generator = np.random.default_rng(0)
    sides = [(32, 32), (32, 32), (30, 28), (32, 32)]
    contents = [encode(smooth_image(generator, *size), image_format) for size in sides]
    root = prepare({"train": (contents, [0] * 4)}, checker=Lying())
    config = configure(root, loader, WHOLE, global_batch_size=4)
    data = RunData(config, ALONE)
    used = keys(config, list(data.train(0, 2)))
    assert sorted(set(used)) == [0, 1, 3] and len(used) == 8
    ((sample_id, reason),) = data.train_set.bad.items()
    assert data.train_set.key(sample_id) == "00002"
    assert "30 x 28 pixels" in reason or (image_format, loader) == ("WEBP", "dali")
