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
    # bits of values are cleared or turned over
    ("posterize", "solarize"),
    # values are spread: over all grey levels, and evenly
    ("auto_contrast",),
    ("equalize",),
    # the image is blended with another one: black, its mean grey, itself in grey, itself blurred
    ("brightness",),
    ("contrast",),
    ("color",),
    ("sharpness",),
)
BLENDED = STAGES.index(("brightness",))  # and those after it
STAGE_OF = np.select([np.isin(NAMES, stage) for stage in STAGES], range(len(STAGES)))
GREY = (0.2989, 0.587, 0.114)  # torchvision's, of red, green and blue


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
    parameters = itertools.chain(*(turn.parameters for turn in turns))
    first, *arrays = upload(pixels.device, *steps, *parameters)
    steps, given = arrays[: len(turns)], iter(arrays[len(turns) :])
    pixels = pixels.index_select(0, first)
    for turn, step in zip(turns, steps):
        sources, bits, factors = itertools.islice(given, len(turn.parameters))
        _, moved, changed, stretched, equalized, *blended = pixels.split(turn.counts)
        if len(moved):
            _move(moved, maps.table, sources)
        if len(changed):
            _change_bits(changed, bits)
        if len(stretched):
            _stretch(stretched)
        if len(equalized):
            _equalize(equalized)
        shares = (every.split(turn.counts[BLENDED:]) for every in factors)
        for part, own, rest, other in zip(blended, *shares, OTHERS):
            if len(part):
                _blend(part, own, rest, other)
        pixels = pixels.index_select(0, step)
    return pixels


class _Turn(NamedTuple):
    """One operation for each of B samples, as the device is told."""

    order: np.ndarray  # (B,) int64: samples as they are laid out, stage by stage
    counts: list[int]  # samples of each stage
    # for the device, of each sample
    # that is moved, int64: row of _SourceMaps.table
    # whose bits are changed, (2, ., 1, 1, 1) int16: see _bits
    # that is blended, (2, ., 1, 1, 1) float32: its own share, the other image's
    parameters: tuple[np.ndarray, np.ndarray, np.ndarray]


def _plan(kinds: np.ndarray, maps: "_SourceMaps") -> _Turn:
    """``kinds`` (3, B): operation, sign and magnitude of each sample."""
    stage = STAGE_OF[kinds[0]]
    order = stage.argsort(kind="stable")
    counts = np.bincount(stage, minlength=len(STAGES)).tolist()
    ends = np.cumsum(counts[:BLENDED])
    _, moved, changed, _, _, blended = np.split(kinds[:, order], ends, axis=1)
    solarized = (changed[0] == NAMES.index("solarize")).astype(int)
    bits = _bits()[:, solarized, changed[2]]
    share = 1 + _levels(0.9)[blended[2]] * np.where(blended[1], -1, 1)
    factors = np.stack([share, 1 - share]).astype(np.float32)
    bits, factors = (every[..., None, None, None] for every in (bits, factors))
    return _Turn(order, counts, (maps.rows_of(moved), bits, factors))


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
    black_first = nn.functional.pad(pixels.flatten(1), (3, 0)).view(-1, 3)
    index = maps.index_select(0, sources)
    index += _multiples(index.shape[1] + 1, len(pixels), like=index)[:, None]
    torch.index_select(black_first, 0, index.view(-1), out=pixels.view(-1, 3))


def _change_bits(pixels: torch.Tensor, bits: torch.Tensor) -> None:
    """Some bits of every value are cleared, or all turned over where it is above a limit."""
    kept, limit = bits
    values = pixels.short()
    # all bits where a value is above it; a comparison takes ten times as long on a CPU
    above = (limit - values).bitwise_right_shift_(15)
    pixels.copy_(values.bitwise_and_(kept).bitwise_xor_(above))


def _stretch(pixels: torch.Tensor) -> None:
    """The darkest value of a channel becomes 0, the brightest 255."""
    values, width = pixels.float(), pixels.shape[2]
    rows = values.flatten(2)  # for long loops

    def edge(of: Callable) -> torch.Tensor:
        return of(of(rows, 1, keepdim=True).unflatten(2, (-1, 3)), 2)

    lowest, highest = edge(torch.amin), edge(torch.amax)
    scale = 255 / (highest - lowest)
    flat = highest == lowest
    lowest, scale = lowest.masked_fill_(flat, 0), scale.masked_fill_(flat, 1)
    rows.sub_(lowest.repeat(1, 1, width)).mul_(scale.repeat(1, 1, width))
    pixels.copy_(values.short())


