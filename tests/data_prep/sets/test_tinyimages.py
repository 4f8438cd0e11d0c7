"""Raw pools: arrays, folders and tars of images without labels."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tarfile import GNU_FORMAT, PAX_FORMAT

import numpy as np
import pytest

from data_prep.reading.source import Source
from lt_train.data.manifest import Manifest
from lt_train.data.tables import UNLABELED
from lt_train.errors import UserError
from tests.helpers.sources import (
    Attack,
    fill,
    label_files,
    pixels_of,
    png,
    prepared,
    source_of,
    tar_of,
)

NUMBER = 23


@pytest.fixture(scope="module")
def tiny() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUMBER, 32, 32, 3), np.uint8)


def column_major(images: np.ndarray) -> bytes:
    """As tiny_images.bin: of an image, the value at row h, column w of channel c is byte h + 32 w +
    1024 c.
    """
    return images.transpose(0, 3, 2, 1).tobytes()


def assert_pool(
    source: Source, out: Path, keys: Sequence[str], pixels: Sequence[np.ndarray]
) -> None:
    """One split without labels, the same as a source and prepared."""
    split = source.splits["train"]
    assert (source.classes, list(source.splits), split.labels) == ([], ["train"], None)
    assert list(split.keys[: len(split.keys)]) == list(keys)
    assert [split.keys[index] for index in range(len(split.keys))] == list(keys)
    for index, expected in enumerate(pixels):
        np.testing.assert_array_equal(pixels_of(split.images.read(index)), expected)
    manifest = Manifest(prepared(source, out, 5), "train")
    order = [manifest.key(index) for index in range(len(manifest))]
    assert order == list(keys), "shards are runs of the pool's own order"
    assert len(manifest.shards) == -(-len(keys) // 5) and (manifest.labels == UNLABELED).all()
    for index, expected in enumerate(pixels):
        np.testing.assert_array_equal(pixels_of(bytes(manifest.read(index))), expected)
    assert not label_files(out)


def test_tiny_images_bin_is_column_major(tiny, tmp_path):
    content = column_major(tiny)
    assert content[3 * 3072 + 5 + 32 * 7 + 1024 * 2] == tiny[3, 5, 7, 2]
    fill(tmp_path, {"tiny_images.bin": content})
    source = source_of("tinyimages", "--source", tmp_path / "tiny_images.bin")
    assert source.name == "tinyimages" and "withdrawn" in source.notes[0]
    assert source.splits["train"].images.read(0).startswith(b"P6\n32 32\n255\n")
    assert_pool(source, tmp_path / "out", [f"{number:08d}" for number in range(NUMBER)], tiny)


def test_an_npy_may_hold_images_of_any_shape(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (NUMBER, 9, 6, 3), np.uint8)
    np.save(tmp_path / "pool.npy", images)
    source = source_of("tinyimages", "--source", tmp_path / "pool.npy", "--name", "mine")
    assert source.name == "mine"
    assert_pool(source, tmp_path / "out", [f"{number:08d}" for number in range(NUMBER)], images)


def test_a_folder_of_images_is_a_pool(tiny, tmp_path):
    names = sorted(f"{'ab'[number % 2]}/c d/{number // 2}.png" for number in range(7))
    images = {name: png(tiny[number]) for number, name in enumerate(names)}
    fill(tmp_path / "pool", images | {"notes.txt": b"x", "a/index.html": b"x"})
    source = source_of("tinyimages", "--source", tmp_path / "pool")
    assert_pool(source, tmp_path / "out", [name.removesuffix(".png") for name in names], tiny[:7])


def test_webdataset_tars_are_a_pool(tiny, tmp_path):
    images, long = [*map(png, tiny[:4])], f"{'long/' * 40}\N{SNOWMAN}"
    first = {"0.png": images[0], "0.json": b"{}", "1.png": images[1]}
    second = {"./x/2.v1.png": images[2], "./x/2.v1.cls": b"7", f"{long}.png": images[3]}
    tars = {"b.tar": tar_of(second, PAX_FORMAT), "a.tar": tar_of(first, PAX_FORMAT)}
    source = source_of("tinyimages", "--source", fill(tmp_path / "pool", tars))
    assert_pool(source, tmp_path / "out", ["0", "1", "x/2_v1", long], tiny[:4])


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("arr_0.npy", npy(array))
    return buffer.getvalue()


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
BAD_POOLS = {
    "tiny_images.bin": bytes(3072 * 2 - 1),
    "empty.bin": b"",
    "float.npy": npy(IMAGES / 255),
    "int8.npy": npy(IMAGES.astype(np.int8)),
    "flat.npy": npy(IMAGES.reshape(4, -1)),
    "planes.npy": npy(IMAGES.transpose(0, 3, 1, 2)),
    "one_image.npy": npy(IMAGES[0]),
    "no_images.npy": npy(IMAGES[:0]),
    "fortran.npy": npy(np.asfortranarray(IMAGES)),
    "cut.npy": npy(IMAGES)[:-1],
    "cut_in_header.npy": npy(IMAGES)[:40],
    "unclosed_header.npy": npy(IMAGES).replace(b"}", b"("),
    "empty.npy": b"",
    "text.npy": b"not an array",
    "archive.npy": npz(IMAGES),
}


@pytest.mark.parametrize("name", BAD_POOLS)
def test_a_damaged_or_other_file_is_no_pool(tmp_path, name):
    fill(tmp_path, {name: BAD_POOLS[name]})
    with pytest.raises(UserError, match=name):
        source_of("tinyimages", "--source", tmp_path / name)


def test_an_npy_of_objects_is_refused_and_runs_nothing(tmp_path):
    objects = np.array([Attack(tmp_path / "attacked")] * 3, object)
    np.save(tmp_path / "pool.npy", objects, allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(objects))
    for name in ("pool.npy", "pickle.npy"):
        with pytest.raises(UserError, match=name):
            source_of("tinyimages", "--source", tmp_path / name)
    assert not (tmp_path / "attacked").exists()
    np.load(tmp_path / "pool.npy", allow_pickle=True)
    assert (tmp_path / "attacked").exists(), "it would have run"


def test_a_source_without_images_is_no_pool(tmp_path):
    fill(tmp_path, {"empty/readme.txt": b"", "tars/a.tar": tar_of({"0.cls": b"1"}, PAX_FORMAT)})
    messages = {"empty": "neither images", "tars": "hold no images", "nowhere": "there is no"}
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            source_of("tinyimages", "--source", tmp_path / name)


SECOND = "is truncated or damaged: at byte 2048"  # where the second image's header begins
CUTS = {  # and what is said
    "within an image": (lambda content: content[:700], "is truncated: it ends within 0.png"),
    "within a header": (lambda content: content[: 2048 + 100], SECOND),
    "between images": (lambda content: content[:2048], SECOND),
    "in its header": (lambda content: content[:2198] + b"x" + content[2199:], SECOND),
    "to nothing": (lambda content: b"", "is not a whole uncompressed tar"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_truncated_tar_is_named(tmp_path, cut):
    """Two images, each a header of 512 bytes and 1,536 bytes of content."""
    tar = tar_of({"0.png": bytes(1500), "1.png": bytes(1500)}, PAX_FORMAT)
    damage, message = CUTS[cut]
    (tmp_path / "pool.tar").write_bytes(damage(tar))
    with pytest.raises(UserError, match=f"pool.tar' {message}"):
        source_of("tinyimages", "--source", tmp_path)


def test_the_tar_s_name_stands_before_keys_only_where_tars_share_some(tiny, tmp_path):
    images = [*map(png, tiny[:4])]
    first = tar_of({"0.png": images[0], "1.png": images[1]})
    for name, key in (("0", ["p_0/0", "p_0/1", "q/0", "q/2"]), ("3", ["0", "1", "3", "2"])):
        second = tar_of({f"{name}.png": images[2], "2.png": images[3]})
        pool = fill(tmp_path / f"pool{name}", {"p.0.tar": first, "q.tar": second})
        source = source_of("tinyimages", "--source", pool)
        assert_pool(source, tmp_path / f"out{name}", key, tiny[:4])


def test_what_lies_in_and_beside_tars_and_is_no_image_is_told(tmp_path):
    """Else half of a pool, compressed or a folder deeper, would be missed by nobody."""
    members = {"0.png": b"x", "0.cls": b"7", "inner.tar": b"x", "__MACOSX/._0.png": b"x"}
    others = ["b.tar.gz", "c.TAR", "._a.tar", "1.png", "more/2.png"]
    pool = fill(tmp_path, {"a.tar": tar_of(members), **dict.fromkeys(others, b"x")})
    source = source_of("tinyimages", "--source", pool)
    assert source.splits["train"].keys == ["0"]
    assert source.passed.told() == (
        "passed over: 2 .tar, 1 .cls, 1 .tar.gz, 1 __MACOSX, 1 hidden, 1 images beside the tars,"
        " folder 'more' beside the tars"
    )
    (tmp_path / "a.tar").unlink()
    (tmp_path / "1.png").unlink()
    (tmp_path / "more/2.png").unlink()
    with pytest.raises(UserError, match="neither images .* nor tars in it; .*1 .tar.gz"):
        source_of("tinyimages", "--source", pool)


def test_keys_that_would_repeat_or_are_no_text_are_refused(tmp_path):
    one = tar_of({"0.png": b"x"})
    tars = {
        "two/a.tar": one[:1024] + one,
        "two/b.tar": one,
        "latin/a.tar": tar_of({"caf\udce9.png": b"x"}, GNU_FORMAT),
        "lines/a.tar": tar_of({"a\nb.png": b"x"}, PAX_FORMAT),
    }
    fill(tmp_path, tars)
    messages = {
        "two": "2 images would have the same key 'a/0_png': a.tar/0.png, a.tar/0.png;",
        "latin": "not valid text",
        "lines": "not valid text",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            source_of("tinyimages", "--source", tmp_path / name)


PLAN_TEN_MILLION = """
import resource, sys
from argparse import Namespace
from pathlib import Path
from data_prep.sets.tinyimages import make_source
from data_prep.writing.plan import make_plan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = make_source(Namespace(source=Path(sys.argv[1]), name="pool"))
plan = make_plan(source, Path("out"), 0, 10_000)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
split = source.splits["train"]
images = sum(len(shard.indices) for shard in plan.shards)
last_key, last_size = split.keys[9_999_999], len(split.images.read(9_999_999))
sys.stdout.write(f"{len(plan.shards)} {images} {last_key} {last_size} {grown}")
"""


def test_a_pool_of_ten_million_images_is_planned_in_little_memory(tmp_path):
    """A list of ten million keys alone would take 600 MB.

    In a process of its own, whose peak is its own.
    """
    (tmp_path / "tiny_images.bin").touch()
    os.truncate(tmp_path / "tiny_images.bin", 10_000_000 * 3072)
    command = [sys.executable, "-c", PLAN_TEN_MILLION, tmp_path / "tiny_images.bin"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    shards, images, last_key, last_size, kilobytes = outcome.stdout.split()
    assert (int(shards), int(images), last_key) == (1000, 10_000_000, "09999999")
    assert int(last_size) == 3072 + len("P6\n32 32\n255\n")
    assert int(kilobytes) < 100_000
