"""RandAugment (Cubuk et al. 2020).

Which operations a sample gets is data, drawn on the host; they are applied to uint8 batches on any
device. Operations, magnitudes and pixels are those of torchvision.transforms.RandAugment (nearest
neighbour, black where nothing was).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms import functional as F
from torchvision.transforms.v2.functional import equalize  # v1's goes through the images one by one

LARGEST_MAGNITUDE = 30


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

    A sample's result does not depend on the others.
    """
    for columns in zip(drawn.operation.T, drawn.negative.T, drawn.magnitude.T):
        kind = np.ravel_multi_index(columns, KINDS)
        kinds, sizes = np.unique(kind, return_counts=True)
        # equal ones side by side, so that each kind is one call
        there = torch.from_numpy(kind.argsort(kind="stable"))
        back = there.argsort().to(pixels.device, non_blocking=True)
        pixels = pixels.index_select(0, there.to(pixels.device, non_blocking=True))
        for group, kind in zip(pixels.split(sizes.tolist()), kinds.tolist()):
            changed = _apply(group.permute(0, 3, 1, 2), *np.unravel_index(kind, KINDS))
            group.copy_(changed.permute(0, 2, 3, 1))
        pixels = pixels.index_select(0, back)
    return pixels


def _apply(images: torch.Tensor, operation: int, negative: int, magnitude: int) -> torch.Tensor:
    def level(largest: float) -> float:
        bins = torch.linspace(0.0, largest, LARGEST_MAGNITUDE + 1)  # torchvision's very numbers
        return float(bins[magnitude]) * (-1 if negative else 1)

    function, _ = list(OPERATIONS.values())[operation]
    return function(images, level)


def _affine(images: torch.Tensor, translate=(0, 0), shear=(0.0, 0.0), center=None) -> torch.Tensor:
    return F.affine(
        images, angle=0.0, translate=list(translate), scale=1.0, shear=list(shear), center=center
    )


def _shear(images: torch.Tensor, x: float = 0.0, y: float = 0.0) -> torch.Tensor:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return _affine(images, shear=degrees, center=[0, 0])


def _contrast(images: torch.Tensor, factor: float) -> torch.Tensor:
    """F.adjust_contrast, but with an exact mean.

    Its float32 sum depends above 256 x 256 pixels on threads and batch size.
    """
    mean = F.rgb_to_grayscale(images).double().mean((1, 2, 3), keepdim=True).float()
    return (factor * images + (1 - factor) * mean).clamp(0, 255).to(torch.uint8)


Level = Callable[[float], float]  # largest -> the magnitude on a scale that ends there


def _translate_x(images: torch.Tensor, level: Level) -> torch.Tensor:
    return _affine(images, translate=(int(level(150 / 331 * images.shape[3])), 0))


def _translate_y(images: torch.Tensor, level: Level) -> torch.Tensor:
    return _affine(images, translate=(0, int(level(150 / 331 * images.shape[2]))))


# name -> (function of (B, 3, side, side) images and Level, whether the magnitude has a sign)
OPERATIONS: dict[str, tuple[Callable[[torch.Tensor, Level], torch.Tensor], bool]] = {
    "identity": (lambda images, level: images, False),
    "shear_x": (lambda images, level: _shear(images, x=level(0.3)), True),
    "shear_y": (lambda images, level: _shear(images, y=level(0.3)), True),
    "translate_x": (_translate_x, True),
    "translate_y": (_translate_y, True),
    "rotate": (lambda images, level: F.rotate(images, level(30.0)), True),
    "brightness": (lambda images, level: F.adjust_brightness(images, 1 + level(0.9)), True),
    "color": (lambda images, level: F.adjust_saturation(images, 1 + level(0.9)), True),
    "contrast": (lambda images, level: _contrast(images, 1 + level(0.9)), True),
    "sharpness": (lambda images, level: F.adjust_sharpness(images, 1 + level(0.9)), True),
    "posterize": (lambda images, level: F.posterize(images, 8 - round(level(4.0))), False),
    "solarize": (lambda images, level: F.solarize(images, math.ceil(255 - level(255.0))), False),
    "auto_contrast": (lambda images, level: F.autocontrast(images), False),
    "equalize": (lambda images, level: equalize(images), False),
}
SIGNED = np.array([signed for _, signed in OPERATIONS.values()])
# whether the magnitude means anything
GRADED = ~np.isin(list(OPERATIONS), ["identity", "auto_contrast", "equalize"])
# operation, sign, magnitude
KINDS = (len(OPERATIONS), 2, LARGEST_MAGNITUDE + 1)
