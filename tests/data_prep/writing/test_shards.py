"""Shards: dealing, determinism, resuming, rejected images, and what the command line says when
something is wrong.
"""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.reading.check import jpeg_size
from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import Plan, is_complete, make_plan
from data_prep.writing.shards import Summary, write
from lt_train.data.manifest import Manifest, read_dataset
from lt_train.errors import UserError

COUNTS = {"train": [20, 9, 5, 1], "test": [3, 3, 3, 3]}


class Interrupted(Exception):
    """Neither an OSError nor a ValueError, as when the process is stopped."""


@dataclass(frozen=True)
class Noise:
    """Small PNGs; reading number ``stop_at`` is interrupted."""

    number: int
    stop_at: int = -1

    def read(self, index: int) -> bytes:
        if index == self.stop_at:
            raise Interrupted
        buffer = io.BytesIO()
        Image.fromarray(
            np.random.default_rng([self.number, index]).integers(0, 256, (9, 7, 3), np.uint8)
        ).save(buffer, "PNG")
        return buffer.getvalue()


def plan(out: Path, stop_at: int = -1, seed: int = 0, samples_per_shard: int = 6) -> Plan:
    """35 training and 12 test images of four classes, in six and two shards."""
    splits = {}
    for number, (split, counts) in enumerate(COUNTS.items()):
        labels = np.repeat(np.arange(len(counts)), counts)
        keys = [f"{split}/{index}" for index in range(len(labels))]
        splits[split] = SourceSplit(
            labels, keys, Noise(number, stop_at if split == "train" else -1)
        )
    return make_plan(Source("noise", list("abcd"), splits), out, seed, samples_per_shard)


def run(plan: Plan, workers: int = 1, max_rejected: float = 0.0) -> Summary:
    return write(plan, workers, max_rejected, "tests", lambda images, size: None)


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root`` and the hash of its content."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """The files of one run from start to end."""
    out = tmp_path_factory.mktemp("undisturbed") / "noise"
    run(plan(out))
    return tree(out)


def test_every_class_is_dealt_over_as_many_shards_as_it_can_reach(tmp_path):
    """The class of 5 lies in 5 of the 6 shards; no shard has more than one sample above its share
    of any class.
    """
    run(plan(tmp_path / "noise"))
    manifest = Manifest(tmp_path / "noise", "train")
    shard_of = np.repeat(np.arange(6), [shard.samples for shard in manifest.shards])
    table = np.array(
        [np.bincount(shard_of[manifest.labels == label], minlength=6) for label in range(4)]
    )
    assert table.sum(1).tolist() == COUNTS["train"]
    np.testing.assert_array_equal(table.max(1), [4, 2, 1, 1])
    assert table.min(1).tolist() == [3, 1, 0, 0]
    assert table.sum(0).max() <= 6


def test_samples_are_not_sorted_by_class_within_a_shard(tmp_path):
    run(plan(tmp_path / "noise", samples_per_shard=35))
    labels = Manifest(tmp_path / "noise", "train").labels
    assert (np.diff(labels) < 0).sum() > 5


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_input_gives_the_same_bytes(tmp_path, undisturbed, workers):
    run(plan(tmp_path / "noise"), workers)
    assert tree(tmp_path / "noise") == undisturbed
    shards = [
        f"{split}-{number:06d}.tar"
        for split, count in (("train", 6), ("test", 2))
        for number in range(count)
    ]
    tables = [f"{split}{kind}.arrow" for split in COUNTS for kind in ("", ".class_index")]
    assert set(undisturbed) == {
        *shards,
        *tables,
        "dataset.json",
    }, "and nothing is left of the work in between"


def test_another_seed_deals_otherwise(tmp_path, undisturbed):
    run(plan(tmp_path / "noise", seed=1))
    assert tree(tmp_path / "noise")["train-000000.tar"] != undisturbed["train-000000.tar"]


def interrupt(out: Path, shard: int) -> None:
    """Begin, and be interrupted at the last sample of a training shard."""
    with pytest.raises(Interrupted):
        run(plan(out, plan(out).shards[shard].indices[-1]))


@pytest.mark.parametrize("shard", [0, 3, 5])
def test_an_interrupted_run_goes_on_after_its_last_finished_shard(tmp_path, undisturbed, shard):
    out = tmp_path / "noise"
    interrupt(out, shard)
    assert not is_complete(plan(out))
    finished = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.glob("*.tar")}
    assert len(finished) == shard
    summary = run(plan(out))
    assert tree(out) == undisturbed
    assert (summary.skipped_shards, summary.shards) == (shard, 8 - shard)
    assert finished == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished}, (
        "they are not written again"
    )
    assert is_complete(plan(out))


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples_per_shard": 5}])
def test_a_folder_with_another_data_set_is_left_alone(tmp_path, undisturbed, change):
    complete, begun = tmp_path / "complete", tmp_path / "begun"
    run(plan(complete))
    with pytest.raises(UserError, match="another data set"):
        is_complete(plan(complete, **change))
    assert tree(complete) == undisturbed
    interrupt(begun, 3)
    before = tree(begun)
    with pytest.raises(UserError, match="start of another data set"):
        run(plan(begun, **change))
    assert tree(begun) == before


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        run(plan(tmp_path))
    assert tree(tmp_path) == before


# --- images that cannot be used


def image_bytes(image_format: str, pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


def png_of_16_bit_colour(side: int) -> bytes:
    """Pillow cannot write it, so by hand: signature, header, pixels, end."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b"".join(b"\0" + bytes(range(6)) * side for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


