"""Augmentation parameters: geometry and colour against torchvision, draws that touch nothing
else's.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as F

from lt_train.config.schema import ViewConfig
from lt_train.data.augment import CENTRE, FIVE_CROPS, Uniforms, draw_view

SEED = 7


def draw(
    config: ViewConfig,
    positions,
    width: int = 320,
    height: int = 240,
    view: int = 0,
    seed: int = SEED,
):
    """A view of images of one size."""
    positions = np.asarray(positions)
    sizes = np.full(len(positions), width), np.full(len(positions), height)
    return draw_view(config, seed, positions, view, *sizes)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: the largest difference between two empirical distributions."""
    at = np.concatenate([first, second])

    def below(values: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.sort(values), at, side="right") / len(values)

    return np.abs(below(first) - below(second)).max()


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(500, 375, (0.08, 1.0)), (64, 64, (0.3, 1.0)), (400, 200, (0.5, 1.0)), (90, 320, (0.08, 1.0))],
)
def test_random_resized_crop_has_the_distribution_of_torchvision(width, height, scale):
    """Area, aspect and position of 4,000 boxes each; 1.95 sqrt(2 / n) is exceeded by chance once in
    a thousand.
    """
    count, names = 4000, ("top", "left", "height", "width")
    config = ViewConfig(crop="random_resized", scale=scale)
    box = draw(config, np.arange(count), width, height).box.astype(np.float64)
    torch.manual_seed(0)
    image, get_params = torch.empty(1, height, width), transforms.RandomResizedCrop.get_params
    reference = np.array([get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)])
    ours = dict(zip(names, [*box[:, :2].T, *(box[:, 2:] - box[:, :2]).T]))
    theirs = dict(zip(names, reference.T.astype(np.float64)))
    for boxes in (ours, theirs):
        boxes["area"] = boxes["height"] * boxes["width"]
        boxes["aspect"] = boxes["width"] / boxes["height"]
    for name, values in ours.items():
        assert distance(values, theirs[name]) < 1.95 * np.sqrt(2 / count), name


@pytest.mark.parametrize(
    ("width", "height"), [(1000, 10), (10, 1000), (997, 3), (3, 997), (63, 2), (5, 41)]
)
def test_random_resized_crop_falls_back_to_torchvisions_centre_crop(width, height):
    """No crop of 90 % of the area has an aspect of 3/4 to 4/3 in images this long."""
    scale = (0.9, 1.0)
    boxes = draw(ViewConfig(crop="random_resized", scale=scale), np.arange(50), width, height).box
    top, left, h, w = transforms.RandomResizedCrop.get_params(
        torch.empty(1, height, width), scale, (3 / 4, 4 / 3)
    )
    np.testing.assert_array_equal(boxes, np.tile([top, left, top + h, left + w], (50, 1)))


def test_random_resized_crop_reaches_every_place_where_its_box_fits():
    """From the first to the last row and column, equally often, for every side of the box."""
    config = ViewConfig(crop="random_resized", scale=(0.3, 1.0))
    boxes = draw(config, np.arange(20_000), 8, 8).box.astype(int)
    for axis in (0, 1):
        sides, starts = boxes[:, axis + 2] - boxes[:, axis], boxes[:, axis]
        for side in range(5, 9):
            counts = np.bincount(starts[sides == side], minlength=9 - side)
            assert len(counts) == 9 - side
            expected = counts.sum() / len(counts)
            assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


def test_random_resized_crop_draws_for_each_images_own_size():
    generator = np.random.default_rng(0)
    widths, heights = generator.integers(20, 800, (2, 500))
    config = ViewConfig(crop="random_resized")
    together = draw_view(config, SEED, np.arange(500), 0, widths, heights).box
    alone = [draw(config, [i], widths[i], heights[i]).box[0] for i in range(500)]
    np.testing.assert_array_equal(together, alone)
    assert (together[:, :2] >= 0).all()
    assert (together[:, 2] <= heights).all() and (together[:, 3] <= widths).all()


