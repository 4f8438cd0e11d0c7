"""TIFF files of many kinds, for tests/helpers/odd_images.py (TIFF 6.0)."""

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

from tests.helpers.pictures import EXIF_ORIENTATION, encode

LONG = (273, 279, 324, 325)  # tags whose values have 32 bits: places and sizes of strips and tiles
COMPRESSIONS = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")


def tiffs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"):
        yield f"tiff {mode}", encode(as_mode(image, mode), "TIFF")
    for orientation in range(1, 9):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[EXIF_ORIENTATION] = orientation
        yield f"tiff turned {orientation}", encode(image, "TIFF", tiffinfo=tags)
    for compression in COMPRESSIONS:
        for mode in ("L", "RGB"):
            content = encode(image.convert(mode), "TIFF", compression=compression)
            yield f"tiff {mode} {compression}", content
    for compression in ("group3", "group4"):
        yield f"tiff {compression}", encode(image.convert("1"), "TIFF", compression=compression)
    more = [image.rotate(90), image.convert("L")]
    yield "tiff pages", encode(image, "TIFF", save_all=True, append_images=more)
    pixels = np.asarray(image)
    width, height = image.size
    # photometric: 0 white is zero, 1 black is zero, 2 RGB, 6 YCbCr, 8 Lab
    yield "tiff planes", tiff(width, height, (8, 8, 8), 2, pixels.transpose(2, 0, 1).tobytes(), 2)
    yield "tiff big-endian", tiff(width, height, (8, 8, 8), 2, pixels.tobytes(), order=">")
    gray = np.asarray(image.convert("L"))
    yield "tiff white is zero", tiff(width, height, (8,), 0, gray.tobytes())
    yield "tiff gray and more", tiff(width, height, (8, 8), 1, pixels[..., :2].tobytes())
    five = np.concatenate([pixels, pixels[..., :2]], 2)
    yield "tiff five channels", tiff(width, height, (8,) * 5, 2, five.tobytes())
    wide = pixels.astype("<u2") * 257
    yield "tiff RGB 16 bits", tiff(width, height, (16, 16, 16), 2, wide.tobytes())
    for bits in (2, 4):
        rows = np.random.default_rng(bits).bytes(-(-width * bits // 8) * height)
        yield f"tiff gray {bits} bits", tiff(width, height, (bits,), 1, rows)
    yield "tiff YCbCr", tiff(width, height, (8, 8, 8), 6, pixels.tobytes())
    yield "tiff Lab", tiff(width, height, (8, 8, 8), 8, pixels.tobytes())
    yield "tiff signed", tiff(width, height, (8,), 1, gray.tobytes(), sample_format=2)
    yield "tiff tiles", tiled(pixels)
    yield "tiff pixels missing", tiff(width, height, (8, 8, 8), 2, pixels.tobytes()[:-300])


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert(mode)


def tiff(
    width: int,
    height: int,
    bits: tuple[int, ...],
    photometric: int,
    pixels: bytes,
    planar: int = 1,
    order: str = "<",
    sample_format: int = 1,
) -> bytes:
    """One image of one strip, or one a plane, that is not compressed."""
    strips = len(bits) if planar == 2 else 1
    size = len(pixels) // strips
    tags = {
        256: [width],
        257: [height],
        258: list(bits),
        259: [1],
        262: [photometric],
        273: [8 + size * strip for strip in range(strips)],
        277: [len(bits)],
        278: [height],
        279: [size] * strips,
        284: [planar],
        339: [sample_format] * len(bits),
    }
    if len(bits) > 3 and photometric == 2 or len(bits) == 2:
        tags[338] = [0] * (len(bits) - (3 if photometric == 2 else 1))
    return _written(tags, pixels, order)


def tiled(pixels: np.ndarray, side: int = 16) -> bytes:
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)))
    tiles = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            tiles.append(padded[top : top + side, left : left + side].tobytes())
    tags = {
        256: [width],
        257: [height],
        258: [8, 8, 8],
        259: [1],
        262: [2],
        277: [3],
        284: [1],
        322: [side],
        323: [side],
        324: [8 + len(tiles[0]) * tile for tile in range(len(tiles))],
        325: [len(tiles[0])] * len(tiles),
    }
    return _written(tags, b"".join(tiles), "<")


def _written(tags: dict[int, list[int]], pixels: bytes, order: str) -> bytes:
    """The pixels from byte 8 on, then the directory."""
    pixels += bytes(-len(pixels) % 2)
    directory_at = 8 + len(pixels)
    values_at = directory_at + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, numbers in tags.items():
        is_long = tag in LONG
        packed = struct.pack(f"{order}{len(numbers)}{'HI'[is_long]}", *numbers)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", values_at + len(values))
            values += packed + bytes(len(packed) % 4)
            packed = place
        entries += struct.pack(f"{order}HHI", tag, 3 + is_long, len(numbers)) + packed.ljust(
            4, b"\0"
        )
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, directory_at)
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values
