"""Both loaders: pixels against PIL and torchvision, and batches that depend on nothing but the
step.
"""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from lt_train.config.checks import check
from lt_train.config.schema import Config, DataConfig, SamplerConfig, UnlabeledConfig, ViewConfig
from lt_train.data import dali_loader
from lt_train.data.augment import View, draw_view
from lt_train.data.batch_plan import TrainPlan
from lt_train.data.manifest import UNLABELED, Manifest
from lt_train.data.pixels import PIXEL_MEAN, PIXEL_STD, finish
from lt_train.data.rand_augment import apply_operations
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError

LOADERS = ["dali", "resident"]
WHOLE = ViewConfig(
    size=32, crop="center", resize=32, flip_probability=0.0
)  # a 32 x 32 image as it is
PADDED = ViewConfig(size=32, crop="pad", padding=4)
RANDAUGMENT = {"randaugment_ops": 2, "randaugment_magnitude": 15}
JITTER = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8, "grayscale_probability": 0.2}


@pytest.fixture(params=LOADERS)
def loader(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def photo_root(prepare, photos) -> Path:
    """The photos, keyed by their number, for training and evaluation."""
    split = list(photos.values()), list(range(len(photos)))
    return prepare({"train": split, "val": split})


def configure(root: Path, loader: str, view: ViewConfig, **changes) -> Config:
    data = DataConfig(root=str(root), loader=loader, decode_threads=1, eval_batch_size=4)
    return replace(
        Config(data=data, view=view, eval_view=WHOLE, seed=5, global_batch_size=10), **changes
    )


def train(
    config: Config, world: World = World(), views: int = 1, first: int = 0, last: int = 4
) -> list[dict]:
    """Four batches of 10 unless told."""
    return list(RunData(config, world).train(views, first, last))


def evaluate(config: Config, world: World = World()) -> list[dict]:
    return list(RunData(config, world).evaluate("val"))


def grey_levels(batches: list[dict], view: int = 0) -> np.ndarray:
    """(N, H, W, 3), the normalisation undone."""
    pixels = torch.cat([batch["views"][view] for batch in batches]).permute(0, 2, 3, 1)
    return pixels.double().numpy() * PIXEL_STD + PIXEL_MEAN


def joined(batches: list[dict], key: str = "sample_id") -> list[int]:
    return torch.cat([batch[key] for batch in batches]).tolist()


def keys(config: Config, batches: list[dict], split: str = "train") -> list[int]:
    """The number of every sample in the sequence that was prepared."""
    manifest = Manifest(config.data.root, split)
    return [int(manifest.key(sample_id)) for sample_id in joined(batches)]


def drawn(config: Config, batches: list[dict], view: int = 0) -> View:
    """The parameters of the first positions, by which the loader must have made ``batches`` from
    step 0 on.
    """
    manifest, sample_ids = Manifest(config.data.root, "train"), joined(batches)
    sizes = manifest.widths[sample_ids], manifest.heights[sample_ids]
    view_config = config.second_view if view > 0 and config.second_view else config.view
    return draw_view(view_config, config.seed, np.arange(len(sample_ids)), view, *sizes)


def by_pillow(image: Image.Image, box: np.ndarray, flip: bool, size: int) -> np.ndarray:
    """Crop, bilinear and antialiased resize, mirror."""
    top, left, bottom, right = box.astype(int).tolist()
    resized = (
        image.convert("RGB")
        .crop((left, top, right, bottom))
        .resize((size, size), Image.Resampling.BILINEAR)
    )
    return np.asarray(resized, np.float64)[:, ::-1] if flip else np.asarray(resized, np.float64)


def test_batches_are_what_stages_expect(small, loader):
    (batch,) = train(configure(small.root, loader, ViewConfig(size=24)), views=2, last=1)
    assert batch["label"].dtype == batch["sample_id"].dtype == torch.int64
    for view in batch["views"]:
        assert view.shape == (10, 3, 24, 24) and view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)