@pytest.mark.parametrize("padding", [1, 4])
def test_padded_crop_is_uniform_over_its_offsets(padding):
    places = (2 * padding + 1) ** 2
    config = ViewConfig(size=32, crop="pad", padding=padding)
    boxes = draw(config, np.arange(300 * places), 32, 32).box
    assert (boxes[:, 2:] - boxes[:, :2] == 32).all()
    offsets, counts = np.unique(boxes[:, :2], axis=0, return_counts=True)
    np.testing.assert_array_equal(offsets, np.argwhere(np.ones((2 * padding + 1,) * 2)) - padding)
    chi_square = ((counts - 300) ** 2 / 300).sum()
    assert abs(chi_square - (places - 1)) < 4 * np.sqrt(2 * (places - 1))


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (73, 64), (32, 32), (36, 33)])
def test_centre_crop_has_torchvisions_integer_geometry(resize, size):
    """Resize's size, and where CenterCrop starts in it, read off an image of its coordinates."""
    generator = np.random.default_rng(resize)
    config = ViewConfig(size=size, crop="center", resize=resize, flip_probability=0.0)
    others = generator.integers(8, 400, (60, 2)).tolist()
    for width, height in [(resize, resize), (2 * resize, resize), *others]:
        resized = F.resize(torch.zeros(1, height, width), resize, antialias=False).shape[1:]
        coordinates = torch.stack(torch.meshgrid(*map(torch.arange, resized), indexing="ij"))
        cropped = transforms.CenterCrop(size)(coordinates)
        corners = torch.stack([cropped[:, 0, 0], cropped[:, -1, -1] + 1]).double()
        expected = corners * torch.tensor([height, width]) / torch.tensor(resized)
        box = draw(config, [0], width, height).box[0]
        np.testing.assert_allclose(box, expected.flatten(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("resize", "size"), [(248, 224), (32, 32), (36, 33)])
def test_five_crops_have_torchvisions_geometry(resize, size):
    config = ViewConfig(size=size, crop="center", resize=resize, flip_probability=0.0)
    for height, width in [(resize, resize), (2 * resize, resize), (300, 511)]:
        resized = F.resize(torch.zeros(1, height, width), resize, antialias=False).shape[1:]
        coordinates = torch.stack(torch.meshgrid(*map(torch.arange, resized), indexing="ij"))
        theirs = F.five_crop(coordinates, size)  # the centre comes last
        for place, cropped in zip([*FIVE_CROPS[1:], CENTRE], theirs, strict=True):
            sides = np.array([width]), np.array([height])
            view = draw_view(config, 0, np.array([0]), 0, *sides, place)
            ends = torch.stack([cropped[:, 0, 0], cropped[:, -1, -1] + 1]).double()
            expected = ends * torch.tensor([height, width]) / torch.tensor(resized)
            np.testing.assert_allclose(view.box[0], expected.flatten(), rtol=1e-6, atol=1e-6)


EVERYTHING = ViewConfig(
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    size=64,
    randaugment_ops=2,
    randaugment_magnitude=None,
    cutout=0.5,
)
FIELDS = ("box", "flip", "blur_sigma", "colour")
OF_OPERATIONS = ("operation", "negative", "magnitude")


def test_a_sample_looks_the_same_alone_as_in_any_batch():
    positions = np.random.default_rng(0).integers(0, 2**40, 100)
    batch = draw(EVERYTHING, positions)
    for row, position in enumerate(positions):
        alone = draw(EVERYTHING, [position])
        for field in (*FIELDS, "cutout"):
            ours, theirs = getattr(alone, field)[0], getattr(batch, field)[row]
            np.testing.assert_array_equal(ours, theirs, err_msg=field)
        for field in OF_OPERATIONS:
            ours, theirs = (getattr(view.operations, field) for view in (alone, batch))
            np.testing.assert_array_equal(ours[0], theirs[row], err_msg=field)


def test_rand_augment_leaves_the_other_draws_as_they_are():
    without, with_it = (
        draw(replace(EVERYTHING, randaugment_ops=number), np.arange(100)) for number in (0, 3)
    )
    assert without.operations is None and with_it.operations.operation.shape == (100, 3)
    for field in FIELDS:
        ours, theirs = getattr(without, field), getattr(with_it, field)
        np.testing.assert_array_equal(ours, theirs, err_msg=field)


def test_cutout_leaves_the_other_draws_as_they_are():
    without, with_it = (
        draw(replace(EVERYTHING, cutout=share), np.arange(100)) for share in (0.0, 0.5)
    )
    assert without.cutout is None and with_it.cutout.shape == (100, 4)
    for field in FIELDS:
        ours, theirs = getattr(without, field), getattr(with_it, field)
        np.testing.assert_array_equal(ours, theirs, err_msg=field)
    for field in OF_OPERATIONS:
        ours, theirs = (getattr(view.operations, field) for view in (without, with_it))
        np.testing.assert_array_equal(ours, theirs, err_msg=field)


def test_cutout_is_a_square_of_any_size_up_to_its_share_about_any_pixel():
    boxes = draw(ViewConfig(size=64, cutout=0.5), np.arange(20_000)).cutout
    assert (boxes >= 0).all() and (boxes <= 64).all()
    (height, width), middle = (boxes[:, 2:] - boxes[:, :2]).T, (boxes[:, 2:] + boxes[:, :2]) / 2
    assert np.abs(middle.mean(0) - 32).max() < 4 * 64 / np.sqrt(12 * len(boxes))
    whole = (np.abs(middle - 32) < 16).all(1)  # so far from the border that nothing is cut off
    sides = height[whole]
    assert (sides == width[whole]).all() and (sides.min(), sides.max()) == (0, 32)
    assert abs(sides.mean() - 16) < 4 * 32 / np.sqrt(12 * len(sides))
    assert 0.2 < whole.mean() < 0.3 and (height != width).any()


@pytest.mark.parametrize(
    "other", [{"view": 1}, {"seed": SEED + 1}, {"positions": np.arange(1000) + 2**32}]
)
def test_views_seeds_and_positions_are_drawn_independently(other):
    """No box is repeated, and neither areas nor the other draws of the same row go together."""
    first = draw(EVERYTHING, np.arange(1000))
    second = draw(EVERYTHING, **{"positions": np.arange(1000), **other})
    assert (first.box != second.box).any(1).mean() > 0.99
    assert (first.operations.operation != second.operations.operation).any(1).mean() > 0.98
    heights = [view.box[:, 2] - view.box[:, 0] for view in (first, second)]
    for values in (heights, (first.flip, second.flip)):
        assert abs(np.corrcoef(*values)[0, 1]) < 4 / np.sqrt(1000)


def test_transforms_of_one_sample_are_drawn_independently():
    view = draw(EVERYTHING, np.arange(4000))
    height, width = (view.box[:, 2:] - view.box[:, :2]).T
    cutout = view.cutout[:, 2:].sum(1)
    draws = [height * width, view.flip, view.blur_sigma > 0, view.colour[:, 0, 0], cutout]
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(4000)


@pytest.mark.parametrize("probability", [0.2, 0.8])
@pytest.mark.parametrize(
    ("option", "happened"),
    [
        ("flip_probability", lambda view: view.flip),
        ("blur_probability", lambda view: view.blur_sigma > 0),
        ("jitter_probability", lambda view: (view.colour[:, :, :3] != np.eye(3)).any((1, 2))),
        ("grayscale_probability", lambda view: (view.colour[:, 0] == view.colour[:, 1]).all(1)),
    ],
)
def test_every_transform_happens_as_often_as_asked(option, happened, probability):
    count = 5000
    config = ViewConfig(jitter=(0.4, 0.4, 0.4, 0.1), **{option: probability})
    share = happened(draw(config, np.arange(count))).mean()
    assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / count)


