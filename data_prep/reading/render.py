"""Procedural renderer of the embedded demo data set.

Ten kinds of object, in confusable pairs that share parts (anchor and key, bucket and mug, chair
and table, fish and leaf, mushroom and umbrella), are drawn in random colour, texture and pose on
random backgrounds. Only shape tells the classes apart: everything outside the shape functions is
drawn from the same distributions for every label.
"""

import io
from collections.abc import Iterator

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw

Part = tuple[np.ndarray, float]  # (n, 2) polygon, x right and y down, and its brightness factor

BACKGROUNDS = ("gradient", "stripes", "checker", "blotch")
TEXTURES = ("gradient", "stripes", "speckle")
HOLE = 0.0  # as a brightness factor: cut out, so that the background shows through
SUPERSAMPLE = 2  # only the one-channel masks are drawn enlarged; colours never are
ENLARGED = 4  # pictures of a given size are drawn so much larger: fine lines become grey, not gaps
MAX_OCCLUDED = 0.25  # largest share of the object's area that an occluder may hide


def _draw(rng: Generator, *ranges: tuple[float, float]) -> list[float]:
    """One uniform number from each range."""
    return [rng.uniform(low, high) for low, high in ranges]


def _arc(cx: float, cy: float, rx: float, ry: float, start=0.0, stop=360.0, n=25) -> np.ndarray:
    """Points along an ellipse from start to stop, in degrees clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, n))
    return np.column_stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)])


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _stroke(path, width: float) -> np.ndarray:
    """A thick line along a path, as one polygon."""
    path = np.asarray(path, dtype=float)
    tangent = np.gradient(path, axis=0)
    normal = tangent[:, ::-1] * (width / 2, -width / 2) / np.hypot(*tangent.T)[:, None]
    return np.concatenate([path + normal, (path - normal)[::-1]])


def _lens(half: float, girth: float, sharpness: float) -> np.ndarray:
    """A horizontal spindle, blunt below sharpness 1 and pointed above: a fish's body or a leaf."""
    t = np.linspace(0, np.pi, 17)
    edge = np.column_stack([-half * np.cos(t), girth * np.sin(t) ** sharpness])
    return np.concatenate([edge, edge[::-1] * (1, -1)])


def _vessel(rng: Generator, top: float, bottom: float, y0: float, y1: float) -> Iterator[Part]:
    """An open container seen a little from above: what buckets and mugs share."""
    depth = rng.uniform(0.08, 0.2)
    yield np.concatenate([[(-top, y0), (top, y0)], _arc(0, y1, bottom, depth, 0, 180, 13)]), 1.0
    yield _arc(0, y0, top, depth), 1.25
    yield _arc(0, y0, 0.88 * top, 0.8 * depth), 0.5


def _stand(half, skew, leg, top, depth, foot) -> Iterator[Part]:
    """Four legs under a slab, seen a little from above: what chairs and tables share."""
    left, right, far = skew - half, skew + half, top - depth
    for x in (left, right - leg):
        yield _box(x, far, x + leg, foot - 0.8 * depth), 0.65
    for x in (-half, half - leg):
        yield _box(x, top, x + leg, foot), 0.9
    yield np.array([(left, far), (right, far), (half, top), (-half, top)]), 1.15
    yield _box(-half, top, half, top + 0.1), 0.8


def _anchor(rng: Generator) -> Iterator[Part]:
    width, ring, reach = _draw(rng, (0.11, 0.2), (0.14, 0.22), (0.55, 0.8))
    stock, tip = _draw(rng, (0.3, 0.5), (10, 35))
    arms = _arc(0, 0.25, reach, 0.65, tip, 180 - tip)
    yield _box(-width / 2, -0.65, width / 2, 0.9), 1.0
    yield _stroke(arms, width), 1.0
    yield _box(-stock, -0.5, stock, -0.35), 0.9
    yield _stroke(_arc(0, -0.65 - ring, ring, ring), 0.09), 1.1
    for side in (-1, 1):
        yield (arms[0] + [(-0.2, 0.06), (0.2, 0.06), (0.07, -0.28)]) * (side, 1), 1.0


