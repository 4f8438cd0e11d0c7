"""Image files on which decoders cannot differ: of the kinds that everybody writes, with nothing in
them that is not understood here.

Two decodings of every image would halve the rate. Of these files one is enough: in the sweep of
tests/reliability/test_images.py, Pillow and DALI gave the same pixels wherever DALI gave any.
"""

import re
import struct
import zlib

from lt_train.data.image_size import PNG

# of JPEG (ITU T.81, table B.1)
FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
SCAN, END = 0xDA, 0xD9
BETWEEN_SCANS = {0xC4, SCAN}  # Huffman tables
# quantization tables, restart interval, application data, comment
BEFORE_SCANS = {*FRAMES, *BETWEEN_SCANS, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
# what ends a scan's data: a marker that is neither a zero byte's escape nor a restart
AFTER_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xff]")

PNG_CHUNKS = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND"),
    *(b"pHYs", b"tEXt", b"tIME", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD"),
}
# Pillow has read these when it has looked at the header, if they lie before the pixels
BEFORE_PIXELS = {*PNG_CHUNKS, b"iTXt", b"zTXt", b"iCCP", b"eXIf"}
EIGHT_BITS = bytes([8])

RIFF = struct.Struct("<4sI4s4sI")  # "RIFF", bytes behind, "WEBP", the first chunk's kind and size
WITH_ALPHA = 0x10  # of the fifth byte of a lossless picture, behind 14 bits each of its sides
BMP = struct.Struct("<2sI4xI I2iHHII")  # a file's header, and as much of a picture's as counts
BMP_HEADERS = 54  # bytes of both, with nothing between them and the pixels
PPM_HEADER = re.compile(rb"P6\n(\d{1,6}) (\d{1,6})\n255\n")


def is_plain(content: bytes) -> bool:
    """Whether Pillow reads this file, and as DALI does, if DALI decodes it without an error."""
    if content.startswith(PNG):
        return _is_plain_png(content)
    if content.startswith(b"RIFF"):
        return _is_plain_webp(content)
    if content.startswith(b"BM"):
        return _is_plain_bmp(content)
    return _is_plain_jpeg(content)


def is_raw(content: bytes) -> bool:
    """Whether this is nothing but a size and as many pixels of three bytes (PPM)."""
    header = PPM_HEADER.match(content)
    if header is None:
        return False
    width, height = map(int, header.groups())
    return width * height > 0 and len(content) == header.end() + 3 * width * height


def _is_plain_jpeg(content: bytes) -> bool:
    """Gray or three channels of 8 bits; every marker is known, and the last bytes are the end."""
    if content[:2] != b"\xff\xd8":
        return False
    at, last, allowed, frames = 2, len(content) - 2, BEFORE_SCANS, 0
    while 0 < at < last and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if marker not in allowed:
            return False
        if marker in FRAMES:
            frames += 1
            bits, channels = content[at + 4 : at + 5], content[at + 9 : at + 10]
            if bits != EIGHT_BITS or channels not in (b"\1", b"\3"):
                return False
        at += 2 + length
        if marker == SCAN:
            allowed = BETWEEN_SCANS
            found = AFTER_SCAN.search(content, at)
            at = found.start() if found else -1
    return frames == 1 and at == last and content[at + 1] == END


def _is_plain_png(content: bytes) -> bool:
    """8 bits a channel; every chunk is known and its checksum right, and the last one is the end.

    Pillow ignores checksums of pixels, and DALI those of what it does not need.
    """
    at, kind, allowed = len(PNG), b"", BEFORE_PIXELS
    while at + 12 <= len(content):
        (length,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        end = at + 8 + length
        known = kind in allowed and (kind != b"IHDR" or content[at + 16 : at + 17] == EIGHT_BITS)
        crc32 = zlib.crc32(memoryview(content)[at + 4 : end])
        if not known or content[end : end + 4] != struct.pack(">I", crc32):
            return False
        if kind == b"IDAT":
            allowed = PNG_CHUNKS
        at = end + 4
    return at == len(content) and kind == b"IEND"


def _is_plain_webp(content: bytes) -> bool:
    """One lossy or lossless picture without alpha, and nothing else in the file."""
    if len(content) < RIFF.size + 5:
        return False
    _, behind, form, kind, size = RIFF.unpack_from(content)
    lossless = kind == b"VP8L" and not content[RIFF.size + 4] & WITH_ALPHA
    is_whole = behind == len(content) - 8 and RIFF.size + size + size % 2 == len(content)
    return form == b"WEBP" and (lossless or kind == b"VP8 ") and is_whole


def _is_plain_bmp(content: bytes) -> bool:
    """Three bytes a pixel as they are, from the last row to the first, and none else."""
    if len(content) < BMP_HEADERS:
        return False
    _, size, start, header, width, height, planes, bits, compression, _ = BMP.unpack_from(content)
    if (start, header, planes, bits, compression) != (BMP_HEADERS, 40, 1, 24, 0):
        return False
    row = -(-3 * width // 4) * 4
    return min(width, height) > 0 and size == len(content) == BMP_HEADERS + row * height