def test_what_is_switched_off_is_not_drawn():
    view = draw(ViewConfig(crop="center", flip_probability=0.0), np.arange(10))
    assert view.blur_sigma is None and view.colour is None and view.operations is None
    assert not view.flip.any()


def test_blur_sigmas_are_uniform_in_their_range():
    config = ViewConfig(blur_probability=1.0, blur_sigma=(0.1, 2.0))
    sigmas = draw(config, np.arange(4000)).blur_sigma
    assert distance(sigmas, np.linspace(0.1, 2.0, 4000)) < 1.63 / np.sqrt(4000)


# colour: float images in [0, 1], mid-grey enough that torchvision has nothing to clip


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """(3, 24, 20) with a colour cast, so that the channels cannot be mistaken for each other."""
    noise = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    return 0.35 + 0.15 * noise + torch.tensor([0.1, 0.0, 0.05])[:, None, None]


def apply_colour(colour: np.ndarray, image: torch.Tensor) -> torch.Tensor:
    """The pixel part times every pixel plus the mean part times the mean pixel, as View says."""
    pixel, mean = torch.from_numpy(colour).double().split(3, 1)
    pixels = image.double().flatten(1)
    return (pixel @ pixels + mean @ pixels.mean(1, keepdim=True)).view(image.shape)