# --- pixels


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (73, 64)])
def test_dali_evaluation_equals_torchvision(photo_root, photos, resize, size):
    """Resize and CenterCrop of PIL images, EXIF rotation not applied, as ImageFolder does."""
    config = configure(
        photo_root, "dali", WHOLE, eval_view=replace(WHOLE, size=size, resize=resize)
    )
    batches = evaluate(config)
    reference = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size)])
    for key, ours in zip(keys(config, batches, "val"), grey_levels(batches), strict=True):
        name = list(photos)[key]
        theirs = reference(Image.open(io.BytesIO(photos[name])).convert("RGB"))
        difference = np.abs(ours - np.asarray(theirs, np.float64))
        assert difference.mean() <= 0.3 and difference.max() <= 2, name


@pytest.mark.parametrize("views", [1, 2])
def test_dali_training_views_equal_pillow_with_the_drawn_box(photo_root, photos, views):
    config = configure(photo_root, "dali", ViewConfig(size=112))
    batches = train(config, views=views)
    for view in range(views):
        parameters = drawn(config, batches, view)
        assert 0 < parameters.flip.sum() < 40
        rows = zip(
            keys(config, batches),
            grey_levels(batches, view),
            parameters.box,
            parameters.flip,
            strict=True,
        )
        for key, ours, box, flip in rows:
            name = list(photos)[key]
            theirs = by_pillow(Image.open(io.BytesIO(photos[name])), box, flip, 112)
            assert np.abs(ours - theirs).mean() <= 0.5, (name, box)


def test_a_dali_view_does_not_depend_on_how_many_there_are(photo_root):
    """But for the decoder's rounding, where it decodes more of an image."""
    config = configure(photo_root, "dali", ViewConfig(size=64))
    alone, beside = (train(config, views=views, last=2) for views in (1, 2))
    assert np.abs(grey_levels(alone) - grey_levels(beside)).max() <= 1


def test_dali_blur_equals_torchvision_and_leaves_other_samples_alone(photo_root):
    config = configure(photo_root, "dali", ViewConfig(size=64, blur_probability=0.5))
    batches = train(config, last=2)
    sharp = train(replace(config, view=replace(config.view, blur_probability=0.0)), last=2)
    sigmas = drawn(config, batches).blur_sigma.tolist()
    assert 0 < np.count_nonzero(sigmas) < len(sigmas)
    for sigma, before, after in zip(sigmas, grey_levels(sharp), grey_levels(batches), strict=True):
        if sigma > 0:
            pixels = torch.from_numpy(before).permute(2, 0, 1)
            before = (
                F.gaussian_blur(pixels, 2 * int(np.ceil(3 * sigma)) + 1, sigma)
                .permute(1, 2, 0)
                .numpy()
            )
        np.testing.assert_allclose(after, before, rtol=0, atol=1.01 if sigma > 0 else 0)


def test_colour_matrices_reach_the_pixels(small, loader):
    """Times the pixel, plus times the mean pixel of the view, then clipped."""
    config = configure(small.root, loader, replace(WHOLE, **JITTER))
    batches = train(config)
    expected = coloured(drawn(config, batches), grey_levels(train(replace(config, view=WHOLE))))
    assert (expected < 0).any() and (expected > 255).any()
    np.testing.assert_allclose(grey_levels(batches), np.clip(expected, 0, 255), rtol=0, atol=1e-2)


def coloured(view: View, pixels: np.ndarray) -> np.ndarray:
    """The colour matrices applied to (N, H, W, 3) grey levels, not clipped."""
    pixel, mean = np.split(view.colour.astype(np.float64), 2, axis=2)
    return (
        np.einsum("nij,nhwj->nhwi", pixel, pixels)
        + np.einsum("nij,nj->ni", mean, pixels.mean((1, 2)))[:, None, None]
    )