def _bucket(rng: Generator) -> Iterator[Part]:
    top, bottom, lift = _draw(rng, (0.55, 0.75), (0.38, 0.55), (0.35, 0.85))
    yield from _vessel(rng, top, bottom, -0.3, 0.8)
    side = rng.choice([-180, -180, -180, 180])  # the bail is mostly raised, sometimes dropped
    yield _stroke(_arc(0, -0.3, 0.97 * top, lift, 0, side), 0.07), 0.75


def _chair(rng: Generator) -> Iterator[Part]:
    half, skew, leg = _draw(rng, (0.4, 0.55), (0.1, 0.3), (0.08, 0.14))
    back, far, foot = _draw(rng, (-1.0, -0.6), (0.0, 0.2), (0.75, 1.0))
    yield _box(skew - half, back, skew + half, far), 0.85
    edges = np.linspace(skew - half, skew + half, rng.integers(1, 5) + 1)
    for x in edges[:-1] if len(edges) > 2 else ():  # otherwise the back is one solid board
        yield _box(x + 0.06, back + 0.14, x + edges[1] - edges[0] - 0.06, far - 0.04), HOLE
    yield from _stand(half, skew, leg, far + 0.27, 0.27, foot)


def _fish(rng: Generator) -> Iterator[Part]:
    girth, tail, fork, rise = _draw(rng, (0.3, 0.52), (0.28, 0.5), (0.0, 0.18), (0.05, 0.3))
    fin = np.array([(-0.35, -0.6 * girth), (0.3, -0.6 * girth), (0.3, -girth - rise)])
    yield fin, 0.8
    yield fin * (0.7, -0.9), 0.8
    yield np.array([(0.35, 0), (0.9, -tail), (0.9 - fork, 0), (0.9, tail)]), 0.85
    yield _lens(0.68, girth, rng.uniform(0.5, 0.9)) - (0.2, 0), 1.0
    yield _arc(-0.64, -0.2 * girth, 0.07, 0.07, n=11), 0.3


def _key(rng: Generator) -> Iterator[Part]:
    ring, width, squash = _draw(rng, (0.24, 0.38), (0.11, 0.18), (0.75, 1.25))
    corners, centre = rng.choice([5, 7, 25]), ring - 0.95
    yield _arc(0, centre, ring * squash, ring, n=corners), 1.0
    yield _box(-width / 2, centre + 0.8 * ring, width / 2, 0.95), 1.0
    yield _arc(0, centre, 0.55 * ring * squash, 0.55 * ring, n=corners), HOLE
    for y in 0.86 - 0.24 * np.arange(rng.integers(2, 4)):
        yield _box(0, y - 0.07, rng.uniform(0.25, 0.45), y + 0.07), 0.9


def _leaf(rng: Generator) -> Iterator[Part]:
    girth, droop, sharpness = _draw(rng, (0.3, 0.52), (-0.2, 0.2), (0.8, 1.4))
    vein = rng.choice([0.6, 1.35])
    yield _stroke([(0.5, 0), (0.8, 0.03), (1.05, droop)], 0.08), 0.8
    yield _lens(0.8, girth, sharpness) - (0.15, 0), 1.0
    yield _stroke([(-0.8, 0), (0.7, 0)], 0.05), vein
    for x in np.linspace(-0.35, 0.4, rng.integers(2, 5)):
        reach = 0.75 * girth * (1 - abs(x - 0.05))
        yield _stroke([(x, 0), (x - 0.2, reach)], 0.04), vein
        yield _stroke([(x, 0), (x - 0.2, -reach)], 0.04), vein


def _mug(rng: Generator) -> Iterator[Part]:
    top, bottom, half = _draw(rng, (0.42, 0.6), (0.36, 0.55), (0.5, 0.75))
    bulge, reach, width = _draw(rng, (0.55, 0.8), (0.3, 0.45), (0.1, 0.16))
    yield _stroke(_arc(0.9 * min(top, bottom), 0, reach, bulge * half, -90, 90, 17), width), 0.85
    yield from _vessel(rng, top, bottom, -half, half)


