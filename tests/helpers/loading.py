"""What the tests of the loaders share: configs of small sets, their batches, and what must be in
them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lt_train.config.schema import Config, DataConfig, ViewConfig
from lt_train.data.augment import View, draw_view
from lt_train.data.batch import Batch
from lt_train.data.manifest import Manifest
from lt_train.data.pixels import IMAGENET
from lt_train.data.run_data import RunData
from lt_train.distributed import World

ALONE = World()
# a 32 x 32 image as it is
WHOLE = ViewConfig(size=32, crop="center", resize=32, flip_probability=0.0)
RANDAUGMENT = {"randaugment_ops": 2, "randaugment_magnitude": None}
JITTER = {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 0.8, "grayscale_probability": 0.2}
METHOD_OF_VIEWS = {1: "classifier", 2: "moco", 3: "proco"}

# in grey levels
PIXEL_MEAN, PIXEL_STD = (tuple(255 * value for value in values) for values in IMAGENET)


def configure(root: Path, loader: str, view: ViewConfig, **changes) -> Config:
    data = DataConfig(root=str(root), loader=loader, decode_threads=1, eval_batch_size=4)
    config = Config(data=data, view=view, eval_view=WHOLE, seed=5, global_batch_size=10)
    return replace(config, **changes)


def train(
    config: Config, world: World = ALONE, views: int = 1, first: int = 0, last: int = 4
) -> list[Batch]:
    """Four batches of 10 unless told, for a method that takes so many views."""
    config = replace(config, method=METHOD_OF_VIEWS[views])
    return list(RunData(config, world).train(first, last))


def evaluate(config: Config, world: World = ALONE) -> list[Batch]:
    return list(RunData(config, world).evaluate("val"))


def all_ranks(config: Config, ranks: int, views: int) -> list[Batch]:
    """The global batches, put together from what each rank gets."""
    shares = [train(config, World(rank, ranks), views) for rank in range(ranks)]
    return [_together(parts) for parts in zip(*shares, strict=True)]


def _together(parts: tuple[Batch, ...]) -> Batch:
    places = [part.place for part in parts]
    is_labeled = [part.is_labeled for part in parts]
    views = zip(*(part.views for part in parts))
    return Batch(
        views=[torch.cat(pixels) for pixels in views],
        label=torch.tensor(labels(parts)),
        sample_id=torch.tensor(sample_ids(parts)),
        place=np.concatenate(places),
        is_labeled=np.concatenate(is_labeled),
    )


def sample_ids(batches: Sequence[Batch]) -> list[int]:
    return torch.cat([batch.sample_id for batch in batches]).tolist()


def labels(batches: Sequence[Batch]) -> list[int]:
    return torch.cat([batch.label for batch in batches]).tolist()


def keys(config: Config, batches: list[Batch], split: str = "train") -> list[int]:
    """The number of every sample in the sequence that was prepared."""
    manifest = Manifest(config.data.root, split)
    return [int(manifest.key(sample_id)) for sample_id in sample_ids(batches)]


def grey_levels(batches: list[Batch], view: int = 0) -> np.ndarray:
    """(N, H, W, 3), the normalisation undone."""
    pixels = torch.cat([batch.views[view] for batch in batches]).permute(0, 2, 3, 1)
    return pixels.double().numpy() * PIXEL_STD + PIXEL_MEAN


def drawn(config: Config, batches: list[Batch], view: int = 0) -> View:
    """The parameters of the first positions, by which the loader must have made ``batches`` from
    step 0 on.
    """
    manifest, ids = Manifest(config.data.root, "train"), sample_ids(batches)
    sizes = manifest.widths[ids], manifest.heights[ids]
    view_config = config.second_view if view > 0 and config.second_view else config.view
    return draw_view(view_config, config.seed, np.arange(len(ids)), view, *sizes)


def by_pillow(
    image: Image.Image, box: np.ndarray, flip: bool, size: int, how: str = "bilinear"
) -> np.ndarray:
    """Crop, antialiased resize, mirror."""
    top, left, bottom, right = box.astype(int).tolist()
    cropped = image.convert("RGB").crop((left, top, right, bottom))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = np.asarray(cropped.resize((size, size), filters[how]), np.float64)
    return resized[:, ::-1] if flip else resized


def assert_same_batches(first: list[Batch], second: list[Batch]) -> None:
    """Bit for bit."""
    assert len(first) == len(second) > 0
    for one, other in zip(first, second):
        assert torch.equal(one.sample_id, other.sample_id)
        assert torch.equal(one.label, other.label)
        assert one.place.tolist() == other.place.tolist()
        assert one.is_labeled.tolist() == other.is_labeled.tolist()
        assert all(torch.equal(*views) for views in zip(one.views, other.views, strict=True))
