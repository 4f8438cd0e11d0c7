"""The size of an image from its header alone."""

PNG = b"\x89PNG\r\n\x1a\n"
# markers of JPEG among those of frame headers that begin tables instead
TABLES = (0xC4, 0xC8, 0xCC)


def header_size(content) -> tuple[int, int] | None:
    """Width and height in pixels of a JPEG or PNG; None for others. ``content``: anything that is
    bytes.
    """
    content = memoryview(content)
    return jpeg_size(content) or _png_size(content)


def jpeg_size(content: bytes | memoryview) -> tuple[int, int] | None:
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


def _png_size(content: memoryview) -> tuple[int, int] | None:
    if content[:8] != PNG or len(content) < 24:
        return None
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
