"""Do Pillow, which evaluation code and the resident loader read with, and DALI, the trainer's
decoder, read an image alike?
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from PIL import Image

from data_prep.reading.plain import is_plain
from lt_train.data.image_size import PNG

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


def by_both(suspect: Suspect, by_dali: np.ndarray | str) -> Verdict:
    """``by_dali``: the pixels (H, W, 3) uint8, or why DALI does not decode it."""
    decodes = not isinstance(by_dali, str)
    width, height = suspect.size
    if decodes and by_dali.shape == (height, width, 3) and is_plain(suspect.content):
        return Verdict(Outcome.SAME)
    try:
        pixels = pixels_of(suspect.content)
    except Exception as error:  # a damaged image can raise anything
        return Verdict(Outcome.DAMAGED, str(error))
    if decodes:
        return _compared(pixels, by_dali)
    if suspect.content.startswith(PNG):
        # Pillow takes wrong checksums, and black for pixels that are missing
        return Verdict(Outcome.DAMAGED, f"a checksum is wrong or a part is missing ({by_dali})")
    return Verdict(Outcome.DIFFERENT, f"DALI does not decode it ({by_dali})")


def _compared(pixels: np.ndarray, by_dali: np.ndarray) -> Verdict:
    if pixels.shape != by_dali.shape:
        sizes = (
            " x ".join(map(str, by_dali.shape[1::-1])),
            " x ".join(map(str, pixels.shape[1::-1])),
        )
        return Verdict(Outcome.DIFFERENT, f"DALI makes {sizes[0]} pixels of it, Pillow {sizes[1]}")
    largest = int(np.abs(pixels.astype(np.int16) - by_dali).max())
    if largest > TOLERANCE:
        return Verdict(
            Outcome.DIFFERENT, f"DALI and Pillow differ by {largest} grey levels where they do most"
        )
    return Verdict(Outcome.SAME)


def all_by_both(decoder, suspects: Sequence[Suspect]) -> list[Verdict] | None:
    """``decoder``: an :class:`lt_train.data.decoder.Decoder`. None: one of several does not decode,
    and DALI does not say which.
    """
    from lt_train.data.decoder import reason_of

    contents = [np.frombuffer(suspect.content, np.uint8) for suspect in suspects]
    try:
        images = decoder(contents)
    except RuntimeError as error:
        if len(suspects) > 1:
            return None
        images = [reason_of(error)]
    return [by_both(*pair) for pair in zip(suspects, images, strict=True)]
