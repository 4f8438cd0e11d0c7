"""Augmentation parameters as data: drawn on the host, applied by any loader.

What happens to a sample depends on (seed, position, view) alone, not on rank, thread, device or
history. Geometry follows torchvision's RandomResizedCrop, RandomCrop, Resize + CenterCrop; colour
follows ColorJitter's random order of brightness, contrast, saturation and hue, all of which are
linear in the pixels and the image's mean colour, so that a whole jitter is one 3x6 matrix a sample.
(Hue turns the chroma plane of YIQ, where torchvision turns HSV's; clipping happens once, at the
end.)
"""

from dataclasses import dataclass

import numpy as np

from lt_train.config.schema import ViewConfig
from lt_train.data.rand_augment import Operations, draw_operations
from lt_train.random_streams import Stream, mix, philox4x32

CROP_ATTEMPTS = 10  # torchvision's, before it falls back to a centre crop
GRAY = np.array([0.2989, 0.587, 0.114])  # luma weights of torchvision's rgb_to_grayscale
# where crop=center cuts, as shares of the room that is left below and beside the crop: the centre,
# and the corners
CENTRE = (0.5, 0.5)
FIVE_CROPS = (CENTRE, (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def random_parts(config: ViewConfig) -> list[str]:
    """Keys of a view that have it drawn, with their values; none: it is always the same."""
    drawn = {"crop": config.crop != "center"}
    for name in ("flip", "grayscale", "blur"):
        drawn[f"{name}_probability"] = getattr(config, f"{name}_probability") > 0
    drawn["jitter"] = any(config.jitter)
    for name in ("randaugment_ops", "cutout"):
        drawn[name] = getattr(config, name) > 0
    return [f"{name}={getattr(config, name)}" for name, is_drawn in drawn.items() if is_drawn]


@dataclass(frozen=True)
class View:
    """Parameters of one view of B samples.

    Boxes are in source pixels and may be fractional or reach outside.
    """

    size: int  # side of the square output
    box: np.ndarray  # (B, 4) float32: top, left, bottom, right
    flip: np.ndarray  # (B,) bool, left to right
    blur_sigma: np.ndarray | None = None  # (B,) float32 in output pixels, 0: none; before colour
    # (B, 3, 6) float32: pixel -> colour @ (pixel, mean pixel of the view)
    colour: np.ndarray | None = None
    # RandAugment's, on the resized and blurred pixels; before colour
    operations: Operations | None = None
    # (B, 4) int64: top, left, bottom, right in output pixels of what Cutout makes grey, last of all
    cutout: np.ndarray | None = None
    # resizing looks at pixels outside the box (resize, then crop), not only inside it
    context: bool = False


def draw_view(
    config: ViewConfig,
    seed: int,
    positions: np.ndarray,
    index: int,
    widths: np.ndarray,
    heights: np.ndarray,
    centre: tuple[float, float] = CENTRE,
) -> View:
    """View number ``index`` of the samples at ``positions`` with these sizes; all (B,) arrays.

    ``centre``: where ``crop=center`` cuts, one of FIVE_CROPS.
    """
    randoms = Uniforms(seed, positions, index)
    widths, heights = widths.astype(np.float64), heights.astype(np.float64)
    if config.crop == "random_resized":
        box = _random_resized_crop(config, randoms, widths, heights)
    elif config.crop == "pad":
        box = _padded_crop(config, randoms, widths, heights)
    else:
        box = _center_crop(config, widths, heights, centre)
    flip = np.zeros(len(positions), bool)
    if config.flip_probability > 0:
        flip = randoms(1)[:, 0] < config.flip_probability
    blur_sigma = None
    if config.blur_probability > 0:
        draw, sigma = randoms(2).T
        low, high = config.blur_sigma
        sigma = np.where(draw < config.blur_probability, low + sigma * (high - low), 0.0)
        blur_sigma = sigma.astype(np.float32)
    colour = _colour(config, randoms, len(positions))
    operations = None
    if config.randaugment_ops > 0:
        operations = draw_operations(config.randaugment_ops, config.randaugment_magnitude, randoms)
    # a draw that is new goes here, after all others, which must stay what they were
    cutout = _cutout(config, randoms) if config.cutout > 0 else None
    return View(
        config.size,
        box.astype(np.float32),
        flip,
        blur_sigma,
        colour,
        operations,
        cutout,
        context=config.crop == "center",
    )


class Uniforms:
    """Uniform numbers in [0, 1) for each position, keyed on (seed, position, view).

    Each call gives new columns.
    """

    def __init__(self, seed: int, positions: np.ndarray, view: int):
        key = int(mix(seed, Stream.AUGMENTATION)[0])
        self._key = (key & 0xFFFFFFFF, key >> 32)
        self._positions = positions.astype(np.uint64)
        self._view, self._block = view, 0

    def __call__(self, columns: int) -> np.ndarray:
        """(B, columns) float64."""
        blocks = -(-columns // 4)
        counter = np.empty((len(self._positions), blocks, 4), np.uint64)
        counter[..., 0] = (self._positions & np.uint64(0xFFFFFFFF))[:, None]
        counter[..., 1] = (self._positions >> np.uint64(32))[:, None]
        counter[..., 2] = np.arange(self._block, self._block + blocks)
        counter[..., 3] = self._view
        self._block += blocks
        words = philox4x32(counter, self._key).reshape(len(self._positions), -1)
        return words[:, :columns] * 2.0**-32


def _random_resized_crop(
    config: ViewConfig, randoms: Uniforms, widths: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """torchvision's RandomResizedCrop.get_params.

    The first of ten (area, aspect) draws that fits, else the centre.
    """
    draws = randoms(2 * CROP_ATTEMPTS + 2)
    smallest, largest = config.scale
    share = smallest + draws[:, :CROP_ATTEMPTS] * (largest - smallest)
    area = (widths * heights)[:, None] * share
    log_ratio = np.log(config.ratio)
    aspect = np.exp(log_ratio[0] + draws[:, CROP_ATTEMPTS:-2] * (log_ratio[1] - log_ratio[0]))
    width, height = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    chosen = fits.argmax(1)[:, None]
    width = np.take_along_axis(width, chosen, 1)[:, 0]
    height = np.take_along_axis(height, chosen, 1)[:, 0]
    fallback_aspect = np.clip(widths / heights, *config.ratio)
    none_fits = ~fits.any(1)
    width = np.where(none_fits, np.minimum(widths, np.round(heights * fallback_aspect)), width)
    height = np.where(none_fits, np.minimum(heights, np.round(widths / fallback_aspect)), height)
    room = np.stack([heights - height, widths - width], 1)
    corner = np.where(none_fits[:, None], room // 2, np.floor(draws[:, -2:] * (room + 1)))
    top, left = corner.T
    return np.stack([top, left, top + height, left + width], 1)


def _padded_crop(
    config: ViewConfig, randoms: Uniforms, widths: np.ndarray, heights: np.ndarray
) -> np.ndarray:
    """torchvision's RandomCrop(size, padding): a box that may reach into the padding."""
    draws = randoms(2)
    room = np.stack([heights, widths], 1) + 2 * config.padding - config.size
    corner = np.floor(draws * (room + 1)) - config.padding
    return np.concatenate([corner, corner + config.size], 1)


def _center_crop(
    config: ViewConfig, widths: np.ndarray, heights: np.ndarray, centre: tuple[float, float]
) -> np.ndarray:
    """torchvision's Resize(resize) and CenterCrop(size), or one of FiveCrop(size), as a box in
    source pixels.

    With torchvision's integer sizes and offsets.
    """
    shorter = np.minimum(widths, heights)
    sides = np.stack([heights, widths], 1)
    scaled = np.floor(config.resize * sides / shorter[:, None])
    resized = np.where(sides == shorter[:, None], config.resize, scaled)
    corner = np.round((resized - config.size) * centre)
    scale = sides / resized
    return np.concatenate([corner * scale, (corner + config.size) * scale], 1)


def _colour(config: ViewConfig, randoms: Uniforms, count: int) -> np.ndarray | None:
    """One (B, 3, 6) matrix for jitter and grayscale: [on the pixel | on the view's mean pixel]."""
    if not any(config.jitter) and config.grayscale_probability == 0:
        return None
    pixel = np.tile(np.eye(3), (count, 1, 1))
    mean = np.zeros((count, 3, 3))
    if any(config.jitter):
        draws = randoms(9)
        jittered = draws[:, 0] < config.jitter_probability
        *factors, hue = (draws[:, 1:5] * 2 - 1).T * np.array(config.jitter)[:, None]
        brightness, contrast, saturation = (np.maximum(0, 1 + factor) for factor in factors)
        gray = np.broadcast_to(GRAY, (3, 3))
        steps = np.stack(
            [
                brightness[:, None, None] * np.eye(3),
                contrast[:, None, None] * np.eye(3),
                saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * gray,
                _hue_matrices(hue),
            ],
            1,
        )
        order = draws[:, 5:9].argsort(1)
        rows = np.arange(count)
        for turn in range(4):
            step = order[:, turn]
            # contrast pulls towards the mean gray of the image as it then is
            pull = np.where(step == 1, 1 - contrast, 0.0)[:, None, None] * (gray @ (pixel + mean))
            matrix = steps[rows, step]
            pixel, mean = matrix @ pixel, matrix @ mean + pull
        pixel = np.where(jittered[:, None, None], pixel, np.eye(3))
        mean = np.where(jittered[:, None, None], mean, 0.0)
    if config.grayscale_probability > 0:
        to_gray = (randoms(1)[:, 0] < config.grayscale_probability)[:, None, None]
        gray = np.broadcast_to(GRAY, (3, 3))
        pixel, mean = np.where(to_gray, gray @ pixel, pixel), np.where(to_gray, gray @ mean, mean)
    return np.concatenate([pixel, mean], 2).astype(np.float32)


def _cutout(config: ViewConfig, randoms: Uniforms) -> np.ndarray:
    """Squares (B, 4) of Cutout (DeVries and Taylor 2017), cut off where they leave the view.

    The side is anything up to ``config.cutout`` of the view's, as in Sohn et al. 2020, and the
    middle any pixel.
    """
    draws = randoms(3)
    side = np.round(draws[:, :1] * config.cutout * config.size)
    corner = np.floor(draws[:, 1:] * config.size) - side // 2
    square = np.concatenate([corner, corner + side], 1)
    return square.clip(0, config.size).astype(np.int64)


def _hue_matrices(turns: np.ndarray) -> np.ndarray:
    """(B, 3, 3) rotations of the chroma plane by ``turns`` of a full circle."""
    angle = 2 * np.pi * turns
    rotation = np.zeros((len(turns), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.linalg.inv(TO_YIQ) @ rotation @ TO_YIQ
