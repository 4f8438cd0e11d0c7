"""Is this an image that a network can be given, and how large is it? Data preparation asks of
every image, and whoever takes images that were not prepared.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, UnidentifiedImageError

from lt_train.data.image_files.decoder_process import DecoderProcess
from lt_train.data.image_files.plain import is_plain, is_raw
from lt_train.data.image_files.verdict import Outcome, Suspect, Verdict, by_pillow, pixels_of
from lt_train.data.image_size import jpeg_size

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
_decoders = DecoderProcess()


@dataclass(frozen=True)
class Checked:
    """An image as it is stored: ``width`` and ``height`` in pixels before any EXIF rotation, which
    torchvision does not apply either. ``note``: why it is not the source's file, but its pixels.
    ``settled``: nothing is left to find out about its pixels.
    """

    content: bytes
    extension: str
    width: int
    height: int
    note: str = ""
    settled: bool = False


@dataclass(frozen=True)
class Rejected:
    """An image that cannot be used."""

    reason: str


@dataclass(frozen=True)
class Checker:
    """What happens to every image on its way into a shard.

    ``decode``: decode it whole, not only its header. ``resize``: re-encode with this shorter side
    in pixels, as JPEG of ``quality``, if it is larger; None keeps the original bytes.
    ``pillow_only``: there is no DALI to ask how training will read the image. ``trust_plain``: an
    image of which decoders make the same, or nothing, is left to whoever decodes it next.
    """

    decode: bool = True
    resize: int | None = None
    quality: int = 90
    pillow_only: bool = False
    trust_plain: bool = False

    def __call__(self, contents: Sequence[bytes]) -> list[Checked | Rejected]:
        """Each image as it is to be stored, or the reason why it cannot be used."""
        return self.decided([self.look(content) for content in contents])

    def look(self, content: bytes) -> Checked | Rejected:
        """What its header says; ``decided`` has the last word."""
        if not self.decode and self.resize is None and (size := jpeg_size(content)):
            return Checked(content, "jpg", *size)
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.format not in EXTENSIONS:
                    return Rejected(
                        f"the format {image.format} is not supported; convert it to JPEG or PNG"
                    )
                if image.mode not in EIGHT_BIT_MODES or _is_narrowed(image):
                    return Rejected(f"not 8 bits a channel (mode {image.mode})")
                if self.resize is not None and min(image.size) > self.resize:
                    return self._shrunk(image)
                settled = is_raw(content) or self.trust_plain and is_plain(content)
                return Checked(content, EXTENSIONS[image.format], *image.size, settled=settled)
        except UnidentifiedImageError:
            return Rejected("not an image" if content else "empty file")
        except Exception as error:  # a damaged image can raise anything
            return Rejected(f"does not decode: {error}")

    def decided(self, looked: Sequence[Checked | Rejected]) -> list[Checked | Rejected]:
        """After their pixels were seen, where that is asked for."""
        if not self.decode:
            return list(looked)
        judge = _by_pillow if self.pillow_only else _decoders.judge
        # what was re-encoded is looked at as well: there are images of which DALI takes no PNG
        return _judged(_judged(looked, judge), judge)

    def _shrunk(self, image: Image.Image) -> Checked:
        scale = self.resize / min(image.size)
        size = [max(self.resize, round(side * scale)) for side in image.size]
        small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=self.quality)
        return Checked(buffer.getvalue(), "jpg", *small.size, settled=True)


DECODED = Checker()  # what make_plan takes where nothing else is asked for


def _by_pillow(suspects: Sequence[Suspect]) -> list[Verdict]:
    return list(map(by_pillow, suspects))


def _judged(
    images: Sequence[Checked | Rejected], judge: Callable[[Sequence[Suspect]], list[Verdict]]
) -> list[Checked | Rejected]:
    """The same images, or what has become of them."""
    judged = list(images)
    places = [place for place, image in enumerate(images) if _is_open(image)]
    suspects = [_suspect(images[place]) for place in places]
    for place, verdict in zip(places, judge(suspects), strict=True):
        judged[place] = _after(images[place], verdict)
    return judged


def _is_open(image: Checked | Rejected) -> bool:
    return isinstance(image, Checked) and not image.settled


def _suspect(image: Checked) -> Suspect:
    return Suspect(image.content, (image.width, image.height))


def _after(image: Checked, verdict: Verdict) -> Checked | Rejected:
    """The image as it is, as Pillow reads it, or none."""
    if verdict.outcome is Outcome.SAME:
        return replace(image, settled=True)
    if image.note:
        return Rejected(f"{image.note}, nor a PNG of its pixels: {verdict.reason}")
    if verdict.outcome is Outcome.DAMAGED:
        return Rejected(f"does not decode: {verdict.reason}")
    pixels = pixels_of(image.content)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    height, width, _ = pixels.shape
    return Checked(buffer.getvalue(), "png", width, height, verdict.reason)


def _is_narrowed(image: Image.Image) -> bool:
    """Pillow makes RGB of 16-bit colour without a word; only the raw mode tells, or what a PPM says
    is its largest value.
    """
    if ";16" in str(image.tile):
        return True
    arguments = image.tile[0].args if image.format == "PPM" else None
    return isinstance(arguments, tuple) and arguments[1] > 255
