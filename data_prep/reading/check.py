"""Is this an image that can be trained on, and how large is it: the one place where data
preparation decodes.
"""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

EXTENSIONS = {
    "JPEG": "jpg",
    "PNG": "png",
    "BMP": "bmp",
    "WEBP": "webp",
    "TIFF": "tif",
    "PPM": "ppm",
    "MPO": "jpg",  # a JPEG with more pictures behind it
}
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
# markers of JPEG among those of frame headers that begin tables instead
TABLES = (0xC4, 0xC8, 0xCC)


@dataclass(frozen=True)
class Checked:
    """An image as it is stored: ``width`` and ``height`` in pixels before any EXIF rotation, which
    torchvision does not apply either.
    """

    content: bytes
    extension: str
    width: int
    height: int


@dataclass(frozen=True)
class Checker:
    """What happens to every image on its way into a shard.

    ``decode``: decode it whole, not only its header. ``resize``: re-encode with this shorter side
    in pixels, as JPEG of ``quality``, if it is larger; None keeps the original bytes.
    """

    decode: bool = True
    resize: int | None = None
    quality: int = 90

    def __call__(self, content: bytes) -> Checked:
        """The image to store, or ValueError with the reason why it cannot be used."""
        if not self.decode and self.resize is None and (size := jpeg_size(content)):
            return Checked(content, "jpg", *size)
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.format not in EXTENSIONS:
                    raise ValueError(
                        f"the format {image.format} is not supported; convert it to JPEG or PNG"
                    )
                if image.mode not in EIGHT_BIT_MODES or _is_narrowed(image):
                    raise ValueError(f"not 8 bits a channel (mode {image.mode})")
                if self.resize is not None and min(image.size) > self.resize:
                    return self._shrunk(image)
                if self.decode:
                    image.load()
                return Checked(content, EXTENSIONS[image.format], image.width, image.height)
        except UnidentifiedImageError as error:
            raise ValueError("not an image" if content else "empty file") from error
        except ValueError:
            raise
        except Exception as error:  # a damaged image can raise anything
            raise ValueError(f"does not decode: {error}") from error

    def _shrunk(self, image: Image.Image) -> Checked:
        scale = self.resize / min(image.size)
        size = [max(self.resize, round(side * scale)) for side in image.size]
        small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=self.quality)
        return Checked(buffer.getvalue(), "jpg", *small.size)


DECODED = Checker()  # what make_plan takes where nothing else is asked for


def _is_narrowed(image: Image.Image) -> bool:
    """Pillow makes RGB of 16-bit colour without a word; only the raw mode tells, or what a PPM says
    is its largest value.
    """
    if ";16" in str(image.tile):
        return True
    arguments = image.tile[0].args if image.format == "PPM" else None
    return isinstance(arguments, tuple) and arguments[1] > 255


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits, from its frame header (ITU T.81, B.2), in a tenth of
    Pillow's time; None: let Pillow look.
    """
    at = 2
    if content[:at] != b"\xff\xd8":
        return None
    while content[at : at + 1] == b"\xff" and at + 9 <= len(content):
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in TABLES:
            bits = content[at + 4]
            height = int.from_bytes(content[at + 5 : at + 7])
            width = int.from_bytes(content[at + 7 : at + 9])
            return (width, height) if bits == 8 and width and height else None
        at += 2 + length
    return None
