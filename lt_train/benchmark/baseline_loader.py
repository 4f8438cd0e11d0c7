"""What most projects load images with, for the benchmark to compare against: ImageFolder, PIL
transforms, a DataLoader.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from lt_train.config.schema import ViewConfig
from lt_train.data.manifest import Manifest
from lt_train.data.pixels import IMAGENET, Scale
from lt_train.data.rand_augment import LARGEST_MAGNITUDE

WORKERS = 2
MOST_IMAGES = 4096  # enough that caching images would not show, few enough to write out quickly


def write_image_folder(manifest: Manifest, root: Path) -> None:
    """Write evenly spaced images of a split, byte for byte, as class folders."""
    places = np.linspace(0, len(manifest) - 1, min(len(manifest), MOST_IMAGES))
    for sample_id in np.unique(places.astype(int)):
        content = manifest.read(sample_id)
        if content is not None:
            folder = root / f"{manifest.labels[sample_id]:05d}"
            folder.mkdir(parents=True, exist_ok=True)
            # ImageFolder goes by the suffix, PIL by the content
            (folder / f"{sample_id:08d}.jpg").write_bytes(content)


def baseline_batches(root: Path, views: list[ViewConfig], batch_size: int) -> Iterator[tuple]:
    """Batches without end of images in each of ``views``, with the transforms that they ask for."""
    transforms_in_order = [make_transform(view) for view in views]

    def see(image: Image.Image) -> list[torch.Tensor]:
        return [transform(image) for transform in transforms_in_order]

    images = ImageFolder(str(root), see)
    loader = DataLoader(
        images,
        batch_size=batch_size,
        # so many that there is no pause between epochs
        sampler=RandomSampler(images, replacement=True, num_samples=2**40),
        num_workers=WORKERS,
        multiprocessing_context="fork",  # the transform is a closure
    )
    return iter(loader)


def make_transform(view: ViewConfig, scale: Scale = IMAGENET) -> transforms.Compose:
    """torchvision's own transforms for a training view."""
    steps: list = []
    how = InterpolationMode(view.interpolation)
    if view.crop == "random_resized":
        steps.append(transforms.RandomResizedCrop(view.size, view.scale, view.ratio, how))
    elif view.crop == "pad":
        steps.append(transforms.RandomCrop(view.size, view.padding))
    else:
        steps += [transforms.Resize(view.resize, how), transforms.CenterCrop(view.size)]
    if any(view.jitter):
        jitter = transforms.ColorJitter(*view.jitter)
        steps.append(transforms.RandomApply([jitter], view.jitter_probability))
    if view.grayscale_probability > 0:
        steps.append(transforms.RandomGrayscale(view.grayscale_probability))
    if view.blur_probability > 0:
        width = round(2 * view.blur_sigma[1]) * 2 + 1
        blur = transforms.GaussianBlur(width, view.blur_sigma)
        steps.append(transforms.RandomApply([blur], view.blur_probability))
    if view.flip_probability > 0:
        steps.append(transforms.RandomHorizontalFlip(view.flip_probability))
    if view.randaugment_ops > 0 and view.randaugment_magnitude is not None:
        steps.append(transforms.RandAugment(view.randaugment_ops, view.randaugment_magnitude))
    elif view.randaugment_ops > 0:
        any_magnitude = [transforms.RandAugment(1, level) for level in range(LARGEST_MAGNITUDE + 1)]
        steps += [transforms.RandomChoice(any_magnitude)] * view.randaugment_ops
    steps += [transforms.ToTensor(), transforms.Normalize(*scale)]
    if view.cutout > 0:  # with squares of an area, not a side, that is uniform
        steps.append(transforms.RandomErasing(1.0, (0.0, view.cutout**2), (1.0, 1.0)))
    return transforms.Compose(steps)
