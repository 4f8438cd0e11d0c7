"""Resident loader: small images of one size, all in one uint8 tensor on the device.

Decoded once, augmented as whole batches. No worker processes and no decoding after the start. A
crop is one gather of rows: the images lie zero-padded in memory, so a row of a crop is a run of
consecutive bytes, at any offset.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lt_train.console import working
from lt_train.data.augment import View
from lt_train.data.batch import Batch
from lt_train.data.batch_plan import BatchPlan
from lt_train.data.manifest import Manifest, wrong_size
from lt_train.data.pixels import Scale, normalize
from lt_train.data.upload import upload
from lt_train.errors import UserError

# small batches are made several at a time, which spreads the cost of calls into NumPy and torch
SAMPLES_AT_ONCE = 1024


def load_resident(
    manifest: Manifest, device: torch.device, threads: int, padding: int
) -> torch.Tensor:
    """All images of a split as (N, side, side, 3) uint8 with ``padding`` zero pixels all round.

    Damaged ones are zero.
    """
    sides = {*np.unique(manifest.widths).tolist(), *np.unique(manifest.heights).tolist()}
    if not sides:
        raise UserError(f"{manifest.root}/{manifest.split} has no images")
    if len(sides) != 1:
        raise UserError(
            "data.loader=resident needs square images of one size, but "
            f"{manifest.root}/{manifest.split} has sides of {min(sides)} to {max(sides)} pixels; "
            "use data.loader=dali"
        )
    side = sides.pop()
    images = np.zeros((len(manifest), side + 2 * padding, side + 2 * padding, 3), np.uint8)
    inner = images[:, padding : padding + side, padding : padding + side]

    def decode(sample_id: int) -> None:
        content = manifest.read(sample_id)
        if content is None:
            return
        try:
            image = _decode(content, side)
        except MemoryError:  # no fault of the image
            raise
        except Exception as error:  # a damaged image can raise anything
            manifest.reject(sample_id, f"it does not decode: {error}")
            return
        if image.shape == (side, side, 3):
            inner[sample_id] = image
        else:
            manifest.reject(sample_id, wrong_size(image.shape[1::-1], (side, side)))

    done = 0
    where = f"{manifest.root}/{manifest.split}"
    with (
        working(lambda: f"reading {where}: {done:,} of {len(manifest):,} images"),
        ThreadPoolExecutor(threads) as pool,
    ):
        for _ in pool.map(decode, range(len(manifest))):
            done += 1
    return torch.from_numpy(images).to(device)


def _decode(content: np.ndarray, side: int) -> np.ndarray:
    """An encoded image of ``side`` x ``side`` pixels as (side, side, 3) uint8."""
    header = b"P6\n%d %d\n255\n" % (side, side)
    # raw pixels, as pools are stored: 30 times as fast
    if content[: len(header)].tobytes() == header and len(content) == len(header) + 3 * side**2:
        return content[len(header) :].reshape(side, side, 3)
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


class ResidentLoader:
    """Iterates the batches of ``plan`` once.

    ``images``: as :func:`load_resident` made them, with ``padding``.
    """

    def __init__(self, plan: BatchPlan, images: torch.Tensor, padding: int, scale: Scale):
        self.plan, self.images, self.padding, self.scale = plan, images, padding, scale
        self.device = images.device
        (self.labels,) = upload(self.device, np.array(plan.manifest.labels, np.int64))
        # a damaged sample was found while decoding; its replacement is looked up once
        bad = list(plan.manifest.bad) if plan.replace_bad else []
        self.stand_in = {
            sample_id: plan.manifest.read_or_replace(sample_id)[0] for sample_id in bad
        }

    def __iter__(self) -> Iterator[Batch]:
        every = self.plan.batches
        together = max(1, SAMPLES_AT_ONCE // self.plan.max_batch)
        for start in range(every.start, every.stop, together):
            yield from self._make(range(start, min(start + together, every.stop)))

    def _make(self, batches: range) -> Iterator[Batch]:
        wanted, sizes = self.plan.sample_ids(batches), self.plan.batch_sizes(batches)
        drawn = self.plan.views(batches, wanted)  # by the samples that were planned
        used = self._replaced(wanted)
        (sample_ids,) = upload(self.device, used)
        # whoever evaluates computes in bf16, in which a box would lie a tenth of a pixel beside
        with torch.autocast(self.device.type, enabled=False):
            views = [self._view(view, sample_ids).split(sizes) for view in drawn]
        together = Batch(
            views=[],
            label=self.labels[sample_ids],
            sample_id=sample_ids,
            place=self.plan.places(batches),
            is_labeled=self.plan.manifest.is_labeled(used),
        )
        start = 0
        for size, *pixels in zip(sizes, *views):
            batch = replace(together.rows(slice(start, start + size)), views=pixels)
            start += size
            if self.plan.manifest.bad and not self.plan.replace_bad:
                batch = _without(batch, self.plan.manifest.bad)
            if len(batch):
                yield batch

    def _replaced(self, wanted: np.ndarray) -> np.ndarray:
        if not self.stand_in:
            return wanted
        used = [self.stand_in.get(sample_id, sample_id) for sample_id in wanted.tolist()]
        return np.array(used, np.int64)

    def _view(self, view: View, sample_ids: torch.Tensor) -> torch.Tensor:
        unscaled = bool((view.box[:, 2:] - view.box[:, :2] == view.size).all())
        pixels = self._crop(view, sample_ids) if unscaled else self._resized_crop(view, sample_ids)
        if view.flip.any():
            (flip,) = upload(self.device, np.flatnonzero(view.flip))
            pixels.index_copy_(0, flip, pixels.index_select(0, flip).flip(2))
        return normalize(pixels, self.scale, view)

    def _crop(self, view: View, sample_ids: torch.Tensor) -> torch.Tensor:
        """Whole-pixel crops: one gather of rows of pixels, each a run of consecutive bytes."""
        side = self.images.shape[1]
        (corner,) = upload(self.device, view.box[:, :2].astype(np.int64) + self.padding)
        rows = torch.arange(view.size, device=self.device)
        first_pixel = (sample_ids * side + corner[:, 0]) * side + corner[:, 1]
        starts = first_pixel[:, None] + rows * side
        pixels = self.images.numel() // 3
        every_run = (pixels - view.size + 1, view.size * 3)  # one begins at each pixel
        runs = self.images.view(-1).as_strided(every_run, (3, 1))
        # 5 times as fast as indexing, which copies byte after byte on the CPU
        rows = runs.index_select(0, starts.view(-1))
        return rows.view(len(sample_ids), view.size, view.size, 3)

    def _resized_crop(self, view: View, sample_ids: torch.Tensor) -> torch.Tensor:
        """Boxes of any size; antialiasing would matter little for images this small."""
        side = self.images.shape[1]
        (box,) = upload(self.device, view.box + self.padding)
        top, left, bottom, right = box.unbind(1)
        theta = torch.zeros(len(box), 2, 3, device=self.device)
        theta[:, 0, 0], theta[:, 0, 2] = (right - left) / side, (right + left) / side - 1
        theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / side, (bottom + top) / side - 1
        grid = F.affine_grid(theta, [len(box), 3, view.size, view.size], align_corners=False)
        # look no further than the box, as cutting it out first would: beyond it lies the padding
        low, high = torch.stack([left, top], 1) + 0.5, torch.stack([right, bottom], 1) - 0.5
        grid = grid.clamp((low * 2 / side - 1)[:, None, None], (high * 2 / side - 1)[:, None, None])
        source = self.images[sample_ids].permute(0, 3, 1, 2).float()
        sampled = F.grid_sample(source, grid, view.interpolation, align_corners=False)
        # a cubic curve goes beyond the values that it connects
        pixels = sampled.permute(0, 2, 3, 1).round().clamp_(0, 255)
        return pixels.to(torch.uint8).contiguous()


def _without(batch: Batch, bad: dict[int, str]) -> Batch:
    """The batch without damaged samples."""
    intact = [sample_id not in bad for sample_id in batch.sample_id.tolist()]
    return batch.rows(np.flatnonzero(intact))
