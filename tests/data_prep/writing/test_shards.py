"""Shards: the same bytes whoever writes them, resuming, and images that cannot be used."""

import errno
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import Plan, is_complete, make_plan
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.errors import MachineFault, UserError
from tests.helpers.data_prep_runs import identity, tree
from tests.helpers.noise_sets import COUNTS, interrupt, plan_noise, run
from tests.helpers.pictures import encode
from tests.helpers.sources import pixels_of


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_input_gives_the_same_bytes(tmp_path, undisturbed, workers):
    run(plan_noise(tmp_path / "noise"), workers)
    assert tree(tmp_path / "noise") == undisturbed
    shards = [f"train-{number:06d}.tar" for number in range(6)]
    shards += [f"test-{number:06d}.tar" for number in range(2)]
    tables = [f"{split}{kind}.arrow" for split in COUNTS for kind in ("", ".class_index")]
    expected = {*shards, *tables, "dataset.json"}
    assert set(undisturbed) == expected, "and nothing is left of the work in between"


@pytest.mark.parametrize("shard", [0, 3, 5])
def test_an_interrupted_run_goes_on_after_its_last_finished_shard(tmp_path, undisturbed, shard):
    out = tmp_path / "noise"
    interrupt(out, shard)
    assert not is_complete(plan_noise(out))
    finished = identity(list(out.glob("*.tar")))
    assert len(finished) == shard
    summary = run(plan_noise(out))
    assert tree(out) == undisturbed
    assert (summary.skipped_shards, summary.shards) == (shard, 8 - shard)
    assert finished == identity(list(finished)), "they are not written again"
    assert is_complete(plan_noise(out))


def image_bytes(image_format: str, pixels: np.ndarray) -> bytes:
    return encode(Image.fromarray(pixels), image_format)


