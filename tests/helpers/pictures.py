"""Images for the tests."""

import io

import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112
ROTATED_BY_90 = 6


def smooth_image(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """Low-frequency colour noise with a little detail on top, as photos have."""

    def noise(cell: int) -> Image.Image:
        shape = (height // cell + 2, width // cell + 2, 3)
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)

    return Image.blend(noise(40), noise(8), 0.15)


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