GRADIENT = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
UNUSABLE = {
    "text named jpg": (b"this is no image, though it was named so", "not an image"),
    "no bytes": (b"", "empty file"),
    "truncated JPEG": (image_bytes("JPEG", GRADIENT)[:-400], "does not decode"),
    "truncated PNG": (image_bytes("PNG", GRADIENT)[:-100], "does not decode"),
    "16-bit grayscale PNG": (
        image_bytes("PNG", GRADIENT[..., 0].astype(np.uint16) * 256),
        "8 bits",
    ),
    "16-bit colour PNG": (png_of_16_bit_colour(64), "8 bits"),
    "GIF": (image_bytes("GIF", GRADIENT), "GIF"),
}


@dataclass(frozen=True)
class Listed:
    contents: list[bytes]

    def read(self, index: int) -> bytes:
        if not isinstance(self.contents[index], bytes):
            raise FileNotFoundError(2, "No such file or directory", "gone.jpg")
        return self.contents[index]


def plan_with(out: Path, *unusable: bytes | None) -> Plan:
    """Ten good images and the given ones."""
    contents = [image_bytes("JPEG", GRADIENT)] * 10 + list(unusable)
    keys = [f"good_{index}" for index in range(10)] + [
        f"bad_{index}" for index in range(len(unusable))
    ]
    return make_plan(
        Source(
            "mixed", ["a"], {"train": SourceSplit(np.zeros(len(keys), int), keys, Listed(contents))}
        ),
        out,
        0,
        4,
    )


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_image_is_left_out_and_named_with_the_reason(tmp_path, kind):
    content, reason = UNUSABLE[kind]
    summary = run(plan_with(tmp_path / "set", content), max_rejected=0.1)
    (line,) = (tmp_path / "set" / "rejected.jsonl").read_text().splitlines()
    rejected = json.loads(line)
    assert (rejected["split"], rejected["key"]) == ("train", "bad_0") and reason in rejected[
        "reason"
    ]
    assert summary.images == 10 and len(summary.rejected) == 1
    assert read_dataset(tmp_path / "set").splits["train"].rejected == 1
    manifest = Manifest(tmp_path / "set", "train")
    assert sorted(map(manifest.key, range(len(manifest)))) == [
        f"good_{index}" for index in range(10)
    ]


def test_a_file_that_vanished_is_left_out_and_named(tmp_path):
    summary = run(plan_with(tmp_path / "set", None), max_rejected=0.1)
    assert "No such file" in summary.rejected[0]["reason"]


def test_too_many_unusable_images_are_an_error_that_loses_no_work(tmp_path):
    out = tmp_path / "set"
    contents = [UNUSABLE[kind][0] for kind in ("text named jpg", "no bytes")]
    with pytest.raises(UserError, match="2 of 12 images .*bad_.*--max-rejected 0.1667"):
        run(plan_with(out, *contents), max_rejected=0.1)
    assert (
        not is_complete(plan_with(out, *contents))
        and len((out / "rejected.jsonl").read_text().splitlines()) == 2
    )
    summary = run(plan_with(out, *contents), max_rejected=0.1667)
    assert (summary.skipped_shards, summary.shards, len(summary.rejected)) == (
        3,
        0,
        2,
    ), "allowed: it goes on from there"
    assert len(Manifest(out, "train")) == 10


