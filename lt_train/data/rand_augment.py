"""RandAugment (Cubuk et al. 2020).

Which operations a sample gets is data, drawn on the host; they are applied to uint8 batches on any
device, by calls of which each does many samples at once. Operations, magnitudes and pixels are
those of torchvision.transforms.RandAugment (nearest neighbour, black where nothing was).
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torchvision.transforms import functional as F

from lt_train.data.upload import upload

LARGEST_MAGNITUDE = 30
SHARE_MOVED = 150 / 331  # of the side, that the largest translation moves
# name -> whether the magnitude has a sign
OPERATIONS = {
    "identity": False,
    "shear_x": True,
    "shear_y": True,
    "translate_x": True,
    "translate_y": True,
    "rotate": True,
    "brightness": True,
    "color": True,
    "contrast": True,
    "sharpness": True,
    "posterize": False,
    "solarize": False,
    "auto_contrast": False,
    "equalize": False,
}
NAMES = tuple(OPERATIONS)
SIGNED = np.array(list(OPERATIONS.values()))
# whether the magnitude means anything
GRADED = ~np.isin(NAMES, ["identity", "auto_contrast", "equalize"])
# operation, sign, magnitude
KINDS = (len(NAMES), 2, LARGEST_MAGNITUDE + 1)

# Operations that are done alike; samples are laid out in this order
STAGES = (
    ("identity",),
    # pixels come from elsewhere
    ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    # values are looked up in a table: one known beforehand, two of the image's own
    ("brightness", "posterize", "solarize"),
    ("auto_contrast",),
    ("equalize",),
    # the image is blended with another one: its mean grey, itself in grey, itself blurred
    ("contrast",),
    ("color",),
    ("sharpness",),
)
IDENTITY, MOVED, KNOWN, AUTO_CONTRAST, EQUALIZE, CONTRAST, COLOR, SHARPNESS = range(len(STAGES))
STAGE_OF = np.select([np.isin(NAMES, stage) for stage in STAGES], range(len(STAGES)))


@dataclass(frozen=True)
class Operations:
    """N operations in a row for each of B samples."""

    operation: np.ndarray  # (B, N) int64, place in OPERATIONS
    negative: np.ndarray  # (B, N) bool, the sign of the magnitude
    magnitude: np.ndarray  # (B, N) int64, of LARGEST_MAGNITUDE; 0 where it has no meaning


def draw_operations(
    number: int, magnitude: int | None, randoms: Callable[[int], np.ndarray]
) -> Operations:
    """``number`` operations a sample, all equally likely.

    ``magnitude`` None: any, equally likely, for each of them (Sohn et al. 2020). ``randoms
    (columns)`` gives (B, columns) uniform numbers in [0, 1).
    """
    draws = randoms(2 * number)
    operation = (draws[:, :number] * len(OPERATIONS)).astype(np.int64)
    negative = (draws[:, number:] < 0.5) & SIGNED[operation]
    levels = np.full_like(operation, magnitude or 0)
    if magnitude is None:
        levels = (randoms(number) * (LARGEST_MAGNITUDE + 1)).astype(np.int64)
    return Operations(operation, negative, levels * GRADED[operation])


def apply_operations(pixels: torch.Tensor, drawn: Operations) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> the same, augmented, in new memory.

    A sample's result does not depend on the others. The host does not wait for the device, and
    calls it no more often for more samples.
    """
    _, height, width, _ = pixels.shape
    maps = _maps_of(height, width, pixels.device, _stream_of(pixels.device))
    columns = zip(drawn.operation.T, drawn.negative.T, drawn.magnitude.T)
    turns = [_plan(np.stack(kinds), maps) for kinds in columns]
    steps = _steps_between([turn.order for turn in turns], len(pixels))
    parameters = itertools.chain(*((turn.sources, turn.tables, turn.factors) for turn in turns))
    first, *arrays = upload(pixels.device, *steps, *parameters)
    steps, given = arrays[: len(turns)], arrays[len(turns) :]
    pixels = pixels.index_select(0, first)
    for number, (turn, step) in enumerate(zip(turns, steps)):
        sources, tables, factors = given[3 * number : 3 * number + 3]
        moved, looked_up, blended = pixels.split(turn.groups)[1:]
        if len(moved):
            _move(moved, maps.table, sources)
        if len(looked_up):
            _look_up(looked_up, turn.counts, tables)
        if len(blended):
            _blend(blended, turn.counts, factors)
        pixels = pixels.index_select(0, step)
    return pixels


