"""Sizes from the headers of JPEGs and PNGs."""

import io

from PIL import Image

from lt_train.data.image_size import header_size, jpeg_size
from tests.helpers.data_prep_runs import noise_png


def test_the_size_in_a_header_is_pillows(photos):
    for content in (*photos.values(), noise_png(0, 9)):
        with Image.open(io.BytesIO(content)) as image:
            assert header_size(content) == image.size


def test_what_is_no_whole_header_of_a_jpeg_is_left_to_pillow(photos):
    content = photos["progressive"]
    cut = next(length for length in range(len(content)) if jpeg_size(content[:length]))
    assert 100 < cut < 1000
    assert all(jpeg_size(content[:length]) is None for length in range(cut))
    frame = content.index(b"\xff\xc2")
    twelve_bits = content[: frame + 4] + b"\x0c" + content[frame + 5 :]
    for other in (b"", b"\xff\xd8" + bytes(50), noise_png(0, 64), twelve_bits):
        assert jpeg_size(other) is None


def test_other_files_have_no_size_here():
    for content in (b"", b"P6\n1 1\n255\nabc", noise_png(0, 9)[:20]):
        assert header_size(content) is None
