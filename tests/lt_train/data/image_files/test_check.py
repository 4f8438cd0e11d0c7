"""The decoder check."""

import pytest

from data_prep.reading.checked import checked
from data_prep.reading.source import SourceSplit
from lt_train.data.image_files.check import Checked, Checker, Rejected
from tests.helpers.commands import Encoded
from tests.helpers.odd_images import whole_files
from tests.helpers.sources import pixels_of


@pytest.mark.parametrize(
    ("largest", "good"), [(255, True), (100, True), (1023, False), (65535, False)]
)
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_a_ppm_of_more_than_8_bits_is_refused(kind, largest, good):
    """Pillow makes 8 bits of it without a word."""
    channels, bytes_each = {b"P5": 1, b"P6": 3}[kind], 1 if good else 2
    content = kind + b"\n4 2\n%d\n" % largest + bytes(8 * channels * bytes_each)
    (image,) = Checker()([content])
    if good:
        assert (image.extension, image.content, image.note) == ("ppm", content, "")
    else:
        assert "not 8 bits a channel" in image.reason


ODD = [  # DALI reads them otherwise than Pillow, or not at all
    *("tiff turned 3", "tiff turned 6", "tiff 1", "tiff LA", "pnm P5 to 100", "pnm P6 to 100"),
    *("jpeg CMYK without Adobe", "bmp 16 bits"),
]


@pytest.mark.parametrize("pillow_only", [False, True])
def test_what_dali_would_read_otherwise_becomes_a_png_of_pillows_pixels(pillow_only):
    """Without DALI nobody knows."""
    files = whole_files(0)
    contents = [files[name] for name in ODD]
    for content, image in zip(contents, Checker(pillow_only=pillow_only)(contents), strict=True):
        pixels = pixels_of(content)
        assert (image.height, image.width) == pixels.shape[:2] or pillow_only
        if pillow_only:
            assert image.content == content and not image.note
        else:
            assert image.extension == "png" and "DALI" in image.note
            assert (pixels_of(image.content) == pixels).all()


DAMAGED = [
    *("png checksum of IDAT", "png 1 rows missing", "png end missing", "jpeg end within"),
    *("bmp pixels missing", "tiff pixels missing", "empty", "text", "gif"),
]


def test_damaged_images_are_rejected_each_with_its_reason():
    files = whole_files(0)
    found = Checker()([files[name] for name in DAMAGED])
    assert all(isinstance(image, Rejected) and image.reason for image in found)


def test_images_come_one_by_one_in_order_however_many_are_read_at_once(photos):
    good, bad = photos["square"], photos["square"][:-500]
    contents = [bad if index % 67 == 5 else good for index in range(150)]
    split = SourceSplit(None, [f"{index}" for index in range(150)], Encoded(contents))
    found = dict(checked(split, range(149, -1, -1), Checker()))
    assert list(found) == list(range(149, -1, -1))
    for index, image in found.items():
        assert isinstance(image, Rejected if index % 67 == 5 else Checked)
