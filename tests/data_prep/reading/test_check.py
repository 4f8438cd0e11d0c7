"""The decoder check, and sizes from the headers of JPEGs."""

import io

import pytest
from PIL import Image

from data_prep.reading.check import Checker
from tests.helpers.data_prep_runs import noise_png


@pytest.mark.parametrize(
    ("largest", "good"), [(255, True), (100, True), (1023, False), (65535, False)]
)
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_a_ppm_of_more_than_8_bits_is_refused(kind, largest, good):
    """Pillow makes 8 bits of it without a word."""
    channels, bytes_each = {b"P5": 1, b"P6": 3}[kind], 1 if good else 2
    content = kind + b"\n4 2\n%d\n" % largest + bytes(8 * channels * bytes_each)
    if good:
        checked = Checker()(content)
        assert (checked.extension, checked.content) == ("ppm", content)
    else:
        with pytest.raises(ValueError, match="not 8 bits a channel"):
            Checker()(content)


def test_the_size_in_a_jpegs_header_is_pillows(photos):
    for content in photos.values():
        with Image.open(io.BytesIO(content)) as image:
            assert jpeg_size(content) == image.size


def test_what_is_no_whole_header_of_a_jpeg_is_left_to_pillow(photos):
    content = photos["progressive"]
    cut = next(length for length in range(len(content)) if jpeg_size(content[:length]))
    assert 100 < cut < 1000
    assert all(jpeg_size(content[:length]) is None for length in range(cut))
    frame = content.index(b"\xff\xc2")
    twelve_bits = content[: frame + 4] + b"\x0c" + content[frame + 5 :]
    for other in (b"", b"\xff\xd8" + bytes(50), noise_png(0, 64), twelve_bits):
        assert jpeg_size(other) is None
