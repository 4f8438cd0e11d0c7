"""Images that are made of others, or of arrays; each the ``Images`` that a source yields, as those
of files and tars are (:mod:`lt_train.data.image_files.places`).
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lt_train.data.image_files.places import Images


@dataclass(frozen=True)
class PngArray:
    """Images as an array (N, H, W, 3) uint8, read as PNG, which loses nothing."""

    pixels: np.ndarray

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Picked:
    """Some of other images, by index."""

    images: Images
    indices: np.ndarray

    def read(self, index: int) -> bytes:
        return self.images.read(int(self.indices[index]))


def ppm(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) uint8 as a PPM file: a line of text and the bytes as they are, so nothing to
    decode.
    """
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()