def png_of_16_bit_colour(side: int) -> bytes:
    """Pillow cannot write it, so by hand: signature, header, pixels, end."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc32 = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc32

    row = b"\0" + bytes(range(6)) * side
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(row * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


GRADIENT = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
GRAY_16_BIT = GRADIENT[..., 0].astype(np.uint16) * 256
UNUSABLE = {  # content, and the reason
    "text named jpg": (b"this is no image, though it was named so", "not an image"),
    "no bytes": (b"", "empty file"),
    "truncated JPEG": (image_bytes("JPEG", GRADIENT)[:-400], "does not decode"),
    "truncated PNG": (image_bytes("PNG", GRADIENT)[:-100], "does not decode"),
    "16-bit grayscale PNG": (image_bytes("PNG", GRAY_16_BIT), "8 bits"),
    "16-bit colour PNG": (png_of_16_bit_colour(64), "8 bits"),
    "GIF": (image_bytes("GIF", GRADIENT), "GIF"),
}


@dataclass(frozen=True)
class Listed:
    """Contents as they are; None: a file that is gone."""

    contents: list[bytes | None]

    def read(self, index: int) -> bytes:
        if not isinstance(self.contents[index], bytes):
            raise FileNotFoundError(2, "No such file or directory", "gone.jpg")
        return self.contents[index]


def plan_with(out: Path, *unusable: bytes | None) -> Plan:
    """Ten good images and the given ones."""
    contents = [image_bytes("JPEG", GRADIENT)] * 10 + list(unusable)
    keys = [f"good_{index}" for index in range(10)]
    keys += [f"bad_{index}" for index in range(len(unusable))]
    return plan_of("mixed", keys, contents, out)


def plan_of(name: str, keys: list[str], contents: list[bytes | None], out: Path) -> Plan:
    split = SourceSplit(np.zeros(len(keys), int), keys, Listed(contents))
    return make_plan(Source(name, ["a"], {"train": split}), out, 0, 4)


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_image_is_left_out_and_named_with_the_reason(tmp_path, kind):
    content, reason = UNUSABLE[kind]
    summary = run(plan_with(tmp_path / "set", content), max_rejected=0.1)
    (line,) = (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert (rejected["split"], rejected["key"]) == ("train", "bad_0")
    assert reason in rejected["reason"]
    assert summary.images == 10 and len(summary.rejected) == 1
    assert read_dataset(tmp_path / "set").splits["train"].rejected == 1
    manifest = Manifest(tmp_path / "set", "train")
    keys = sorted(map(manifest.key, range(len(manifest))))
    assert keys == [f"good_{index}" for index in range(10)]


def test_a_file_that_vanished_is_left_out_and_named(tmp_path):
    summary = run(plan_with(tmp_path / "set", None), max_rejected=0.1)
    assert "No such file" in summary.rejected[0]["reason"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_cannot_be_read_rejects_nothing(tmp_path, monkeypatch, workers):
    """Of a disk that fails, no image is to blame: left out once, it would stay so."""
    plan, read = plan_with(tmp_path / "set", b"any"), Listed.read

    def fail(images: Listed, index: int) -> bytes:
        if index == 7:
            raise OSError(errno.EIO, "Input/output error")
        return read(images, index)

    with monkeypatch.context() as patch:
        patch.setattr(Listed, "read", fail)
        with pytest.raises(MachineFault, match="cannot read good_.* of the source: Input/output"):
            run(plan, workers=workers, max_rejected=1.0)
    assert len(run(plan, max_rejected=1.0).rejected) == 1, "the same command goes on"
    assert len(Manifest(tmp_path / "set", "train")) == 10


PPM_TO_100 = b"P6\n2 2\n100\n" + bytes(range(12))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_dali_reads_otherwise_is_stored_as_pillow_reads_it_and_noted(tmp_path, workers):
    """The same bytes however many work; the other images keep theirs."""
    summary = run(plan_with(tmp_path / "set", PPM_TO_100, PPM_TO_100), workers)
    rows = [json.loads(line) for line in (tmp_path / "set" / "reencoded.jsonl").open()]
    assert {(row["split"], row["key"]) for row in rows} == {("train", "bad_0"), ("train", "bad_1")}
    assert all("DALI and Pillow differ by" in row["reason"] for row in rows)
    assert summary.reencoded == rows and not (tmp_path / "set" / "rejected.jsonl").exists()
    manifest = Manifest(tmp_path / "set", "train")
    for sample_id in range(len(manifest)):
        content = manifest.read(sample_id).tobytes()
        if manifest.key(sample_id).startswith("good"):
            assert content == image_bytes("JPEG", GRADIENT)
        else:
            assert content.startswith(b"\x89PNG")
            assert (pixels_of(content) == pixels_of(PPM_TO_100)).all()
    run(plan_with(tmp_path / "again", PPM_TO_100, PPM_TO_100), 3 - workers)
    assert tree(tmp_path / "again") == tree(tmp_path / "set")


def test_too_many_unusable_images_are_an_error_that_loses_no_work(tmp_path):
    out = tmp_path / "set"
    contents = [UNUSABLE[kind][0] for kind in ("text named jpg", "no bytes")]
    with pytest.raises(UserError, match="2 of 12 images .*bad_.*--max-rejected 0.1667"):
        run(plan_with(out, *contents), max_rejected=0.1)
    assert not is_complete(plan_with(out, *contents))
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 2
    summary = run(plan_with(out, *contents), max_rejected=0.1667)
    assert (summary.skipped_shards, summary.shards) == (3, 0), "allowed: it goes on from there"
    assert len(summary.rejected) == 2
    assert len(Manifest(out, "train")) == 10


def test_a_set_without_any_usable_image_is_an_error(tmp_path):
    plan = plan_of("none", ["a", "b"], [b"", b"text"], tmp_path / "set")
    with pytest.raises(UserError, match="none of the 2 images can be used"):
        run(plan, max_rejected=1.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_8_bit_mode_is_accepted(tmp_path, mode):
    content = encode(Image.fromarray(GRADIENT).convert(mode), "PNG")
    assert run(plan_with(tmp_path / "set", content)).images == 11


def test_sizes_are_those_of_the_stored_pixels_not_of_the_exif_rotation(prepare, photos):
    manifest = Manifest(prepare({"train": ([photos["rotated by EXIF"]], [0])}), "train")
    assert (manifest.widths[0], manifest.heights[0]) == (480, 360)
