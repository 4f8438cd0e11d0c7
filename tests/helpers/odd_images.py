"""Image files of every kind that people have, whole and damaged, to see what becomes of them."""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from tests.helpers.odd_tiffs import tiffs
from tests.helpers.pictures import EXIF_ORIENTATION, encode, smooth_image

SIDE = 33  # pixels, of what has no other size by its name; no multiple of a JPEG's blocks


def whole_files(seed: int) -> dict[str, bytes]:
    """Name -> content of files of every kind, most of which follow their format's rules."""
    image = smooth_image(np.random.default_rng(seed), SIDE, SIDE)
    kinds = (jpegs, pngs, bmps, webps, pnms, tiffs, others)
    return {name: content for kind in kinds for name, content in kind(image)}


def damaged(generator: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """What was done, and the content after it: what disks, networks and programs do to files."""
    what = DAMAGES[generator.integers(len(DAMAGES))]
    size = len(content)
    place, other = sorted(generator.integers(0, size, 2).tolist())
    if what == "truncated":
        return what, content[:place]
    if what == "little truncated":
        return what, content[: -int(generator.integers(1, 13))]
    if what == "garbage behind":
        return what, content + generator.bytes(int(generator.integers(1, 2000)))
    if what == "zeros behind":
        return what, content + bytes(int(generator.integers(1, 2000)))
    changed = bytearray(content)
    if what == "bits flipped":
        for byte in generator.integers(0, size, int(generator.integers(1, 6))).tolist():
            changed[byte] ^= 1 << int(generator.integers(8))
    elif what == "header flipped":
        changed[int(generator.integers(min(size, 64)))] ^= 1 << int(generator.integers(8))
    elif what == "zeros within":
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    elif what == "bytes lost":
        del changed[place : min(other, place + 64)]
    return what, bytes(changed)


DAMAGES = [
    "truncated",
    "little truncated",
    "garbage behind",
    "zeros behind",
    "bits flipped",
    "header flipped",
    "zeros within",
    "bytes lost",
]


# ---- JPEG (ITU T.81; JFIF; Adobe's APP14) ----


def jpegs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    gray, cmyk = image.convert("L"), image.convert("CMYK")
    plain = encode(image, "JPEG", quality=90)
    yield "jpeg plain", plain
    yield "jpeg gray", encode(gray, "JPEG", quality=90)
    for name, subsampling in {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}.items():
        for progressive in (False, True):
            options = {"quality": 85, "subsampling": subsampling, "progressive": progressive}
            yield f"jpeg {name}{' progressive' * progressive}", encode(image, "JPEG", **options)
    yield "jpeg 4:1:1", sampled(image, 4, 1)
    yield "jpeg 4:4:0", sampled(image, 1, 2)
    yield "jpeg gray progressive", encode(gray, "JPEG", progressive=True)
    yield "jpeg RGB", encode(image, "JPEG", keep_rgb=True)
    yield "jpeg RGB progressive", encode(image, "JPEG", keep_rgb=True, progressive=True)
    yield "jpeg CMYK", encode(cmyk, "JPEG")
    yield "jpeg CMYK progressive", encode(cmyk, "JPEG", progressive=True)
    yield "jpeg CMYK without Adobe", without_segment(encode(cmyk, "JPEG"), 0xEE)
    for transform in (0, 1, 2):
        yield f"jpeg Adobe transform {transform}", with_adobe(plain, transform)
        yield f"jpeg CMYK Adobe transform {transform}", with_adobe(encode(cmyk, "JPEG"), transform)
    yield "jpeg without JFIF", without_segment(plain, 0xE0)
    for name, ids in {"RGB": b"RGB", "0, 1, 2": b"\0\1\2", "1, 2, 2": b"\1\2\2"}.items():
        yield f"jpeg components {name}", with_components(without_segment(plain, 0xE0), ids)
        yield f"jpeg JFIF components {name}", with_components(plain, ids)
    yield "jpeg restarts", encode(image, "JPEG", restart_marker_blocks=1)
    yield "jpeg restarts a row", encode(image, "JPEG", restart_marker_rows=1)
    yield "jpeg optimized", encode(image, "JPEG", optimize=True)
    yield "jpeg quality 1", encode(image, "JPEG", quality=1)
    yield "jpeg quality 100", encode(image, "JPEG", quality=100, subsampling=0)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        yield f"jpeg turned {orientation}", encode(image, "JPEG", exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    yield "jpeg ICC", encode(image, "JPEG", icc_profile=profile)
    yield "jpeg comment", encode(image, "JPEG", comment=b"a comment \xff\xd9 with an end in it")
    yield "jpeg DPI", encode(image, "JPEG", dpi=(1, 600))
    for size in ((1, 1), (1, 9), (8, 1), (7, 7), (16, 16), (17, 33), (300, 2)):
        small = image.resize(size)
        yield f"jpeg {size[0]} x {size[1]}", encode(small, "JPEG")
        yield f"jpeg gray {size[0]} x {size[1]}", encode(small.convert("L"), "JPEG")
    yield "jpeg two images", plain + encode(gray, "JPEG")
    yield "jpeg fill bytes", plain[:2] + b"\xff\xff\xff" + plain[2:]
    yield "jpeg junk before a segment", plain[:2] + b"\0\0" + plain[2:]
    yield "jpeg 12 bits", patched_frame(plain, 4, b"\x0c")
    yield "jpeg height 0", patched_frame(plain, 5, b"\0\0")
    yield "jpeg higher than it is", patched_frame(plain, 5, struct.pack(">H", image.height + 40))
    yield "jpeg wider than it is", patched_frame(plain, 7, struct.pack(">H", image.width + 40))
    yield "jpeg arithmetic", plain.replace(b"\xff\xc0", b"\xff\xc9", 1)
    yield "jpeg lossless", plain.replace(b"\xff\xc0", b"\xff\xc3", 1)
    yield "jpeg extended", plain.replace(b"\xff\xc0", b"\xff\xc1", 1)
    yield "jpeg end within", plain[: len(plain) * 2 // 3] + b"\xff\xd9"
    yield (
        "jpeg end within progressive",
        (encode(image, "JPEG", progressive=True)[: len(plain) * 2 // 3] + b"\xff\xd9"),
    )


def frame_at(content: bytes) -> int:
    """Where the frame header's marker is."""
    return min(content.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in content)


def patched_frame(content: bytes, offset: int, value: bytes) -> bytes:
    at = frame_at(content) + offset
    return content[:at] + value + content[at + len(value) :]


def with_components(content: bytes, ids: bytes) -> bytes:
    """Other names of its three components, in the frame's header and the scan's."""
    changed = bytearray(content)
    scan = changed.index(b"\xff\xda")
    for number, name in enumerate(ids):
        changed[frame_at(content) + 10 + 3 * number] = name
        changed[scan + 5 + 2 * number] = name
    return bytes(changed)


def sampled(image: Image.Image, horizontal: int, vertical: int) -> bytes:
    """As if there were so many samples of luma for one of chroma, which Pillow does not write: only
    the frame's header says so, and the picture that comes out is another one.
    """
    content = encode(image.resize((64, 64)), "JPEG", subsampling=0)
    return patched_frame(content, 11, bytes([horizontal << 4 | vertical]))


def without_segment(content: bytes, marker: int) -> bytes:
    at = content.find(bytes([0xFF, marker]))
    if at < 0:
        return content
    return content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4]) :]


def with_adobe(content: bytes, transform: int) -> bytes:
    """With Adobe's marker, and without JFIF's."""
    segment = b"\xff\xee" + struct.pack(">H5sHHHB", 14, b"Adobe", 100, 0, 0, transform)
    bare = without_segment(without_segment(content, 0xE0), 0xEE)
    return bare[:2] + segment + bare[2:]


# ---- PNG (W3C; by hand, as Pillow writes few of its kinds) ----

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))