class _Turn(NamedTuple):
    """One operation for each of B samples, as the device is told."""

    order: np.ndarray  # (B,) int64: samples as they are laid out, stage by stage
    counts: list[int]  # samples of each stage
    # samples that stay as they are, that are moved, looked up and blended
    groups: list[int]
    sources: np.ndarray  # int64, of each MOVED sample: row of _SourceMaps.table
    tables: np.ndarray  # (., 256) uint8, of each KNOWN sample
    # (., 2, 1, 1, 1) float32, of each sample that is blended: its own share, the other's
    factors: np.ndarray


def _plan(kinds: np.ndarray, maps: "_SourceMaps") -> _Turn:
    """``kinds`` (3, B): operation, sign and magnitude of each sample."""
    stage = STAGE_OF[kinds[0]]
    order = stage.argsort(kind="stable")
    counts = np.bincount(stage, minlength=len(STAGES)).tolist()
    groups = np.add.reduceat(counts, [IDENTITY, MOVED, KNOWN, CONTRAST]).tolist()
    _, moved, looked_up, blended = np.split(kinds[:, order], np.cumsum(groups)[:-1], axis=1)
    share = 1 + _levels(0.9)[blended[2]] * np.where(blended[1], -1, 1)
    factors = np.stack([share, 1 - share], 1).astype(np.float32)[..., None, None, None]
    tables = _known_tables()[tuple(looked_up[:, : counts[KNOWN]])]
    return _Turn(order, counts, groups, maps.rows_of(moved), tables, factors)


def _steps_between(orders: list[np.ndarray], samples: int) -> list[np.ndarray]:
    """How samples are rearranged to lie in each of ``orders`` in turn, and back at last."""
    unchanged = np.arange(samples)
    steps, place = [], unchanged  # place: where each sample lies
    for order in [*orders, unchanged]:
        steps.append(place[order])
        place = np.empty_like(order)
        place[order] = unchanged
    return steps


def _move(pixels: torch.Tensor, maps: torch.Tensor, sources: torch.Tensor) -> None:
    """Every pixel from where its sample's row of ``maps`` says."""
    black_first = nn.functional.pad(pixels.flatten(1), (3, 0)).unflatten(1, (-1, 3))
    index = maps.index_select(0, sources).long()[:, None].expand(-1, 3, -1)
    torch.gather(black_first.mT, 2, index, out=pixels.flatten(1, 2).mT)


def _look_up(pixels: torch.Tensor, counts: list[int], known: torch.Tensor) -> None:
    """Every value from its sample's table, or from its channel's where they differ."""
    alike, stretched, equalized = pixels.split(counts[KNOWN:CONTRAST])
    torch.gather(known, 1, alike.flatten(1).long(), out=alike.flatten(1))
    differing = pixels[len(alike) :]
    # tables of channels lie in a row; indices are made in rows of pixels, for long loops, and in
    # int16 for as long as that will do
    rows = differing.flatten(2).short()
    channel = torch.arange(rows.shape[2], dtype=torch.int16, device=rows.device) % 3
    index = rows.add_(channel * 256).flatten(1).long()
    of_equalized = index[len(stretched) :]
    tables = [_auto_contrasts(stretched), _equalizers(equalized, of_equalized)]
    torch.gather(torch.cat(tables).flatten(1), 1, index, out=differing.flatten(1))