def _mushroom(rng: Generator) -> Iterator[Part]:
    neck, foot, sag = _draw(rng, (0.12, 0.24), (0.16, 0.34), (0.02, 0.2))
    half, rise = _draw(rng, (0.75, 0.95), (0.55, 0.85))
    yield np.concatenate([[(-neck, 0), (neck, 0)], _arc(0, 0.82, foot, 0.1, 0, 180, 9)]), 1.2
    yield np.concatenate([_arc(0, 0, half, rise, 180, 360), _arc(0, 0, half, sag, 0, 180)]), 1.0
    for x in rng.uniform(-0.5, 0.5, rng.integers(0, 5)):
        yield _arc(x, rng.uniform(-0.42, -0.12), *rng.uniform(0.05, 0.12, 2), n=11), 1.4


def _table(rng: Generator) -> Iterator[Part]:
    half, skew, leg = _draw(rng, (0.6, 0.8), (-0.3, 0.3), (0.08, 0.16))
    top, depth, foot = _draw(rng, (-0.4, -0.1), (0.2, 0.4), (0.5, 0.9))
    yield from _stand(half, skew, leg, top, depth, foot)


def _umbrella(rng: Generator) -> Iterator[Part]:
    half, rise, width = _draw(rng, (0.75, 0.95), (0.55, 0.85), (0.06, 0.12))
    hook, end = _draw(rng, (0.1, 0.2), (0.6, 0.85))
    handle = np.concatenate([[(0, -0.1)], _arc(hook, end, hook, hook, 180, 0, 11)])
    yield _stroke(handle, width), 0.75
    yield _box(-0.03, -rise - 0.15, 0.03, -0.5), 0.75
    ribs = np.linspace(half, -half, rng.integers(4, 7))
    gap = (ribs[0] - ribs[1]) / 2
    scallops = [_arc(x - gap, 0.02, gap, 0.12, 0, -180, 9) for x in ribs[:-1]]
    yield np.concatenate([_arc(0, 0, half, rise, 180, 360), *scallops]), 1.0
    for x in ribs[1:-1]:
        yield _stroke(_arc(0, 0, x, rise, 0, -90, 9), 0.04), 0.7


_SHAPES = (_anchor, _bucket, _chair, _fish, _key, _leaf, _mug, _mushroom, _table, _umbrella)
CLASSES: tuple[str, ...] = tuple(shape.__name__[1:] for shape in _SHAPES)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _pose(rng: Generator, parts: list[Part], size: tuple[int, int]) -> list[np.ndarray]:
    """Move an object from its unit frame into the image, by one random affine map."""
    points = np.concatenate([polygon for polygon, _ in parts])
    # All objects get the same diagonal, so that size says nothing about the class.
    unit = rng.uniform(0.75, 1.1) * min(size) / np.hypot(*np.ptp(points, axis=0))
    shear_x, shear_y, stretch = _draw(rng, (-0.25, 0.25), (-0.1, 0.1), (0.85, 1.18))
    flip = np.diag([rng.choice([-stretch, stretch]), 1 / stretch])
    posed = unit * points @ flip @ [[1, shear_x], [shear_y, 1]] @ _rotation(rng.normal(0, 0.22))
    # Anywhere inside the image; an object too large for it is cut off evenly at the edges.
    room = np.maximum(size - np.ptp(posed, axis=0), 0) / 2
    posed += np.array(size) / 2 - (posed.min(axis=0) + posed.max(axis=0)) / 2
    posed += rng.uniform(-1, 1, 2) * room
    return np.split(posed, np.cumsum([len(polygon) for polygon, _ in parts])[:-1])