def chunk(kind: bytes, content: bytes, crc_change: int = 0) -> bytes:
    crc32 = zlib.crc32(kind + content) ^ crc_change
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc32)


def png(
    color: int, bits: int, before: bytes = b"", interlaced: bool = False, cut_rows: int = 0
) -> bytes:
    """Noise of a colour type; ``before``: chunks before the pixels."""
    generator = np.random.default_rng([color, bits])
    rows = []
    passes = (*PASSES, (0, 1, 1, 2)) if interlaced else ((0, 0, 1, 1),)
    for left, top, across, down in passes:
        width, height = len(range(left, SIDE, across)), len(range(top, SIDE, down))
        size = -(-width * bits * CHANNELS[color] // 8)
        rows += [b"\0" + generator.bytes(size) for _ in range(height)]
    header = struct.pack(">IIBBBBB", SIDE, SIDE, bits, color, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(rows[: len(rows) - cut_rows]))
    palette = chunk(b"PLTE", generator.bytes(3 << bits)) if color == 3 else b""
    parts = [chunk(b"IHDR", header), palette, before, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(parts)


def pngs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    kinds = [(0, bits) for bits in (1, 2, 4, 8, 16)] + [(3, bits) for bits in (1, 2, 4, 8)]
    kinds += [(color, bits) for color in (2, 4, 6) for bits in (8, 16)]
    for color, bits in kinds:
        for interlaced in (False, True):
            name = f"png type {color}, {bits} bits{' interlaced' * interlaced}"
            yield name, png(color, bits, interlaced=interlaced)
    yield "png by Pillow", encode(image, "PNG")
    yield "png gray transparent", png(0, 8, chunk(b"tRNS", b"\0\5"))
    yield "png RGB transparent", png(2, 8, chunk(b"tRNS", b"\0\5\0\6\0\7"))
    for bits in (1, 2, 4, 8):
        transparent = chunk(b"tRNS", bytes(range(1 << bits)))
        yield f"png palette transparent {bits} bits", png(3, bits, transparent)
    yield "png gamma", png(2, 8, chunk(b"gAMA", struct.pack(">I", 100000)))
    yield "png gray gamma", png(0, 8, chunk(b"gAMA", struct.pack(">I", 22727)))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "png ICC", png(2, 8, chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile)))
    yield "png sRGB", png(2, 8, chunk(b"sRGB", b"\0"))
    yield "png chromaticities", png(2, 8, chunk(b"cHRM", struct.pack(">8I", *range(1, 9))))
    yield "png background", png(6, 8, chunk(b"bKGD", b"\0\xff\0\0\0\0"))
    yield "png significant bits", png(2, 8, chunk(b"sBIT", b"\5\6\5"))
    yield "png text", png(2, 8, chunk(b"tEXt", b"Comment\0nothing"))
    exif = Image.Exif()
    for orientation in (3, 6):
        exif[EXIF_ORIENTATION] = orientation
        yield f"png turned {orientation}", encode(image, "PNG", exif=exif)
    yield "png animated", encode(image, "PNG", save_all=True, append_images=[image.rotate(90)])
    for kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
        content = png(3 if kind == b"PLTE" else 2, 8)
        end = content.index(kind) + 4 + int.from_bytes(content[content.index(kind) - 4 :][:4])
        changed = content[:end] + bytes(byte ^ 1 for byte in content[end : end + 4])
        yield f"png checksum of {kind.decode()}", changed + content[end + 4 :]
    yield "png checksum of tEXt", png(2, 8, chunk(b"tEXt", b"Comment\0nothing", 1))
    for cut in (1, 13, SIDE):
        yield f"png {cut} rows missing", png(2, 8, cut_rows=cut)
    yield "png rows missing interlaced", png(2, 8, interlaced=True, cut_rows=20)
    yield "png end missing", png(2, 8)[:-12]
    yield "png critical chunk unknown", png(2, 8, chunk(b"ABCD", b"x"))
    yield "png palette missing", png(3, 8).replace(b"PLTE", b"pLTE", 1)