def turn_hue(image: torch.Tensor, turns: float) -> torch.Tensor:
    """Rotate I + jQ of YIQ by a share of the full circle."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    luma, in_phase, quadrature = to_yiq @ image.double().flatten(1).numpy()
    turned = (in_phase + 1j * quadrature) * np.exp(2j * np.pi * turns)
    rgb = np.linalg.solve(to_yiq, [luma, turned.real, turned.imag])
    return torch.from_numpy(rgb).view(image.shape)


OPERATIONS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, turn_hue)
# What each operation's factor is, read from the first entry of a matrix that holds it alone
FACTORS = (lambda entry: entry, lambda entry: entry, lambda entry: (entry - 0.2989) / (1 - 0.2989))


@pytest.mark.parametrize("operation", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
def test_one_kind_of_jitter_equals_torchvision(image, operation):
    jitter = [0.0] * 4
    jitter[operation] = 0.3
    colours = draw(ViewConfig(jitter=tuple(jitter)), np.arange(500)).colour
    factors = np.array([FACTORS[operation](float(colour[0, 0])) for colour in colours])
    uniform = np.linspace(0.7, 1.3, 500)
    assert distance(factors, uniform) < 1.63 / np.sqrt(500), "factors are uniform"
    for colour, factor in zip(colours[:20], factors):
        ours, theirs = apply_colour(colour, image).float(), OPERATIONS[operation](image, factor)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_hue_jitter_turns_the_chroma_plane(image):
    """The angle is read off one pixel and then holds for all of them."""
    colours = draw(ViewConfig(jitter=(0.0, 0.0, 0.0, 0.1)), np.arange(500)).colour
    angles = np.array([hue_turn(image, apply_colour(colour, image)) for colour in colours])
    assert distance(angles, np.linspace(-0.1, 0.1, 500)) < 1.63 / np.sqrt(500), "angles are uniform"
    for colour, turns in zip(colours[:20], angles):
        ours, theirs = apply_colour(colour, image), turn_hue(image, turns)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def hue_turn(before: torch.Tensor, after: torch.Tensor) -> float:
    chroma = np.array([0.596 + 0.211j, -0.274 - 0.523j, -0.322 + 0.312j])
    turned, start = (chroma @ image[:, 0, 0].numpy() for image in (after, before))
    return np.angle(turned / start) / (2 * np.pi)


def test_grayscale_equals_torchvision(image):
    colour = draw(ViewConfig(grayscale_probability=1.0), [0]).colour[0]
    gray = apply_colour(colour, image).float()
    torch.testing.assert_close(gray, F.rgb_to_grayscale(image, 3), atol=1e-4, rtol=0)


def test_grayscale_follows_the_jitter(image):
    jitter = {"jitter": (0.2, 0.2, 0.2, 0.1)}
    plain = draw(ViewConfig(**jitter), np.arange(20)).colour
    gray = draw(ViewConfig(**jitter, grayscale_probability=1.0), np.arange(20)).colour
    for before, after in zip(plain, gray):
        expected = F.rgb_to_grayscale(apply_colour(before, image), 3)
        torch.testing.assert_close(apply_colour(after, image), expected, atol=1e-4, rtol=0)


def test_a_whole_jitter_equals_its_four_operations_in_the_drawn_order(image):
    """The draws: whether to jitter, four factors, four numbers whose ranks are the order."""
    jitter = np.array([0.2, 0.2, 0.2, 0.1])
    config = ViewConfig(crop="center", flip_probability=0.0, jitter=tuple(jitter.tolist()))
    positions = np.arange(200)
    colours, draws = draw(config, positions).colour, Uniforms(SEED, positions, 0)(9)
    orders = draws[:, 5:].argsort(1)
    assert len(np.unique(orders, axis=0)) == 24
    for colour, order, amounts in zip(colours, orders, (2 * draws[:, 1:5] - 1) * jitter):
        expected = image.double()
        for operation in order:
            expected = OPERATIONS[operation](expected, amounts[operation] + (operation < 3))
        torch.testing.assert_close(apply_colour(colour, image), expected, atol=1e-3, rtol=0)