def _equalize(pixels: torch.Tensor) -> None:
    """Values of a channel are spread evenly, as Pillow does.

    Whole numbers in float32, which divides them faster, and exactly below 2 ** 22 pixels.
    """
    samples, _, width, _ = pixels.shape
    index = pixels.int()
    # the tables of all channels of all samples lie in a row
    tables = _multiples(256, 3 * samples, like=index).view(-1, 1, 3).repeat(1, 1, width)
    index = index.flatten(2).add_(tables).view(-1)
    one = torch.ones(1, device=index.device)
    histogram = torch.zeros(768 * samples, device=index.device)
    histogram = histogram.index_add_(0, index, one.expand_as(index)).view(-1, 256)
    below = histogram.cumsum(1) - histogram
    # pixels darker than the brightest value that there is
    darker = (histogram.clamp(max=1) * below).amax(1, keepdim=True)
    step = darker.div(255, rounding_mode="floor")
    table = (below + step.div(2, rounding_mode="floor")) / step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256, device=index.device))
    table = table.clamp_(max=255).to(torch.uint8).view(-1)
    torch.index_select(table, 0, index, out=pixels.view(-1))


def _multiples(of: int, number: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(0, of * number, of, dtype=like.dtype, device=like.device)


def _blend(
    pixels: torch.Tensor, own: torch.Tensor, rest: torch.Tensor, other: Callable | None
) -> None:
    """Every image with its ``other`` one (None: black), weighted by ``own`` and ``rest``."""
    values = pixels.float().mul_(own)
    if other is not None:
        values += other(pixels).mul_(rest)
    # by way of int16, for which there are vector instructions: a quarter of the time on a CPU
    pixels.copy_(values.short().clamp_(0, 255))


def _mean_grey(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 1, 1, 1) float32."""
    # whole numbers, in float32 row by row: torchvision's sum of all depends above 256 x 256 pixels
    # on threads and batch size
    greys = _greys(pixels).sum(2, keepdim=True).sum(1, keepdim=True, dtype=torch.float64)
    return (greys / (pixels.shape[1] * pixels.shape[2])).float()


def _greys(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, H, W, 1) float32, whole numbers: torchvision's rgb_to_grayscale."""
    weighted = [part.float().mul_(weight) for part, weight in zip(pixels.split(1, 3), GREY)]
    return weighted[0].add_(weighted[1]).add_(weighted[2]).floor_()


def _blurred(pixels: torch.Tensor) -> torch.Tensor:
    """What sharpness blends with, float32: 3 x 3 means, in which the middle counts five times; the
    edge as it is.
    """
    width = 3 * pixels.shape[2]
    # along memory, row after row: long loops, whose sums across edges are put right in the end
    values = pixels.flatten(1).short()
    columns = (values[:, : -2 * width] + values[:, width:-width]).add_(values[:, 2 * width :])
    sums = (columns[:, :-6] + columns[:, 3:-3]).add_(columns[:, 6:])
    sums.add_(values[:, width + 3 : -width - 3], alpha=4)
    blurred = pixels.float()
    # no sum is half-way between two multiples of 13, so the means are torchvision's
    blurred.flatten(1)[:, width + 3 : -width - 3].copy_(sums).mul_(1 / 13).round_()
    edges = slice(None, None, max(1, pixels.shape[2] - 1))
    blurred[:, :, edges] = pixels[:, :, edges]
    return blurred


# what the images of each stage from BLENDED on are blended with
OTHERS = (None, _mean_grey, _greys, _blurred)


@functools.cache
def _levels(largest: float) -> np.ndarray:
    """What the magnitudes are on a scale that ends at ``largest``: torchvision's very numbers."""
    return torch.linspace(0.0, largest, LARGEST_MAGNITUDE + 1).double().numpy()


@functools.cache
def _bits() -> np.ndarray:
    """(2, 2, magnitude) int16: bits that are kept, and the value above which all of them are turned
    over; of posterize and of solarize.
    """
    cleared, dark = _levels(4.0).round().astype(int), _levels(255.0)
    everything, never = np.full_like(cleared, -1), np.full_like(cleared, 255)
    kept = np.stack([-(2**cleared), everything])
    return np.stack([kept, np.stack([never, np.ceil(255 - dark) - 1])]).astype(np.int16)


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