def _auto_contrasts(pixels: torch.Tensor) -> torch.Tensor:
    """Tables (B, 3, 256): the darkest value of a channel becomes 0, the brightest 255."""
    lowest, highest = (_edge(pixels, of).float()[..., None] for of in (torch.amin, torch.amax))
    scale = 255 / (highest - lowest)
    flat = highest == lowest
    lowest, scale = lowest.masked_fill(flat, 0), scale.masked_fill(flat, 1)
    return _grey_levels((_ramp(pixels) - lowest) * scale)


def _equalizers(pixels: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tables (B, 3, 256) that spread a channel's values evenly, as Pillow does; ``index``
    (B, H * W * 3): of every value in them.

    Whole numbers in float32, which divides them faster, and exactly below 2 ** 22 pixels.
    """
    ones = torch.ones(1, device=index.device).expand_as(index)
    histogram = torch.zeros(len(index), 3 * 256, device=index.device).scatter_add_(1, index, ones)
    histogram = histogram.unflatten(1, (3, 256))
    brightest = histogram.gather(2, _edge(pixels, torch.amax).long()[..., None])
    step = ((index.shape[1] // 3 - brightest) / 255).floor_()
    below = histogram.cumsum(2) - histogram
    table = (below + (step / 2).floor_()) / step.clamp(min=1)
    return _grey_levels(torch.where(step > 0, table, _ramp(pixels)))


def _edge(pixels: torch.Tensor, of: Callable) -> torch.Tensor:
    """The least (``of`` torch.amin) or largest value of each channel, (B, 3)."""
    return of(of(pixels.flatten(2), 1).unflatten(1, (-1, 3)), 1)


def _blend(pixels: torch.Tensor, counts: list[int], factors: torch.Tensor) -> None:
    """Every image with its other one, weighted by ``factors``."""
    contrast, color, sharpness = pixels.split(counts[CONTRAST:])
    greys = F.rgb_to_grayscale(pixels[: len(pixels) - len(sharpness)].permute(0, 3, 1, 2))
    of_contrast, of_color = greys.permute(0, 2, 3, 1).split([len(contrast), len(color)])
    # in whole numbers: torchvision's sum of float32 depends above 256 x 256 pixels on threads and
    # batch size
    mean = of_contrast.sum((1, 2, 3), keepdim=True, dtype=torch.int64).double()
    mean = (mean / (pixels.shape[1] * pixels.shape[2])).float()
    others = mean, of_color, _blurred(sharpness)
    values, rest = pixels * factors[:, 0], factors[:, 1]
    parts, shares = (every.split(counts[CONTRAST:]) for every in (values, rest))
    for part, other, share in zip(parts, others, shares):
        part.add_(other * share)
    pixels.copy_(_grey_levels(values))


def _blurred(pixels: torch.Tensor) -> torch.Tensor:
    """What sharpness blends with, float32: 3 x 3 means, in which the middle counts five times; the
    edge as it is.
    """
    width = 3 * pixels.shape[2]
    # along memory, row after row: long loops, whose sums across edges are put right in the end
    values = pixels.flatten(1).short()
    columns = values[:, : -2 * width] + values[:, width:-width] + values[:, 2 * width :]
    sums = columns[:, :-6] + columns[:, 3:-3] + columns[:, 6:]
    sums += 4 * values[:, width + 3 : -width - 3]
    blurred = pixels.float()
    # no sum is half-way between two multiples of 13, so the means are torchvision's
    blurred.flatten(1)[:, width + 3 : -width - 3].copy_(sums).div_(13).round_()
    for edge in (0, -1):
        blurred[:, :, edge] = pixels[:, :, edge]
    return blurred


def _grey_levels(values: torch.Tensor) -> torch.Tensor:
    """Float32 as uint8: clipped and cut off."""
    # by way of int16, for which there are vector instructions: a quarter of the time on a CPU
    return values.clamp_(0, 255).short().to(torch.uint8)


def _ramp(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(256, device=like.device)


@functools.cache
def _levels(largest: float) -> np.ndarray:
    """What the magnitudes are on a scale that ends at ``largest``: torchvision's very numbers."""
    return torch.linspace(0.0, largest, LARGEST_MAGNITUDE + 1).double().numpy()


@functools.cache
def _known_tables() -> np.ndarray:
    """(operation, sign, magnitude, 256) uint8, of the operations of KNOWN."""
    ramp = torch.arange(256, dtype=torch.uint8)[None, None]
    tables = np.zeros((*KINDS, 256), np.uint8)
    brightness, posterize, solarize = (tables[NAMES.index(name)] for name in STAGES[KNOWN])
    for magnitude in range(LARGEST_MAGNITUDE + 1):
        change, bits, dark = (float(_levels(largest)[magnitude]) for largest in (0.9, 4.0, 255.0))
        for sign, factor in enumerate((1 + change, 1 - change)):
            brightness[sign, magnitude] = F.adjust_brightness(ramp, factor)
        posterize[0, magnitude] = F.posterize(ramp, 8 - round(bits))
        solarize[0, magnitude] = F.solarize(ramp, math.ceil(255 - dark))
    return tables


class _SourceMaps:
    """Where the pixels of a moved image come from, for every kind met so far.

    ``table`` (kinds, H * W) int32 on the device: 0 for black, else 1 + the place in the image. It
    is torchvision that fills it in, so that pixels are its own also where a source lies half-way
    between two, and the same on every device.
    """

    def __init__(self, height: int, width: int, device: torch.device):
        self.height, self.width = height, width
        self.table = torch.empty(0, height * width, dtype=torch.int32, device=device)
        self._rows = np.full(KINDS, -1)
        self._lock = threading.Lock()

    def rows_of(self, kinds: np.ndarray) -> np.ndarray:
        """(3, B) operation, sign and magnitude -> (B,) int64 rows of ``table``, which grows."""
        with self._lock:
            new = np.unique(kinds[:, self._rows[tuple(kinds)] < 0], axis=1)
            if new.size:
                maps = [_source_map(self.height, self.width, *kind) for kind in new.T.tolist()]
                (added,) = upload(self.table.device, np.stack(maps))
                self._rows[tuple(new)] = np.arange(len(maps)) + len(self.table)
                self.table = torch.cat([self.table, added])
        return self._rows[tuple(kinds)]


@functools.lru_cache(16)
def _maps_of(height: int, width: int, device: torch.device, stream: int) -> _SourceMaps:
    """``stream``: of the device; one would not wait for another to have made the table."""
    return _SourceMaps(height, width, device)


def _stream_of(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _source_map(
    height: int, width: int, operation: int, negative: int, magnitude: int
) -> np.ndarray:
    """A row of _SourceMaps.table: what becomes of an image of numbered pixels."""
    numbers = torch.arange(1.0, height * width + 1).view(1, height, width)
    name, sign = NAMES[operation], -1 if negative else 1

    def level(largest: float) -> float:
        return sign * float(_levels(largest)[magnitude])

    def affine(translate=(0, 0), shear=(0.0, 0.0), center=None) -> torch.Tensor:
        return F.affine(numbers, 0.0, list(translate), 1.0, list(shear), center=center)

    if name == "rotate":
        moved = F.rotate(numbers, level(30.0))
    elif name.startswith("shear"):
        degrees = math.degrees(math.atan(level(0.3)))
        shear = (degrees, 0.0) if name == "shear_x" else (0.0, degrees)
        moved = affine(shear=shear, center=[0, 0])
    elif name == "translate_x":
        moved = affine(translate=(int(level(SHARE_MOVED * width)), 0))
    else:
        moved = affine(translate=(0, int(level(SHARE_MOVED * height))))
    return moved.view(-1).to(torch.int32).numpy()
