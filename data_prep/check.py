"""Is this an image that can be trained on, and how large is it: the one place where data preparation decodes."""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif", "PPM": "ppm", "MPO": "jpg"}  # MPO: a JPEG with more pictures behind it
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


@dataclass(frozen=True)
class Checked:
    """An image as it is stored."""

    content: bytes
    extension: str
    width: int  # pixels, as stored: an EXIF rotation is not applied, as torchvision does not apply it
    height: int


@dataclass(frozen=True)
class Checker:
    """What happens to every image on its way into a shard.

    ``decode``: decode it whole, not only its header. ``resize``: re-encode with this shorter side in pixels, as JPEG of
    ``quality``, if it is larger; None keeps the original bytes.
    """

    decode: bool = True
    resize: int | None = None
    quality: int = 90

    def __call__(self, content: bytes) -> Checked:
        """The image to store, or ValueError with the reason why it cannot be used."""
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.format not in EXTENSIONS:
                    raise ValueError(f"the format {image.format} is not supported; convert it to JPEG or PNG")
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


def _is_narrowed(image: Image.Image) -> bool:
    """Pillow makes RGB of 16-bit colour without a word; only the raw mode tells, or what a PPM says is its largest value."""
    if ";16" in str(image.tile):
        return True
    arguments = image.tile[0].args if image.format == "PPM" else None
    return isinstance(arguments, tuple) and arguments[1] > 255
