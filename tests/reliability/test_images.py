"""Image files of every kind, whole and damaged at random, through data_prep and both loaders: each
is rejected, re-encoded without loss, or the same pixels to whoever decodes it.

``LT_TRAIN_TRIALS`` asks for more files, ``LT_TRAIN_SEED`` for others.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.config.schema import ViewConfig
from lt_train.data.decoder import Decoder
from lt_train.data.image_files.verdict import TOLERANCE, pixels_of
from lt_train.data.manifest import Manifest
from lt_train.data.resident_loader import load_resident
from lt_train.data.run_data import RunData
from tests.helpers.commands import Encoded
from tests.helpers.loading import ALONE, by_pillow, configure, drawn, grey_levels, sample_ids
from tests.helpers.odd_images import PNG_SIGNATURE, SIDE, damaged, whole_files
from tests.helpers.trials import SEED, trials

TRIALS = trials(120)  # files; half of them damaged
USUAL = 8  # images that nothing is wrong with, so that a set is never empty


def drawn_files() -> dict[str, bytes]:
    """Key -> content; a key says what the file is."""
    generator = np.random.default_rng(SEED)
    files, whole = {}, whole_files(SEED)
    names = list(whole)
    for trial, pick in enumerate(generator.permutation(TRIALS) % len(names)):
        name, content, what = names[pick], whole[names[pick]], "whole"
        if trial % 2 and content:
            what, content = damaged(generator, content)
        key = f"{trial:06d} {name} {what}".replace(".", "_").replace("/", "_").replace(":", "_")
        files[key] = content
    usual = {f"usual {number}": whole["jpeg plain"] for number in range(USUAL)}
    return files | usual


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return drawn_files()


@pytest.fixture(scope="module")
def root(files, tmp_path_factory) -> Path:
    """All of them, prepared as one class."""
    split = SourceSplit(np.zeros(len(files), int), list(files), Encoded(list(files.values())))
    source = Source("odd", ["all"], {"train": split})
    out = tmp_path_factory.mktemp("odd") / "set"
    write(make_plan(source, out, 0, 500), 1, 1.0, "tests", lambda images, size: None)
    return out


@pytest.fixture(scope="module")
def stored(root) -> dict[str, np.ndarray]:
    manifest = Manifest(root, "train")
    ids = range(len(manifest))
    return {manifest.key(sample_id): manifest.read(sample_id) for sample_id in ids}


def noted(path: Path) -> dict[str, str]:
    """Key -> reason."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["key"]: row["reason"] for row in rows}


def test_every_file_is_kept_reencoded_or_rejected_with_the_reason(files, root, stored):
    """What is re-encoded has lost nothing, and only what cannot be used is rejected."""
    rejected, reencoded = noted(root / "rejected.jsonl"), noted(root / "reencoded.jsonl")
    assert {*stored, *rejected} == files.keys() and not stored.keys() & rejected.keys()
    kept = stored.keys() - reencoded.keys()
    for key in kept:
        assert stored[key].tobytes() == files[key]
    for key, reason in reencoded.items():
        assert "DALI" in reason
        np.testing.assert_array_equal(pixels_of(stored[key].tobytes()), pixels_of(files[key]), key)
    for key, reason in rejected.items():
        assert reason and is_unusable(files[key], reason), (key, reason)
    counts = Counter(kept=len(kept), reencoded=len(reencoded), rejected=len(rejected))
    assert all(counts.values()), counts


def is_unusable(content: bytes, reason: str) -> bool:
    """Pillow, which is the more lenient one, does not read it either, or knows no better."""
    if "nor a PNG" in reason or content.startswith(PNG_SIGNATURE):
        return True
    if "not 8 bits" in reason or "not supported" in reason:
        return True
    try:
        pixels_of(content)
    except Exception:
        return True
    return False


def test_pillow_and_dali_give_the_same_pixels_of_what_is_kept(stored):
    decoder = Decoder(64)
    keys = list(stored)
    for start in range(0, len(keys), 64):
        some = keys[start : start + 64]
        images = decoder([stored[key] for key in some])
        for key, image in zip(some, images, strict=True):
            expected = pixels_of(stored[key].tobytes()).astype(int)
            assert image.shape == expected.shape, key
            assert np.abs(image - expected).max() <= TOLERANCE, key


def test_the_dali_loader_gives_crops_of_those_pixels(root, stored):
    view = ViewConfig(size=24, scale=(0.5, 1.0))
    config = configure(root, "dali", view, global_batch_size=16)
    data = RunData(config, ALONE)
    batches = list(data.train(0, len(stored) // 16))
    assert not data.train_set.bad
    parameters, pixels = drawn(config, batches), grey_levels(batches)
    rows = zip(sample_ids(batches), pixels, parameters.box, parameters.flip, strict=True)
    for sample_id, ours, box, flip in rows:
        key = data.train_set.key(sample_id)
        theirs = by_pillow(image_of(stored[key]), box, flip, 24)
        assert np.abs(ours - theirs).mean() <= 2, (key, box)


def image_of(content: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels_of(content.tobytes()))


def test_the_resident_loader_holds_those_pixels(root, stored):
    manifest = Manifest(root, "train")
    square = (manifest.widths == SIDE) & (manifest.heights == SIDE)
    part = manifest.subset(np.flatnonzero(square))
    images = load_resident(part, torch.device("cpu"), 1, 0).numpy()
    assert not part.bad and len(part) > len(manifest) // 2
    for sample_id, image in enumerate(images):
        key = part.key(sample_id)
        np.testing.assert_array_equal(image, pixels_of(stored[key].tobytes()), key)
