"""The resident loader's crops against NumPy and PIL, and what it refuses."""

import io
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lt_train.config.schema import ViewConfig
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError
from tests.helpers.dispatched import Dispatched
from tests.helpers.loading import (
    JITTER,
    RANDAUGMENT,
    WHOLE,
    assert_same_batches,
    by_pillow,
    configure,
    drawn,
    grey_levels,
    keys,
    train,
)
from tests.helpers.pictures import encode

PADDED = ViewConfig(size=32, crop="pad", padding=4)


@pytest.mark.parametrize("padding", [1, 4, 8])
def test_resident_padded_crops_equal_zero_padding_cropping_and_mirroring(small, padding):
    config = configure(small.root, "resident", replace(PADDED, padding=padding))
    batches = train(config)
    parameters = drawn(config, batches)
    assert 0 < parameters.flip.sum() < 40
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    images = np.pad(small.pixels[keys(config, batches)], around)
    rows = zip(images, grey_levels(batches), parameters.box, parameters.flip, strict=True)
    for image, ours, box, flip in rows:
        top, left = box[:2].astype(int) + padding
        expected = image[top : top + 32, left : left + 32]
        np.testing.assert_allclose(ours, expected[:, ::-1] if flip else expected, rtol=0, atol=1e-4)


def test_pixels_are_the_same_whatever_precision_evaluation_computes_in(small):
    """bf16 would move a box by a tenth of a pixel."""
    view = ViewConfig(size=24, crop="center", resize=29, jitter=(0.4, 0.4, 0.4, 0.1))
    config = configure(small.root, "resident", view)
    exact = train(config)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_batches(train(config), exact)


PADDED_BY_7 = ViewConfig(size=30, crop="pad", padding=7, flip_probability=0.0)
OTHERS = {
    "a padding of 1": replace(PADDED_BY_7, padding=1),
    "a padding of 0": replace(PADDED_BY_7, padding=0),
    "no padding": replace(WHOLE, size=30, resize=32),
}


def test_resident_views_may_have_paddings_of_their_own(small):
    """Down to none: what one view's crops reach into is not seen by the other."""
    for other in OTHERS.values():
        for first, second in ((other, PADDED_BY_7), (PADDED_BY_7, other)):
            config = configure(small.root, "resident", first, second_view=second)
            batches = train(config, views=2)
            around = ((0, 0), (7, 7), (7, 7), (0, 0))
            padded = np.pad(small.pixels[keys(config, batches)], around)
            for view in (0, 1):
                corners = drawn(config, batches, view).box[:, :2].astype(int) + 7
                expected = [
                    image[top : top + 30, left : left + 30]
                    for image, (top, left) in zip(padded, corners)
                ]
                np.testing.assert_allclose(grey_levels(batches, view), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("crop", ["pad", "random_resized"])
def test_the_host_never_waits_for_the_device(small, crop, monkeypatch):
    """Whatever is drawn; "meta" is a device that has no values to wait for, nor autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    view = ViewConfig(size=32, crop=crop, cutout=0.5, **RANDAUGMENT, **JITTER)
    config = configure(small.root, "resident", view)
    loader = RunData(config, World(device=torch.device("meta"))).train(0, 4)
    with Dispatched() as dispatched:
        batches = list(loader)
    assert [batch.views[0].shape for batch in batches] == [(10, 3, 32, 32)] * 4
    assert dispatched.calls and not dispatched.waits


def ten_times(prepare, image: Image.Image) -> Path:
    return prepare({"train": ([encode(image, "PNG")] * 10, [0] * 10)})


def test_resident_resized_crops_of_a_white_image_are_white(prepare):
    """What lies beyond the image's edge, padding, must not shine through."""
    root = ten_times(prepare, Image.new("RGB", (32, 32), "white"))
    batches = train(configure(root, "resident", ViewConfig(size=32)))
    np.testing.assert_allclose(grey_levels(batches), 255, rtol=0, atol=1e-4)


def test_resident_resized_crops_equal_pillow(prepare, photos):
    """Enlarged boxes, for which antialiasing makes no difference, of a smooth image."""
    image = Image.open(io.BytesIO(photos["square"])).resize((32, 32), Image.Resampling.BOX)
    view = ViewConfig(size=32, scale=(0.2, 0.8))
    config = configure(ten_times(prepare, image), "resident", view)
    batches = train(config)
    parameters = drawn(config, batches)
    for ours, box, flip in zip(grey_levels(batches), parameters.box, parameters.flip, strict=True):
        assert np.abs(ours - by_pillow(image, box, flip, 32)).mean() <= 0.5, box


def test_resident_refuses_images_of_several_sizes(photo_root):
    with pytest.raises(UserError, match="90 to 900 pixels; use data.loader=dali"):
        train(configure(photo_root, "resident", PADDED))


def test_a_second_view_larger_than_its_padded_images_is_refused(small):
    """Whatever padding the first view has."""
    first, second = replace(PADDED, padding=9), replace(PADDED, size=35, padding=1)
    config = configure(small.root, "resident", first, second_view=second)
    message = (
        "second_view.size=35 is larger than the images with second_view.padding=1 round them "
        "(34 pixels)"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        train(config, views=2)


def test_ppm_is_decoded_like_any_other_image(prepare):
    """Raw pixels take a shorter way; a PPM with a comment in its header takes Pillow's."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    plain = encode(Image.fromarray(pixels[0]), "PPM")
    commented = encode(Image.fromarray(pixels[1]), "PPM").replace(b"P6\n", b"P6\n# made by hand\n")
    root = prepare({"train": ([plain, commented], [0, 0])})
    config = configure(root, "resident", WHOLE, global_batch_size=2)
    found = train(config, last=1)
    numbers = keys(config, found)
    np.testing.assert_array_equal(grey_levels(found).round(), pixels[numbers])
