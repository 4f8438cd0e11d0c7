"""RandAugment: pixels against torchvision's, operations equally likely, samples on their own."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from lt_train.data.augment import Uniforms
from lt_train.data.rand_augment import (
    GRADED,
    LARGEST_MAGNITUDE,
    OPERATIONS,
    SIGNED,
    Operations,
    apply_operations,
    draw_operations,
)
from tests.helpers.dispatched import Dispatched

NAMES = list(OPERATIONS)
THEIR_NAMES = [  # in our order
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
    "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
]  # fmt: skip


def pictures(side: int) -> torch.Tensor:
    """(8, side, side, 3) uint8: noise, smooth, dark, of one colour, black and white."""
    generator = torch.Generator().manual_seed(side)
    noise = torch.randint(0, 256, (2, 3, side, side), generator=generator).float()
    coarse = torch.randint(0, 256, (2, 3, 5, 5), generator=generator).float()
    smooth = interpolate(coarse, (side, side), mode="bilinear")
    flat = torch.tensor([17.0, 0.0, 255.0])[:, None, None, None].expand(3, 3, side, side)
    images = torch.cat([noise, smooth, smooth[:1] / 4 + 20, flat])
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def by_torchvision(images: torch.Tensor, operation: int, negative: bool, level: int):
    """One operation on images (B, H, W, 3)."""
    space = RandAugment()._augmentation_space(LARGEST_MAGNITUDE + 1, tuple(images.shape[1:3]))
    name = THEIR_NAMES[operation]
    magnitude = float(space[name][0][level]) if space[name][0].ndim else 0.0
    signed = -magnitude if negative else magnitude
    planes = images.permute(0, 3, 1, 2).contiguous()
    changed = _apply_op(planes, name, signed, InterpolationMode.NEAREST, None)
    return changed.permute(0, 2, 3, 1)


def test_operations_are_those_of_torchvision():
    space = RandAugment()._augmentation_space(LARGEST_MAGNITUDE + 1, (32, 32))
    assert list(space) == THEIR_NAMES
    assert [signed for _, signed in space.values()] == SIGNED.tolist()
    assert [levels.ndim == 1 for levels, _ in space.values()] == GRADED.tolist()
    assert [name.replace("_", "") for name in NAMES] == list(map(str.lower, THEIR_NAMES))


@pytest.mark.parametrize("side", [32, 33, 96])
@pytest.mark.parametrize("operation", range(len(NAMES)), ids=NAMES)
def test_every_operation_gives_torchvisions_pixels(operation, side):
    """Bit for bit, at every magnitude of either sign, all in one batch."""
    signs = (False, True) if SIGNED[operation] else (False,)
    levels = range(LARGEST_MAGNITUDE + 1) if GRADED[operation] else (0,)
    kinds = list(itertools.product(signs, levels))
    pixels = pictures(side)
    expected = [by_torchvision(pixels, operation, *kind) for kind in kinds]
    negative, magnitude = np.repeat(kinds, len(pixels), 0)[:, :, None].swapaxes(0, 1)
    drawn = Operations(np.full_like(magnitude, operation), negative.astype(bool), magnitude)
    actual = apply_operations(pixels.repeat(len(kinds), 1, 1, 1), drawn)
    for kind, ours, theirs in zip(kinds, actual.split(len(pixels)), expected, strict=True):
        assert torch.equal(ours, theirs), kind


@pytest.mark.parametrize("magnitude", [9, None])
def test_operations_of_a_mixed_batch_follow_one_another(magnitude):
    pixels = pictures(32).repeat(12, 1, 1, 1)
    drawn = draw_operations(3, magnitude, Uniforms(0, np.arange(len(pixels)), 0))
    before = pixels.clone()
    expected = pixels.clone()
    for row, columns in enumerate(zip(drawn.operation, drawn.negative, drawn.magnitude)):
        for kind in zip(*columns):
            expected[row] = by_torchvision(expected[row : row + 1], *kind)[0]
    assert torch.equal(apply_operations(pixels, drawn), expected)
    assert torch.equal(pixels, before), "the loader's memory is left alone"


def every_operation_twice(samples: int) -> Operations:
    operation = np.stack([np.arange(samples), np.arange(samples)[::-1]], 1) % len(NAMES)
    return Operations(operation, SIGNED[operation], 10 * GRADED[operation])


def calls(drawn: Operations) -> int:
    """How often torch is called to apply them, once every kind has been met."""
    pixels = torch.zeros(len(drawn.operation), 32, 32, 3, dtype=torch.uint8)
    apply_operations(pixels, drawn)
    with Dispatched() as dispatched:
        apply_operations(pixels, drawn)
    return len(dispatched.calls)


def test_no_more_calls_for_more_samples_or_kinds():
    """Each may be a kernel that the host has to launch."""
    most = calls(every_operation_twice(28))
    assert most <= 300
    assert calls(every_operation_twice(280)) == most
    for samples, magnitude in ((5, 10), (200, 10), (200, None)):
        drawn = draw_operations(2, magnitude, Uniforms(3, np.arange(samples), 0))
        assert calls(drawn) <= most


def alone(pixels: torch.Tensor, drawn: Operations) -> torch.Tensor:
    """Each sample in a batch of its own."""

    def apply(row: slice) -> torch.Tensor:
        own = Operations(drawn.operation[row], drawn.negative[row], drawn.magnitude[row])
        return apply_operations(pixels[row], own)

    return torch.cat([apply(slice(row, row + 1)) for row in range(len(pixels))])


@pytest.mark.parametrize("magnitude", [30, None])
def test_a_sample_is_the_same_alone_as_in_a_batch(magnitude):
    pixels = pictures(45).repeat(6, 1, 1, 1)
    drawn = draw_operations(2, magnitude, Uniforms(1, np.arange(len(pixels)), 1))
    assert torch.equal(apply_operations(pixels, drawn), alone(pixels, drawn))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_contrast_of_large_images_does_not_depend_on_the_batch(two_threads):
    """Mean pixels are whole numbers, from which a sum of float32 is off by how threads share it,
    and pixels by 1 in turn.
    """
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(157, 256, (2, 80_000), generator=generator)
    noise = torch.cat([noise, 2 * 206 - noise], 1)[:, torch.randperm(160_000, generator=generator)]
    pixels = noise.to(torch.uint8).view(2, 400, 400, 1).expand(-1, -1, -1, 3)
    contrast = np.full((len(pixels), 1), NAMES.index("contrast"))
    drawn = Operations(contrast, np.zeros_like(contrast, bool), np.full_like(contrast, 10))
    assert torch.equal(apply_operations(pixels, drawn), alone(pixels, drawn))


def test_operations_and_signs_are_drawn_equally_often():
    samples = 14_000
    drawn = draw_operations(2, 10, Uniforms(0, np.arange(samples), 0))
    assert drawn.operation.shape == drawn.negative.shape == (samples, 2)
    for column in (0, 1):
        counts = np.bincount(drawn.operation[:, column], minlength=len(NAMES))
        assert len(counts) == 14 and np.abs(counts - samples / 14).max() < 4 * np.sqrt(samples / 14)
    for operation, signed in enumerate(SIGNED):
        negative = drawn.negative[drawn.operation == operation]
        error = abs(negative.mean() - 0.5 * signed)
        assert error < 4 * 0.5 / np.sqrt(len(negative)) * signed + 1e-9
    pairs = np.bincount(drawn.operation @ [14, 1], minlength=196)
    chi_square = ((pairs - samples / 196) ** 2 / (samples / 196)).sum()
    assert abs(chi_square - 195) < 4 * np.sqrt(2 * 195), "first and second independently"


def test_magnitudes_are_those_asked_for_or_drawn_anew_for_each_operation():
    samples = 31_000
    fixed, random = (
        draw_operations(2, magnitude, Uniforms(0, np.arange(samples), 0)) for magnitude in (7, None)
    )
    np.testing.assert_array_equal(fixed.operation, random.operation)
    np.testing.assert_array_equal(fixed.negative, random.negative)
    graded = GRADED[fixed.operation]
    assert set(fixed.magnitude[graded]) == {7}
    for column in (0, 1):
        counts = np.bincount(random.magnitude[graded[:, column], column])
        expected = graded[:, column].sum() / 31
        assert len(counts) == 31 and np.abs(counts - expected).max() < 4 * np.sqrt(expected)
    both = graded.all(1)
    columns = [random.magnitude[both], random.operation[both], random.negative[both]]
    together = np.corrcoef(np.concatenate(columns, 1).T)[:2]
    assert np.abs(together - np.eye(2, 6)).max() < 4 / np.sqrt(both.sum())