# ---- BMP, WEBP, portable any-maps, and formats that are refused ----


def bmp(bits: int, pixels: bytes, compression: int = 0, palette: bytes = b"", up: bool = True):
    """A BMP of the header that all programs know (BITMAPINFOHEADER)."""
    offset = 54 + len(palette)
    height = SIDE if up else -SIDE
    head = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
    about = (40, SIDE, height, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    return head + struct.pack("<IiiHHIIiiII", *about) + palette + pixels


def bmps(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(1)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp {mode}", encode(image.convert(mode), "BMP")
    for bits in (1, 4, 8, 16, 24, 32):
        pixels = generator.bytes(-(-SIDE * bits // 32) * 4 * SIDE)
        palette = generator.bytes(4 << bits) if bits <= 8 else b""
        for up in (True, False):
            yield (
                f"bmp {bits} bits{'' if up else ' top down'}",
                bmp(bits, pixels, palette=palette, up=up),
            )
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    yield "bmp 5-6-5 bits", bmp(16, generator.bytes(68 * SIDE), 3, masks)
    palette = generator.bytes(1024)
    row = bytes([SIDE - 3, 7, 0, 3, 1, 2, 3, 0, 0, 0])
    yield "bmp runs", bmp(8, row * SIDE + b"\0\1", 1, palette)
    yield "bmp runs end early", bmp(8, row * 5 + b"\0\1", 1, palette)
    yield "bmp pixels missing", bmp(24, generator.bytes(500))


def webps(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    yield "webp", encode(image, "WEBP")
    yield "webp lossless", encode(image, "WEBP", lossless=True)
    yield "webp alpha", encode(alpha, "WEBP")
    yield "webp alpha lossless", encode(alpha, "WEBP", lossless=True, exact=True)
    yield "webp gray", encode(image.convert("L"), "WEBP")
    yield "webp animated", encode(image, "WEBP", save_all=True, append_images=[image.rotate(90)])
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    yield "webp turned", encode(image, "WEBP", exif=exif)


def pnms(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(2)
    for kind, channels in {b"P5": 1, b"P6": 3}.items():
        for largest in (1, 100, 254, 255, 256, 65535):
            number = SIDE * SIDE * channels
            values = generator.integers(0, largest + 1, number).astype(
                ">u2" if largest > 255 else "u1"
            )
            head = b"%s\n%d %d\n%d\n" % (kind, SIDE, SIDE, largest)
            yield f"pnm {kind.decode()} to {largest}", head + values.tobytes()
    for kind, channels, largest in ((b"P2", 1, 255), (b"P3", 3, 255), (b"P3", 3, 100)):
        values = generator.integers(0, largest + 1, SIDE * SIDE * channels)
        text = b" ".join(b"%d" % value for value in values)
        yield (
            f"pnm {kind.decode()} to {largest}",
            b"%s\n%d %d\n%d\n%s\n" % (kind, SIDE, SIDE, largest, text),
        )
    head = b"\n%d %d\n" % (SIDE, SIDE)
    yield "pnm P4", b"P4" + head + generator.bytes(-(-SIDE // 8) * SIDE)
    bits = generator.integers(0, 2, SIDE * SIDE)
    yield "pnm P1", b"P1" + head + b" ".join(b"%d" % bit for bit in bits)
    pixels = generator.bytes(SIDE * SIDE * 3)
    yield "pnm comment", b"P6\n# a comment\n%d # another\n%d\n255\n" % (SIDE, SIDE) + pixels
    yield "pnm spaces", b"P6   %d\t%d\r\n255 " % (SIDE, SIDE) + pixels
    yield "pnm pixels missing", b"P6\n%d %d\n255\n" % (SIDE, SIDE) + pixels[:-1]
    yield "pnm pixels behind", b"P6\n%d %d\n255\n" % (SIDE, SIDE) + pixels * 2
    yield (
        "pnm P7",
        b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nENDHDR\n"
        % (
            SIDE,
            SIDE,
        )
        + pixels,
    )


def others(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    more = [image.rotate(90)]
    yield "mpo", encode(image, "MPO", save_all=True, append_images=more)
    yield "gif", encode(image, "GIF")
    yield "gif animated", encode(image, "GIF", save_all=True, append_images=more)
    yield "ico", encode(image, "ICO")
    yield "jpeg 2000", encode(image, "JPEG2000")
    yield "tga", encode(image, "TGA")
    yield "avif", encode(image, "AVIF")
    yield "empty", b""
    yield "text", b"<html>404 Not Found</html>"
    yield "zeros", bytes(5000)
