"""Files on which decoders cannot differ."""

import pytest

from lt_train.data.image_files.plain import is_plain, is_raw
from tests.helpers.odd_images import PNG_SIGNATURE, whole_files

PLAIN = [
    *("jpeg plain", "jpeg gray", "jpeg 4:4:4", "jpeg 4:2:0 progressive", "jpeg restarts"),
    *("jpeg RGB", "jpeg Adobe transform 1", "jpeg turned 6", "jpeg ICC", "jpeg comment"),
    *("png type 2, 8 bits", "png type 0, 8 bits interlaced", "png type 6, 8 bits", "png text"),
    *("webp", "webp lossless", "webp gray", "bmp RGB", "bmp 24 bits"),
]
ODD = [
    *("jpeg CMYK", "jpeg CMYK without Adobe", "jpeg 12 bits", "jpeg lossless", "jpeg arithmetic"),
    *("jpeg two images", "jpeg fill bytes", "png type 2, 16 bits", "png type 3, 1 bits"),
    *("png checksum of IDAT", "png checksum of tEXt", "png end missing", "png animated"),
    *("png palette transparent 8 bits", "tiff RGB", "empty", "text"),
    *("webp alpha", "webp alpha lossless", "webp animated", "webp turned"),
    *("bmp L", "bmp RGBA", "bmp 24 bits top down", "bmp runs", "bmp 5-6-5 bits"),
]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return whole_files(0)


@pytest.mark.parametrize("name", PLAIN)
def test_a_whole_file_of_a_common_kind_is_plain_and_no_part_of_it_is(files, name):
    content = files[name]
    assert is_plain(content)
    assert not any(is_plain(content[:length]) for length in range(len(content)))
    assert not is_plain(content + b"x")


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_not(files, name):
    assert not is_plain(files[name])


def test_a_marker_within_a_jpegs_pixels_is_odd(files):
    content = files["jpeg quality 100"]
    at = content.index(b"\xff\xda") + 300
    assert is_plain(content)
    assert is_plain(content[:at] + b"\x12\x34" + content[at + 2 :]), "nobody can tell"
    for marker in (b"\xff\xd9", b"\xff\xc4", b"\xff\x01", b"\xff\xff"):
        assert not is_plain(content[:at] + marker + content[at + 2 :])


def test_raw_pixels_are_a_header_and_so_many_bytes():
    content = b"P6\n3 2\n255\n" + bytes(18)
    assert is_raw(content)
    odd = [content[:-1], content + b"x", content.replace(b"255", b"100"), b"P6\n0 2\n255\n"]
    for other in (*odd, content.replace(b"P6", b"P5"), PNG_SIGNATURE, b""):
        assert not is_raw(other)
