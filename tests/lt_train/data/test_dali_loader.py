"""DALI's views against PIL and torchvision, and its graph for the GPU."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from lt_train.config.schema import ViewConfig
from lt_train.data import dali_loader
from lt_train.data.batch_plan import TrainPlan
from lt_train.data.manifest import Manifest
from lt_train.data.pixels import IMAGENET, normalize
from lt_train.data.upload import upload
from lt_train.distributed import World
from tests.helpers.loading import (
    WHOLE,
    assert_same_batches,
    by_pillow,
    configure,
    drawn,
    evaluate,
    grey_levels,
    keys,
    train,
)


@pytest.mark.parametrize(
    ("resize", "size", "how"), [(256, 224, "bilinear"), (73, 64, "bilinear"), (248, 224, "bicubic")]
)
def test_dali_evaluation_equals_torchvision(photo_root, photos, resize, size, how):
    """Resize and CenterCrop of PIL images, EXIF rotation not applied, as ImageFolder does."""
    view = replace(WHOLE, size=size, resize=resize, interpolation=how)
    config = configure(photo_root, "dali", WHOLE, eval_view=view)
    batches = evaluate(config)
    resizing = transforms.Resize(resize, transforms.InterpolationMode(how))
    reference = transforms.Compose([resizing, transforms.CenterCrop(size)])
    for key, ours in zip(keys(config, batches, "val"), grey_levels(batches), strict=True):
        name = list(photos)[key]
        theirs = reference(Image.open(io.BytesIO(photos[name])).convert("RGB"))
        difference = np.abs(ours - np.asarray(theirs, np.float64))
        assert difference.mean() <= 0.3 and difference.max() <= 2, name


@pytest.mark.parametrize(("views", "how"), [(1, "bilinear"), (2, "bilinear"), (2, "bicubic")])
def test_dali_training_views_equal_pillow_with_the_drawn_box(photo_root, photos, views, how):
    config = configure(photo_root, "dali", ViewConfig(size=112, interpolation=how))
    batches = train(config, views=views)
    names = [list(photos)[key] for key in keys(config, batches)]
    for view in range(views):
        parameters, pixels = drawn(config, batches, view), grey_levels(batches, view)
        assert 0 < parameters.flip.sum() < 40
        rows = zip(names, pixels, parameters.box, parameters.flip, strict=True)
        for name, ours, box, flip in rows:
            theirs = by_pillow(Image.open(io.BytesIO(photos[name])), box, flip, 112, how)
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
        expected = blurred(before, sigma) if sigma > 0 else before
        np.testing.assert_allclose(after, expected, rtol=0, atol=1.01 if sigma > 0 else 0)


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    channels = torch.from_numpy(pixels).permute(2, 0, 1)
    window = 2 * int(np.ceil(3 * sigma)) + 1
    return F.gaussian_blur(channels, window, sigma).permute(1, 2, 0).numpy()


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


def test_whole_images_as_the_gpu_decodes_them_give_the_same_views(demo_root):
    """The GPU's graph (decode whole, resize by DALI) run on the CPU, against the CPU's own (decode
    a part, resize by torch).
    """
    view, second = ViewConfig(size=48, blur_probability=0.5), ViewConfig(size=40)
    config = configure(demo_root, "dali", view, second_view=second, method="moco")
    plan = TrainPlan(config, Manifest(demo_root, "train"), World(), 0, 2)
    source = dali_loader._Source(plan, whole=True)
    pipeline = dali_loader._pipeline(
        source,
        plan,
        dali_loader._resize_by_dali,
        "cpu",
        batch_size=plan.max_batch,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=2,
    )
    pipeline.build()
    for batch in train(config, views=2, last=2):
        outputs = pipeline.run()
        planned = source.planned.popleft()
        assert planned.encoded.sample_ids.tolist() == batch.sample_id.tolist()
        pixels = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        views = [normalize(each, IMAGENET, None) for each in pixels]
        assert len(views) == len(batch.views) == 2
        whole = replace(batch, views=views)
        for index in range(2):
            assert np.abs(grey_levels([whole], index) - grey_levels([batch], index)).mean() < 0.5


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_gpus_images_can_be_decoded_on_the_cpu(demo_root, monkeypatch, split):
    """By the CPU's own graph; what goes to the GPU of a view is its crops, a byte a value."""
    view = ViewConfig(size=48, jitter=(0.4, 0.4, 0.4, 0.1), cutout=0.5)
    config = configure(demo_root, "dali", view)
    with_gpu = World(device=torch.device("cuda", 0))
    own_device, sent = torch.device("cpu"), []

    def note(tensors: list[torch.Tensor], _device: torch.device) -> list[torch.Tensor]:
        sent.extend(tensors)
        return tensors

    own = train(config, last=2) if split == "train" else evaluate(config)
    monkeypatch.setattr(dali_loader, "in_one_copy", note)
    monkeypatch.setattr(dali_loader, "upload", lambda _, *arrays: upload(own_device, *arrays))
    config = replace(config, data=replace(config.data, decode="cpu"))
    there = train(config, with_gpu, last=2) if split == "train" else evaluate(config, with_gpu)
    assert_same_batches(own, there)
    assert {tensor.dtype for tensor in sent} == {torch.uint8}
    assert sum(map(len, sent)) == sum(map(len, own)) and sent[0].shape[3] == 3