def test_a_set_without_any_usable_image_is_an_error(tmp_path):
    source = Source(
        "none", ["a"], {"train": SourceSplit(np.zeros(2, int), ["a", "b"], Listed([b"", b"text"]))}
    )
    with pytest.raises(UserError, match="none of the 2 images can be used"):
        run(make_plan(source, tmp_path / "set", 0, 4), max_rejected=1.0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_8_bit_mode_is_accepted(tmp_path, mode):
    buffer = io.BytesIO()
    Image.fromarray(GRADIENT).convert(mode).save(buffer, "PNG")
    assert run(plan_with(tmp_path / "set", buffer.getvalue())).images == 11


def test_sizes_are_those_of_the_stored_pixels_not_of_the_exif_rotation(prepare, photos):
    manifest = Manifest(prepare({"train": ([photos["rotated by EXIF"]], [0])}), "train")
    assert (manifest.widths[0], manifest.heights[0]) == (480, 360)


# --- the command line


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "data_prep", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def class_folders(tmp_path) -> Path:
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(GRADIENT).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a regular file")
    return tmp_path


def assert_one_line(outcome: subprocess.CompletedProcess, *words: str) -> None:
    """One line on stderr that says what is wrong, and no traceback."""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("data_prep: error: ") and all(word in line for word in words), line
    assert outcome.returncode not in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--source", "nowhere", "--out", "out"], "nowhere"),
        (["--source", "empty", "--out", "out"], "empty"),
        (["--source", "images", "--out", "file/out"], "file/out"),
        (["--source", "images", "--out", "out", "--samples-per-shard", "0"], "--samples-per-shard"),
        (["--source", "images", "--out", "out", "--val-fraction", "1.5"], "--val-fraction"),
    ],
)
def test_a_users_mistake_is_told_in_one_line(class_folders, arguments, word):
    assert_one_line(command("folder", *arguments, cwd=class_folders), word)
    assert not (class_folders / "out").exists()


@pytest.mark.parametrize(
    "option", ["--seed=-1", "--val=-3", "--imbalance-ratio=nan", "--imbalance-ratio=0.5"]
)
def test_numbers_that_make_no_sense_are_refused_without_a_traceback(tmp_path, option):
    outcome = command("demo", "--out", "out", "--largest", "5", option, cwd=tmp_path)
    assert (
        outcome.returncode != 0
        and "error: " in outcome.stderr
        and "Traceback" not in outcome.stderr
    )


def test_a_file_name_that_is_not_utf8_gives_no_traceback(class_folders):
    os.rename(
        class_folders / "images" / "a" / "0.png",
        os.fsencode(class_folders / "images" / "a") + b"/\xe9.png",
    )
    outcome = command("folder", "--source", "images", "--out", "out", cwd=class_folders)
    assert "Traceback" not in outcome.stderr


def test_prepare_twice_then_verify_then_damage(class_folders):
    """The second run writes nothing; verify is silent about an intact set and names the shard and
    sample of a flipped byte.
    """
    prepare = ("folder", "--source", "images", "--out", "out")
    assert command(*prepare, cwd=class_folders).returncode == 0
    again = command(*prepare, cwd=class_folders)
    assert again.returncode == 0 and "already complete" in again.stderr
    assert command("verify", "out", cwd=class_folders).returncode == 0
    shard = class_folders / "out" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    shard.write_bytes(content)
    outcome = command("verify", "out", cwd=class_folders)
    assert_one_line(outcome, "damaged")
    assert (
        "train-000000.tar is not as it was written" in outcome.stdout and "crc32" in outcome.stdout
    )


def test_verify_finds_a_changed_key(class_folders):
    """Which no checksum of an image and no count would tell."""
    assert (
        command("folder", "--source", "images", "--out", "out", cwd=class_folders).returncode == 0
    )
    manifest = class_folders / "out" / "train.arrow"
    manifest.write_bytes(manifest.read_bytes().replace(b"a/0", b"a/9"))
    outcome = command("verify", "out", cwd=class_folders)
    assert_one_line(outcome, "damaged: 1 problem")
    assert "train.arrow is not as it was written" in outcome.stdout


# --- headers of JPEGs


def test_the_size_in_a_jpegs_header_is_pillows(photos):
    for content in photos.values():
        with Image.open(io.BytesIO(content)) as image:
            assert jpeg_size(content) == image.size


def test_what_is_no_whole_header_of_a_jpeg_is_left_to_pillow(photos):
    content = photos["progressive"]
    cut = next(length for length in range(len(content)) if jpeg_size(content[:length]))
    assert 100 < cut < 1000 and all(jpeg_size(content[:length]) is None for length in range(cut))
    frame = content.index(b"\xff\xc2")
    twelve_bits = content[: frame + 4] + b"\x0c" + content[frame + 5 :]
    for other in (b"", b"\xff\xd8" + bytes(50), image_bytes("PNG", GRADIENT), twelve_bits):
        assert jpeg_size(other) is None
