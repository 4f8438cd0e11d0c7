"""Images of all kinds: kept as they are, made smaller, or left out with the reason."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, TiffImagePlugin

from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from tests.helpers.data_prep_runs import assert_one_line, call, noise, succeed, tree
from tests.helpers.pictures import EXIF_ORIENTATION, ROTATED_BY_90, encode, smooth_image
from tests.helpers.sources import fill, pixels_of


@pytest.fixture(scope="module")
def odd_images() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    image = smooth_image(generator, 60, 40)
    gray_16_bit = np.asarray(image.convert("L")).astype(np.uint16) * 256
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_BY_90
    turned = TiffImagePlugin.ImageFileDirectory_v2()
    turned[EXIF_ORIENTATION] = ROTATED_BY_90
    return {
        "plain.jpg": encode(image, "JPEG", quality=90),
        "rotated.jpg": encode(image, "JPEG", quality=90, exif=exif),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG", quality=90),
        "turned.tif": encode(image, "TIFF", tiffinfo=turned),
        "cut.png": encode(image, "PNG")[:-12],
        "16 bits.png": encode(Image.fromarray(gray_16_bit), "PNG"),
        "empty.jpg": b"",
        "truncated.jpg": encode(image, "JPEG", quality=90)[:-200],
        "text.jpg": b"this is no image, though it was named so",
    }


GOOD = {"plain", "rotated", "cmyk"}


@pytest.fixture(scope="module")
def odd(odd_images, tmp_path_factory) -> Path:
    """All of them, prepared."""
    root = tmp_path_factory.mktemp("odd")
    fill(root / "images" / "a", odd_images)
    arguments = ["--source", root / "images", "--out", root / "set", "--max-rejected", "0.6"]
    done = succeed("folder", *arguments)
    assert "5 rejected (rejected.jsonl), 1 re-encoded (reencoded.jsonl)" in done.stderr
    return root / "set"


def stored(manifest: Manifest) -> dict[str, bytes]:
    """Key -> content."""
    ids = range(len(manifest))
    return {manifest.key(sample_id): manifest.read(sample_id).tobytes() for sample_id in ids}


def test_odd_images_are_kept_re_encoded_or_named_with_the_reason(odd, odd_images):
    manifest = Manifest(odd, "train")
    found = stored(manifest)
    turned = found.pop("a/turned")
    assert found == {f"a/{name}": odd_images[f"{name}.jpg"] for name in GOOD}
    sizes = zip(manifest.widths.tolist(), manifest.heights.tolist())
    expected = {key: (60, 40) for key in found}  # as stored, whatever EXIF says
    keys = map(manifest.key, range(len(manifest)))
    assert dict(zip(keys, sizes)) == expected | {"a/turned": (40, 60)}
    np.testing.assert_array_equal(pixels_of(turned), pixels_of(odd_images["turned.tif"]))
    assert json.loads((odd / "reencoded.jsonl").read_text())["key"] == "a/turned"
    rows = [json.loads(line) for line in (odd / "rejected.jsonl").read_text().splitlines()]
    rejected = {row["key"]: row["reason"] for row in rows}
    reasons = {
        "16 bits": "not 8 bits",
        "cut": "a part is missing",
        "empty": "empty file",
        "truncated": "does not decode",
        "text": "not an image",
    }
    assert rejected.keys() == {f"a/{name}" for name in reasons}
    assert all(reason in rejected[f"a/{name}"] for name, reason in reasons.items())


def test_dali_decodes_cmyk_as_pillow_does(odd, odd_images):
    tar = str(odd / "train-000000.tar")

    @pipeline_def(batch_size=len(GOOD), num_threads=1, device_id=None)
    def pipeline():
        contents = fn.readers.webdataset(
            paths=[tar], ext=["jpg"], missing_component_behavior="skip"
        )
        return fn.decoders.image(contents, device="cpu", output_type=types.RGB)

    pipe = pipeline()
    pipe.build()
    (images,) = pipe.run()
    manifest = Manifest(odd, "train")
    keys = [manifest.key(sample_id) for sample_id in range(len(manifest))]
    keys.remove("a/turned")
    found = np.array(images[keys.index("a/cmyk")]).astype(int)
    expected = pixels_of(odd_images["cmyk.jpg"]).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_more_unusable_images_than_allowed_are_an_error_that_says_how_to_allow_them(
    little, tmp_path
):
    """29 of 100: the share it names is enough, though 0.29 * 100 is less than 29 to a computer."""
    content = (little.source / "train/a/0.png").read_bytes()
    images = {f"{number}.png": content if number >= 29 else b"" for number in range(100)}
    fill(tmp_path / "many" / "a", images)
    arguments = ["folder", "--source", tmp_path / "many", "--out", tmp_path / "set"]
    words = ("29 of 100 images cannot be used", "rejected.jsonl", "--max-rejected 0.29 ")
    assert_one_line(call(*arguments), *words, reports=2)  # what it is, and no split held out
    assert not (tmp_path / "set" / "dataset.json").exists()
    done = succeed(*arguments, "--max-rejected", "0.29")
    assert "29 rejected" in done.stderr and "1 shards were finished before" in done.stderr
    assert read_dataset(tmp_path / "set").splits["train"].rejected == 29


def test_without_the_decode_check_only_headers_are_read(odd, odd_images, tmp_path):
    """A truncated image passes; good images give the same tar and manifest as with the check."""
    good = {f"{name}.jpg": odd_images[f"{name}.jpg"] for name in GOOD}
    every = good | {"truncated.jpg": odd_images["truncated.jpg"]}
    source = fill(tmp_path / "all" / "a", every).parent
    succeed("folder", "--source", source, "--out", tmp_path / "trusted", "--no-decode-check")
    expected = {f"a/{name.removesuffix('.jpg')}": content for name, content in every.items()}
    assert stored(Manifest(tmp_path / "trusted", "train")) == expected

    source = fill(tmp_path / "good" / "a", good).parent
    for name, options in (("checked", []), ("trusted2", ["--no-decode-check"])):
        succeed("folder", "--source", source, "--out", tmp_path / name, *options)
    checked, trusted = (tree(tmp_path / name) for name in ("checked", "trusted2"))
    assert {name for name in checked if checked[name] != trusted[name]} == {"dataset.json"}


SIDES = {
    "landscape": (200, 90),
    "portrait": (98, 301),
    "just larger": (65, 65),
    "exactly": (64, 100),
    "smaller": (63, 300),
    "wide": (1000, 66),
    "png": (90, 90),
}


@pytest.fixture(scope="module")
def many_sides() -> dict[str, bytes]:
    """Images of these sides, by file name."""
    generator = np.random.default_rng(0)
    images = {"png.png": encode(Image.fromarray(noise(0, 90)).convert("RGBA"), "PNG")}
    for name in list(SIDES)[:-1]:
        image = smooth_image(generator, *SIDES[name])
        images[f"{name}.jpg"] = encode(image, "JPEG", quality=95)
    return images


def test_resize_makes_larger_training_images_smaller_and_keeps_all_others(many_sides, tmp_path):
    splits = ("train", "val", "test")
    for split in splits:
        fill(tmp_path / "images" / split / "a", many_sides)
    options = ["--samples-per-shard", "3", "--resize", "64", "--quality", "90"]
    arguments = ["folder", "--source", tmp_path / "images", *options]
    for workers in (1, 2):
        out = tmp_path / str(workers) / "set"
        succeed(*arguments, "--workers", workers, "--out", out)
    root = tmp_path / "1" / "set"
    assert tree(root) == tree(tmp_path / "2" / "set")
    originals = {f"a/{name.split('.')[0]}": content for name, content in many_sides.items()}
    for split in splits:
        manifest = Manifest(root, split)
        found = stored(manifest)
        assert len(manifest) == len(originals) and found.keys() == originals.keys()
        sizes = {manifest.key(n): (manifest.widths[n], manifest.heights[n]) for n in range(7)}
        for key, original in originals.items():
            if split == "train" and min(SIDES[key.removeprefix("a/")]) > 64:
                assert_shrunk(found[key], original, sizes[key])
            else:
                assert found[key] == original


def assert_shrunk(content: bytes, original: bytes, size: tuple[int, int]) -> None:
    image, before = (Image.open(io.BytesIO(part)) for part in (content, original))
    assert image.format == "JPEG" and image.mode == "RGB"
    assert image.size == size and min(image.size) == 64
    assert abs(max(image.size) - max(before.size) * 64 / min(before.size)) <= 1
    assert (image.width > image.height) == (before.width > before.height)
    expected = before.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
    assert content == encode(expected, "JPEG", quality=90)