def test_rand_augment_reaches_the_pixels_before_colour(small, loader):
    """Of both loaders alike, on pixels that are flipped already."""
    config = configure(
        small.root, loader, replace(WHOLE, flip_probability=0.5, **RANDAUGMENT, **JITTER)
    )
    batches = train(config)
    view, pixels = drawn(config, batches), small.pixels[keys(config, batches)]
    assert 0 < view.flip.sum() < 40 and len(np.unique(view.operations.operation)) == 14
    pixels = np.where(view.flip[:, None, None, None], pixels[:, :, ::-1], pixels)
    expected = coloured(
        view, apply_operations(torch.from_numpy(pixels), view.operations).double().numpy()
    )
    np.testing.assert_allclose(grey_levels(batches), np.clip(expected, 0, 255), rtol=0, atol=1e-2)


def test_evaluation_gives_every_pixel_as_it_was(small, loader):
    config = configure(small.root, loader, WHOLE)
    batches = evaluate(config)
    np.testing.assert_allclose(
        grey_levels(batches), small.pixels[keys(config, batches, "val")], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("padding", [1, 4, 8])
def test_resident_padded_crops_equal_zero_padding_cropping_and_mirroring(small, padding):
    config = configure(small.root, "resident", replace(PADDED, padding=padding))
    batches = train(config)
    parameters = drawn(config, batches)
    assert 0 < parameters.flip.sum() < 40
    for key, ours, box, flip in zip(
        keys(config, batches), grey_levels(batches), parameters.box, parameters.flip, strict=True
    ):
        top, left = box[:2].astype(int) + padding
        expected = np.pad(small.pixels[key], ((padding, padding), (padding, padding), (0, 0)))[
            top : top + 32, left : left + 32
        ]
        np.testing.assert_allclose(ours, expected[:, ::-1] if flip else expected, rtol=0, atol=1e-4)


def test_resident_views_may_have_paddings_of_their_own(small):
    """Down to none: what one view's crops reach into is not seen by the other."""
    second = ViewConfig(size=30, crop="pad", padding=7, flip_probability=0.0)
    for first in (
        replace(second, padding=1),
        replace(second, padding=0),
        replace(WHOLE, size=30, resize=32),
    ):
        config = configure(small.root, "resident", first, second_view=second)
        for one in (config, replace(config, view=second, second_view=first)):
            batches = train(one, views=2)
            for view in (0, 1):
                corners = drawn(one, batches, view).box[:, :2].astype(int) + 7
                padded = np.pad(small.pixels[keys(one, batches)], ((0, 0), (7, 7), (7, 7), (0, 0)))
                expected = [
                    image[top : top + 30, left : left + 30]
                    for image, (top, left) in zip(padded, corners)
                ]
                np.testing.assert_allclose(grey_levels(batches, view), expected, rtol=0, atol=1e-4)


def ten_times(prepare, image: Image.Image) -> Path:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return prepare({"train": ([buffer.getvalue()] * 10, [0] * 10)})


def test_resident_resized_crops_of_a_white_image_are_white(prepare):
    """What lies beyond the image's edge, padding, must not shine through."""
    config = configure(
        ten_times(prepare, Image.new("RGB", (32, 32), "white")), "resident", ViewConfig(size=32)
    )
    np.testing.assert_allclose(grey_levels(train(config)), 255, rtol=0, atol=1e-4)


def test_resident_resized_crops_equal_pillow(prepare, photos):
    """Enlarged boxes, for which antialiasing makes no difference, of a smooth image."""
    image = Image.open(io.BytesIO(photos["square"])).resize((32, 32), Image.Resampling.BOX)
    config = configure(ten_times(prepare, image), "resident", ViewConfig(size=32, scale=(0.2, 0.8)))
    batches = train(config)
    parameters = drawn(config, batches)
    for ours, box, flip in zip(grey_levels(batches), parameters.box, parameters.flip, strict=True):
        assert np.abs(ours - by_pillow(image, box, flip, 32)).mean() <= 0.5, box


def test_resident_refuses_images_of_several_sizes(photo_root):
    with pytest.raises(UserError, match="90 to 900 pixels; use data.loader=dali"):
        train(configure(photo_root, "resident", PADDED))


# --- batches


@pytest.mark.parametrize(
    "sampler",
    [SamplerConfig(), SamplerConfig("class_balanced", 2)],
    ids=lambda sampler: sampler.name,
)
def test_both_loaders_give_the_same_samples(small, sampler):
    """The plan alone decides; class-balanced batches of 10 hold 2 or 4 of each of the 4 classes."""
    config = configure(small.root, "dali", ViewConfig(size=32), sampler=sampler)
    dali, resident = (
        train(replace(config, data=replace(config.data, loader=loader))) for loader in LOADERS
    )
    assert joined(dali) == joined(resident)
    assert (
        joined(dali, "label")
        == joined(resident, "label")
        == small.labels[keys(config, dali)].tolist()
    )
    if sampler.name == "class_balanced":
        assert np.bincount(joined(dali, "label")).tolist() == [10] * 4


def assert_same_batches(first: list[dict], second: list[dict]) -> None:
    """Bit for bit."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert torch.equal(one["sample_id"], other["sample_id"]) and torch.equal(
            one["label"], other["label"]
        )
        assert all(torch.equal(*views) for views in zip(one["views"], other["views"], strict=True))


def all_ranks(config: Config, ranks: int, views: int) -> list[dict]:
    """The global batches, put together from what each rank gets."""
    shares = [train(config, World(rank, ranks), views) for rank in range(ranks)]
    return [
        {
            "views": [torch.cat(parts) for parts in zip(*(batch["views"] for batch in step))],
            **{key: torch.cat([batch[key] for batch in step]) for key in ("label", "sample_id")},
        }
        for step in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, JITTER, RANDAUGMENT], ids=["plain", "jitter", "randaugment"]
)
def test_views_do_not_depend_on_the_number_of_ranks(small, loader, ranks, options):
    """10 samples on 3 ranks are 3, 3 and 4."""
    config = configure(small.root, loader, ViewConfig(size=32, **options))
    assert_same_batches(all_ranks(config, ranks, views=2), train(config, views=2))


def test_views_do_not_depend_on_the_batch_size(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32, **JITTER, **RANDAUGMENT))
    by_ten, by_twenty = (
        train(config, views=2),
        train(replace(config, global_batch_size=20), views=2, last=2),
    )
    assert joined(by_ten) == joined(by_twenty)
    for view in (0, 1):
        np.testing.assert_array_equal(grey_levels(by_ten, view), grey_levels(by_twenty, view))


@pytest.mark.parametrize("ranks", [1, 3])
def test_later_views_follow_second_view(small, loader, ranks):
    """In size, crop and operations; the first view stays what it is."""
    weak, strong = replace(WHOLE, flip_probability=0.5), ViewConfig(size=24, **RANDAUGMENT)
    config = configure(small.root, loader, weak, second_view=strong)
    batches = all_ranks(config, ranks, views=3)
    assert [tuple(view.shape) for view in batches[0]["views"]] == [
        (10, 3, 32, 32),
        (10, 3, 24, 24),
        (10, 3, 24, 24),
    ]
    of_weak, of_strong = (
        train(replace(config, view=view, second_view=None), views=3) for view in (weak, strong)
    )
    np.testing.assert_array_equal(grey_levels(batches), grey_levels(of_weak))
    for view in (1, 2):
        np.testing.assert_array_equal(grey_levels(batches, view), grey_levels(of_strong, view))
    assert (grey_levels(batches, 1) != grey_levels(batches, 2)).any()


def test_a_second_view_like_the_first_changes_nothing(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32, **JITTER, **RANDAUGMENT))
    assert_same_batches(
        train(replace(config, second_view=config.view), views=2), train(config, views=2)
    )


@pytest.mark.parametrize("blurred", [0, 1])
def test_dali_blurs_only_the_view_that_asks_for_it(photo_root, blurred):
    """Beside a sharp view of another size; but for rounding, where the decoder decodes more of an
    image.
    """
    views = [ViewConfig(size=64), ViewConfig(size=48)]
    views[blurred] = replace(views[blurred], blur_probability=1.0, blur_sigma=(1.0, 2.0))
    batches = train(configure(photo_root, "dali", views[0], second_view=views[1]), views=2, last=2)
    for view, config in enumerate(views):
        alike = train(configure(photo_root, "dali", config), views=2, last=2)
        assert np.abs(grey_levels(batches, view) - grey_levels(alike, view)).max() <= 1


def test_labeled_and_unlabeled_samples_have_the_same_views(small, loader):
    """The second view of either half is smaller and augmented; any number of ranks sees the same
    pixels of each.
    """
    unlabeled = UnlabeledConfig(root=str(small.root), split="val")
    config = configure(
        small.root,
        loader,
        WHOLE,
        second_view=ViewConfig(size=24, **RANDAUGMENT),
        unlabeled=unlabeled,
    )
    for one, other in zip(train(config, views=2), all_ranks(config, 2, views=2), strict=True):
        assert [tuple(view.shape) for view in one["views"]] == [(10, 3, 32, 32), (10, 3, 24, 24)]
        assert int((one["label"] == UNLABELED).sum()) == 5
        orders = [batch["sample_id"].argsort() for batch in (one, other)]
        for views in zip(one["views"], other["views"]):
            assert torch.equal(*(view[order] for view, order in zip(views, orders)))


@pytest.mark.parametrize("key", ["view", "second_view"])
@pytest.mark.parametrize(
    ("loader", "changes", "message"),
    [
        ("dali", {"crop": "pad"}, "crop=pad needs data.loader=resident"),
        ("resident", {"blur_probability": 0.5}, "blur_probability needs data.loader=dali"),
        ("dali", {"size": 0}, "size must be more than 0"),
        ("dali", {"blur_sigma": (2.0, 0.1)}, "blur_sigma must go from the smaller"),
        ("dali", {"randaugment_magnitude": 31}, "randaugment_magnitude from 0 to 30"),
        ("dali", {"randaugment_ops": -1}, "randaugment_ops must be 0 or more"),
    ],
)
def test_views_that_no_loader_can_make_are_refused(tmp_path, key, loader, changes, message):
    with pytest.raises(UserError, match=f"{key}.{message}"):
        check(replace(configure(tmp_path, loader, WHOLE), **{key: replace(WHOLE, **changes)}))


def test_a_second_view_larger_than_its_padded_images_is_refused(small):
    """Whatever padding the first view has."""
    config = configure(
        small.root,
        "resident",
        replace(PADDED, padding=9),
        second_view=replace(PADDED, size=35, padding=1),
    )
    with pytest.raises(
        UserError,
        match=(
            r"second_view.size=35 is larger than the images with second_view.padding=1 round them"
            r" \(34 pixels\)"
        ),
    ):
        train(config, views=2)


def test_starting_at_a_step_equals_skipping_those_before(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32, **JITTER))
    assert_same_batches(train(config, views=2, first=3, last=6), train(config, views=2, last=6)[3:])


def test_a_seed_gives_the_same_batches_again_and_another_seed_others(small, loader):
    config = configure(small.root, loader, ViewConfig(size=32))
    batches = train(config)
    assert_same_batches(train(config), batches)
    assert joined(train(replace(config, seed=6))) != joined(batches)


@pytest.mark.parametrize(("samples", "ranks"), [(7, 4), (2, 4), (7, 1)])
def test_evaluation_covers_every_sample_once_over_all_ranks(small, prepare, loader, samples, ranks):
    """In sample_id order, also where a rank's share is empty."""
    manifest = Manifest(small.root, "train")
    root = prepare(
        {
            "val": (
                [manifest.read(sample_id).tobytes() for sample_id in range(samples)],
                [0] * samples,
            )
        }
    )
    config = configure(root, loader, WHOLE)
    batches = [batch for rank in range(ranks) for batch in evaluate(config, World(rank, ranks))]
    assert joined(batches) == list(range(samples))
    assert all(0 < len(batch["label"]) <= 4 for batch in batches)


# --- damage


def test_training_replaces_a_damaged_sample(small, damaged_copy, loader):
    """An epoch in one batch: the next of its class comes twice, with its own pixels; ranks agree on
    it.
    """
    members = np.flatnonzero(Manifest(small.root, "train").labels == 1).tolist()
    root = damaged_copy(small.root, [members[2]])
    config = configure(root, loader, WHOLE, global_batch_size=23)
    intact = train(replace(config, data=replace(config.data, root=str(small.root))), last=1)
    expected = [
        members[3] if sample_id == members[2] else sample_id for sample_id in joined(intact)
    ]
    batches = train(config, last=1)
    assert joined(batches) == expected and joined(batches, "label") == joined(intact, "label")
    np.testing.assert_allclose(
        grey_levels(batches), small.pixels[keys(config, batches)], rtol=0, atol=1e-4
    )
    assert sum((joined(train(config, World(rank, 2), last=1)) for rank in range(2)), []) == expected


@pytest.mark.parametrize(
    "bad", [[5], [4, 5, 6, 7], [20, 21, 22]], ids=["one", "a whole batch", "the last batch"]
)
def test_evaluation_leaves_out_damaged_samples(small, damaged_copy, loader, bad):
    config = configure(damaged_copy(small.root, bad, "val"), loader, WHOLE)
    batches = evaluate(config)
    assert joined(batches) == [sample_id for sample_id in range(23) if sample_id not in bad]
    np.testing.assert_allclose(
        grey_levels(batches), small.pixels[keys(config, batches, "val")], rtol=0, atol=1e-4
    )


# --- node-local copies


def test_staged_shards_give_the_same_batches(small, tmp_path, loader):
    config = configure(small.root, loader, WHOLE)
    staged = replace(config, data=replace(config.data, cache_dir=str(tmp_path / "scratch")))
    for _ in range(2):  # the second time, what is there already is used
        assert_same_batches(train(staged), train(config))


def test_staging_a_damaged_shard_is_refused_and_names_it(small, damaged_copy, tmp_path):
    config = configure(damaged_copy(small.root, [0]), "resident", PADDED)
    with pytest.raises(UserError, match="train-000000.tar does not match its sha256"):
        train(replace(config, data=replace(config.data, cache_dir=str(tmp_path / "scratch"))))


def test_whole_images_as_the_gpu_decodes_them_give_the_same_views(demo_root):
    """The GPU's graph (decode whole, resize by DALI) run on the CPU, against the CPU's own (decode
    a part, resize by torch).
    """
    config = configure(
        demo_root,
        "dali",
        ViewConfig(size=48, blur_probability=0.5),
        second_view=ViewConfig(size=40),
    )
    plan = TrainPlan(config, RunData(config, World()).manifest("train"), 2, World(), 0, 2)
    source = dali_loader._Source(plan, whole=True)
    settings = {
        "batch_size": plan.max_batch,
        "num_threads": 1,
        "device_id": None,
        "prefetch_queue_depth": 2,
    }
    pipeline = dali_loader._pipeline(source, plan, dali_loader._resize_by_dali, "cpu", **settings)
    pipeline.build()
    for batch in train(config, views=2, last=2):
        outputs = pipeline.run()
        assert source.drawn.popleft()[0].tolist() == batch["sample_id"].tolist()
        for output, expected in zip(outputs, batch["views"], strict=True):
            found = {"views": [finish(torch.from_dlpack(output.as_tensor()), None)]}
            assert np.abs(grey_levels([found]) - grey_levels([{"views": [expected]}])).mean() < 0.5
