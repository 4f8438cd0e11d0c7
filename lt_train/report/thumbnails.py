"""Small pictures of a data set's images, as text to stand in a page."""

import base64
import html
import io

from PIL import Image

from lt_train.data.manifest import Manifest

SIDE = 96  # pixels, the longer one
QUALITY = 75
MOST = 300  # of a page: about a megabyte


class Thumbnails:
    """Those of one page, of which there are at most ``most``."""

    def __init__(self, most: int = MOST):
        self.left = most

    def of(self, manifest: Manifest, sample_id: int, name: str) -> str:
        """An image as an element of HTML that is called ``name``; nothing if it cannot be read, or
        if the page has enough.
        """
        if self.left <= 0:
            return ""
        try:
            content = manifest.read(sample_id)
            if content is None:  # damaged
                return ""
            with Image.open(io.BytesIO(content)) as image:
                image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded no larger than needed
                small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
        except Exception:  # a shard that is not here, and the many things that Pillow raises
            return ""
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=QUALITY)
        self.left -= 1
        text = base64.b64encode(buffer.getvalue()).decode()
        return f'<img alt="{html.escape(name)}" src="data:image/jpeg;base64,{text}">'


def samples_of(manifest: Manifest, label: int, number: int) -> list[int]:
    """Up to so many sample ids of a class, from all over it."""
    start, end = (int(each) for each in manifest.class_offsets[label : label + 2])
    number = min(number, end - start)
    places = [start + (end - start) * nth // number for nth in range(number)]
    return [int(manifest.class_ids[place]) for place in places]


def spread(count: int, number: int) -> list[int]:
    """Up to ``number`` of ``count`` places in a row, the first and the last among them."""
    if count <= number:
        return list(range(count))
    return [place * (count - 1) // (number - 1) for place in range(number)]


def picture(images: list[str], lines: list[str]) -> str:
    """A figure of ``images`` (HTML) with ``lines`` of text below; nothing without any image."""
    shown = list(filter(None, images))
    if not shown:
        return ""
    caption = "<br>".join(map(html.escape, lines))
    return f"<figure>{' '.join(shown)}<figcaption>{caption}</figcaption></figure>\n"


def gallery(pictures: list[str], columns: int = 1) -> str:
    """Figures beside each other, each with up to so many images in a row."""
    return f'<div class="pictures of{columns}">\n{"".join(pictures)}</div>\n'
