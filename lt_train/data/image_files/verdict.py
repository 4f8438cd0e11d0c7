"""Do Pillow, which evaluation code and the resident loader read with, and DALI, the trainer's
decoder, read an image alike?
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lt_train.data.image_files.plain import is_plain
from lt_train.data.image_size import PNG

if TYPE_CHECKING:
    from lt_train.data.decoder import Decoder

# grey levels, the largest of an image: two that read it alike differed by 1 at most (rounding of
# CMYK), two that did not by 7 at least
TOLERANCE = 2


class Outcome(Enum):
    SAME = "both read it alike"
    DIFFERENT = "Pillow reads it, DALI does not or otherwise"
    DAMAGED = "it is no whole image"


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Suspect:
    """An image file, and its size in pixels by Pillow's look at the header."""

    content: bytes
    size: tuple[int, int]


def pixels_of(content: bytes) -> np.ndarray:
    """(H, W, 3) uint8 as torchvision reads it; anything is raised for what Pillow cannot decode."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def by_pillow(suspect: Suspect) -> Verdict:
    """What Pillow alone says."""
    try:
        pixels_of(suspect.content)
    except Exception as error:  # a damaged image can raise anything
        return Verdict(Outcome.DAMAGED, str(error))
    return Verdict(Outcome.SAME)


def all_by_both(decoder: "Decoder", suspects: Sequence[Suspect]) -> list[Verdict] | None:
    """None: one of several does not decode, and DALI does not say which."""
    from lt_train.data.decoder import reason_of

    contents = [np.frombuffer(suspect.content, np.uint8) for suspect in suspects]
    try:
        images = decoder(contents)
    except RuntimeError as error:
        if len(suspects) > 1:
            return None
        return [_not_by_dali(suspects[0], reason_of(error))]
    # read before the next image is decoded, which may take their memory
    plain = [_is_plain(*pair) for pair in zip(suspects, images)]
    odd = {place: np.array(images[place]) for place, known in enumerate(plain) if not known}
    verdicts = [Verdict(Outcome.SAME)] * len(suspects)
    for place, image in odd.items():
        verdicts[place] = _by_both(decoder, suspects[place], image)
    return verdicts


def _is_plain(suspect: Suspect, image: np.ndarray) -> bool:
    width, height = suspect.size
    return image.shape == (height, width, 3) and is_plain(suspect.content)


def _not_by_dali(suspect: Suspect, reason: str) -> Verdict:
    verdict = by_pillow(suspect)
    if verdict.outcome is Outcome.DAMAGED:
        return verdict
    if suspect.content.startswith(PNG):
        # Pillow takes wrong checksums, and black for pixels that are missing
        return Verdict(Outcome.DAMAGED, f"a checksum is wrong or a part is missing ({reason})")
    return Verdict(Outcome.DIFFERENT, f"DALI does not decode it ({reason})")


def _by_both(decoder: "Decoder", suspect: Suspect, by_dali: np.ndarray) -> Verdict:
    """``by_dali``: the whole image (H, W, 3) uint8. Training decodes parts, by other ways for some
    formats, so one is compared as well.
    """
    try:
        pixels = pixels_of(suspect.content)
    except Exception as error:  # a damaged image can raise anything
        return Verdict(Outcome.DAMAGED, str(error))
    if pixels.shape != by_dali.shape:
        sizes = [f"{width} x {height}" for height, width, _ in (by_dali.shape, pixels.shape)]
        return Verdict(Outcome.DIFFERENT, f"DALI makes {sizes[0]} pixels of it, Pillow {sizes[1]}")
    largest = _difference(pixels, by_dali)
    if largest <= TOLERANCE:
        start = [side // 3 for side in pixels.shape[:2]]
        shape = [-(-side // 3) for side in pixels.shape[:2]]
        places = ([np.array(values, np.int32)] for values in (start, shape))
        try:
            (part,) = decoder([np.frombuffer(suspect.content, np.uint8)], *places)
        except RuntimeError:
            return Verdict(Outcome.DIFFERENT, "DALI decodes it as a whole, but not a part of it")
        top, left = start
        largest = _difference(pixels[top : top + shape[0], left : left + shape[1]], part)
    if largest > TOLERANCE:
        return Verdict(
            Outcome.DIFFERENT, f"DALI and Pillow differ by {largest} grey levels where they do most"
        )
    return Verdict(Outcome.SAME)


def _difference(first: np.ndarray, second: np.ndarray) -> int:
    """The largest of two images of one shape, uint8."""
    return int(np.abs(first.astype(np.int16) - second).max())