def _masks(rng: Generator, label: int, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Coverage of a posed object, and its brightness where 128 stands for factor 1."""
    parts = list(_SHAPES[label](rng))
    large = (SUPERSAMPLE * size[0], SUPERSAMPLE * size[1])
    cover, shade = Image.new("L", large, 0), Image.new("L", large, 128)
    on_cover, on_shade = ImageDraw.Draw(cover), ImageDraw.Draw(shade)
    for polygon, (_, brightness) in zip(_pose(rng, parts, size), parts, strict=True):
        flat = (SUPERSAMPLE * polygon).ravel().tolist()
        on_cover.polygon(flat, fill=0 if brightness == HOLE else 255)
        on_shade.polygon(flat, fill=round(128 * (brightness or 1)))
    return cover.reduce(SUPERSAMPLE), shade.reduce(SUPERSAMPLE)


def _surface(rng: Generator, kinds, colour, spread: float, size) -> Image.Image:
    """A patterned surface around one colour; spread says how far its two ends may lie apart."""
    kind, cell = rng.choice(kinds), np.float32(rng.uniform(6, 30))
    if kind in ("blotch", "speckle"):
        step = int(cell if kind == "blotch" else 2 + cell / 12)
        grid = rng.integers(0, 256, (size[1] // step + 2, size[0] // step + 2), dtype=np.uint8)
        pattern = Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR)
    else:
        x, y = np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32)[:, None]
        turn = _rotation(rng.uniform(0, 2 * np.pi)).astype(np.float32)
        u, v = (x * along + y * down for along, down in turn)
        if kind == "gradient":
            value = (u - u.min()) / np.ptp(u)
        else:
            value = (np.floor(u / cell) + (kind == "checker") * np.floor(v / cell)) % 2
        pattern = Image.fromarray((255 * value).astype(np.uint8))
    offset = rng.uniform(-spread, spread, 3)
    ramp = np.clip(np.linspace(colour - offset, colour + offset, 256), 0, 255).astype(np.uint8)
    return Image.merge("RGB", [pattern.point(channel.tolist()) for channel in ramp.T])


def _blob(rng: Generator, centre, radius: float) -> tuple[list[float], tuple[int, ...]]:
    """A random triangle, quadrilateral or ellipse as flat coordinates, and its colour."""
    corners = rng.choice([3, 4, 25])
    outline = _arc(0, 0, radius, radius * rng.uniform(0.15, 0.9), 0, 360 - 360 / corners, corners)
    posed = outline @ _rotation(rng.uniform(0, 2 * np.pi)) + centre
    return posed.ravel().tolist(), tuple(rng.integers(0, 256, 3).tolist())


def _photo_size(rng: Generator) -> tuple[int, int]:
    """Width and height of a picture of any shape, 96 to 256 pixels."""
    side, aspect = rng.uniform(96, 256), np.exp(rng.uniform(-0.4, 0.4))
    return round(side), int(np.clip(side * aspect, 96, 256))


def render_jpeg(label: int, *seed: int, side: int | None = None) -> bytes:
    """Render one picture of an object of class label as JPEG: equal arguments, equal bytes.

    ``side``: of a square picture, in pixels; None: of 96 to 256 pixels, of any shape. Seeds of
    different length can coincide: numpy takes (1,) and (1, 0) for the same seed.
    """
    rng = np.random.default_rng([label, *seed])
    size = (ENLARGED * side, ENLARGED * side) if side else _photo_size(rng)
    cover, shade = _masks(rng, label, size)

    ground, level = rng.uniform(40, 216, 2)
    if abs(level - ground) < 100 and rng.random() < 0.9:  # the object stands out, but not always
        level = ground + (100 if ground < 128 else -100)
    ground, colour = np.clip([[ground], [level]] + rng.uniform(-70, 70, (2, 3)), 20, 235)
    image = _surface(rng, BACKGROUNDS, ground, rng.uniform(5, 45), size)
    on_image = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 7)):
        blob, fill = _blob(rng, rng.uniform(0, size), rng.uniform(0.03, 0.12) * min(size))
        on_image.polygon(blob, fill=fill)
    spread = max(0.0, rng.uniform(-15, 45))  # zero in a quarter of the pictures: a flat texture
    surface = _surface(rng, TEXTURES, colour, spread, size)
    lit = ImageChops.multiply(surface, Image.merge("RGB", (shade, shade, shade)))
    image.paste(ImageChops.add(lit, lit), mask=cover)  # doubled, as 128 of 255 stands for 1

    if rng.random() < 0.4:  # an occluder on some point of the object
        points = np.argwhere(np.asarray(cover)[::4, ::4])[:, ::-1] * 4
        blob, fill = _blob(rng, rng.choice(points), rng.uniform(0.08, 0.25) * min(size))
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).polygon(blob, fill=255)
        hidden = np.asarray(ImageChops.multiply(mask, cover)).sum()
        if hidden <= MAX_OCCLUDED * np.asarray(cover).sum():
            on_image.polygon(blob, fill=fill)
    if side:
        image = image.reduce(ENLARGED)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(80, 96)))
    return buffer.getvalue()
