"""DALI loader: decodes JPEG, PNG, ... on the GPU or on the CPU.

The graph is the same. It is fed bytes and per-sample parameters and draws nothing itself: decode
the part of the image that any view needs, then one antialiased resize per view straight from its
box (mirrored by a swapped box), then blur where one was drawn.

Two operators differ. On the GPU, images are decoded whole, since the hardware decoder knows no
parts of images (an H100 gave 11,600 against 9,300 training crops/s). On the CPU, training crops are
resized by torch, whose uint8 kernel took a tenth of the time of DALI's for the same pixels (0.13
against 1.27 ms for 270 x 370 -> 224 x 224).
"""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from torch.nn import functional as F

from lt_train.data.augment import View
from lt_train.data.batch import Batch
from lt_train.data.batch_plan import NONE_FAILED, BatchPlan, EncodedBatch, read_batch
from lt_train.data.decoder import TINY, Decoder, decoded, reason_of
from lt_train.data.pixels import Scale, normalize
from lt_train.data.upload import in_one_copy, upload
from lt_train.distributed import rank_share

# of an error that no image is to blame for
OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|cudaError|CUDA runtime", re.IGNORECASE)
# output pixels; how far beyond a box an antialiased resize looks, with one to spare
CONTEXT = {"bilinear": 2, "bicubic": 3}
BY_DALI = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
AHEAD = 4  # batches that are prepared before DALI asks, each by a thread: disks may be far away
READER = "read_batch"  # how those threads are called


class DaliLoader:
    """Iterates the batches of ``plan`` once.

    DALI decodes two batches ahead in ``threads`` threads of its own, ``on_gpu`` or else on the CPU:
    there, crops are uint8 when they go to ``device``.
    """

    def __init__(
        self, plan: BatchPlan, device: torch.device, threads: int, scale: Scale, on_gpu: bool
    ):
        self.plan, self.device, self.threads, self.scale = plan, device, threads, scale
        self.on_gpu = on_gpu

    def __iter__(self) -> Iterator[Batch]:
        with closing(_Source(self.plan, whole=self.on_gpu)) as source:
            yield from self._batches(source)

    def _batches(self, source: "_Source") -> Iterator[Batch]:
        by_dali = self.on_gpu or not self.plan.replace_bad  # evaluation's boxes may be fractional
        resize = _resize_by_dali if by_dali else _TorchResize(self.threads)
        pipeline = self._pipeline(source, resize)
        stream = torch.cuda.current_stream() if self.on_gpu else None
        while True:
            try:
                outputs = pipeline.run(stream)
            except StopIteration:
                return
            except RuntimeError as error:
                if not self._found_undecodable(source, error):
                    raise
                pipeline = self._pipeline(source, resize)  # one that has failed is of no more use
                continue
            planned = source.planned.popleft()
            sample_ids, manifest = planned.encoded.sample_ids, self.plan.manifest
            labels = manifest.labels[sample_ids].astype(np.int64)
            label, sample_id = upload(self.device, labels, sample_ids)
            yield Batch(
                # pinning and `normalize` copy, so DALI may reuse its memory for the next run
                views=[self._normalized(*pair) for pair in zip(outputs, planned.views)],
                label=label,
                sample_id=sample_id,
                place=planned.encoded.places,
                is_labeled=manifest.is_labeled(sample_ids),
            )

    def _pipeline(self, source: "_Source", resize: Callable):
        pipeline = _pipeline(
            source,
            self.plan,
            resize,
            batch_size=self.plan.max_batch,
            num_threads=self.threads,
            **self._place(),
            prefetch_queue_depth=2,
        )
        pipeline.build()
        return pipeline

    def _place(self) -> dict[str, Any]:
        """Where a graph decodes, as DALI calls it."""
        if self.on_gpu:
            return {"device": "mixed", "device_id": self.device.index}
        return {"device": "cpu", "device_id": None}

    def _found_undecodable(self, source: "_Source", error: RuntimeError) -> bool:
        """Whether images are to blame for ``error``: DALI names none, or not by its sample id.

        Then the source goes back to the batch that failed, to do without them.
        """
        if OUT_OF_MEMORY.search(str(error)):
            return False
        decoder = Decoder(1, **self._place())
        found = False
        for planned in source.planned:
            for place, sample_id, reason in _undecodable(planned, decoder):
                decoder([TINY])  # where this fails too, something else is at fault
                self.plan.manifest.count_bad(sample_id, f"it does not decode: {reason}")
                source.count_failed(planned.index, place, sample_id)
                found = True
        if found:
            source.go_back()
        return found

    def _normalized(self, output, view: View) -> torch.Tensor:
        pixels = torch.from_dlpack(output.as_tensor())
        if pixels.device.type != self.device.type:  # decoded on the CPU for a GPU
            (pixels,) = in_one_copy([pixels], self.device)
        with torch.autocast(self.device.type, enabled=False):  # of whoever evaluates in bf16
            return normalize(pixels, self.scale, view)


@dataclass(frozen=True)
class _Planned:
    """A batch on its way; ``inputs``: what the graph is fed with."""

    index: int
    encoded: EncodedBatch
    views: list[View]
    inputs: list


class _Source:
    """Feeds the graph with batches that threads prepare ahead: read, checked and drawn.

    DALI asks for a batch on the thread that waits for one, before it starts any of its work. What
    does not pass through the graph waits in ``planned``, first in, first out. ``failed``: by batch
    and place in it, the samples that did not decode there. Another part of the same image may
    decode: were it then left out as well, what is trained on would depend on what this process
    happened to see before.
    """

    def __init__(self, plan: BatchPlan, whole: bool):
        self.plan, self.whole = plan, whole
        self.indices = iter(plan.batches)
        self.ahead: deque[Future[_Planned]] = deque()
        self.planned: deque[_Planned] = deque()
        self.failed: dict[int, dict[int, set[int]]] = {}
        self.pool = ThreadPoolExecutor(AHEAD, READER)

    def __call__(self, _batch_info) -> list:
        planned = self._next()
        while not planned.encoded.contents:  # evaluation may leave out a whole batch of damaged
            planned = self._next()
        self.planned.append(planned)
        return planned.inputs

    def _next(self) -> "_Planned":
        """The next batch; what reading it has raised comes up here, when it is its turn."""
        for index in itertools.islice(self.indices, AHEAD - len(self.ahead)):
            self.ahead.append(self.pool.submit(self._prepared, index))
        if not self.ahead:
            raise StopIteration
        return self.ahead.popleft().result()

    def _prepared(self, index: int) -> "_Planned":
        encoded = read_batch(self.plan, index, self.failed.get(index, NONE_FAILED))
        views = self.plan.views(range(index, index + 1), encoded.sample_ids)
        manifest = self.plan.manifest
        sides = manifest.heights[encoded.sample_ids], manifest.widths[encoded.sample_ids]
        sizes = np.stack(sides, 1)
        start, stop = (np.zeros_like(sizes), sizes) if self.whole else _needed_part(views, sizes)
        inputs = [encoded.contents] if self.whole else [encoded.contents, start, stop - start]
        for view, blur in zip(views, self.plan.blurs):
            inputs += _view_inputs(view, start, blur)
        return _Planned(index, encoded, views, inputs)

    def count_failed(self, batch: int, place: int, sample_id: int) -> None:
        self.failed.setdefault(batch, {}).setdefault(place, set()).add(sample_id)

    def go_back(self) -> None:
        """To the first batch that is not done; what was prepared of those after it is of no use."""
        for batch in self.ahead:
            batch.cancel()
        self.ahead.clear()
        self.indices = iter(range(self.planned[0].index, self.plan.batches.stop))
        self.planned.clear()

    def close(self) -> None:
        """End the threads, each after the batch that it is at: nobody waits for a disk then."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def _undecodable(planned: _Planned, decoder: Decoder) -> Iterator[tuple[int, int, str]]:
    """Place, sample id and reason of every image whose part that is needed does not decode."""
    per_image = planned.inputs[: 1 if decoder.device == "mixed" else 3]
    ids, places = planned.encoded.sample_ids.tolist(), planned.encoded.places.tolist()
    for place, sample_id, *inputs in zip(places, ids, *per_image, strict=True):
        try:
            decoder(*([value] for value in inputs))
        except RuntimeError as error:
            yield place, sample_id, reason_of(error)


def _needed_part(views: list[View], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (B, 2) int32 of the smallest rectangle that holds all views, inside the images.

    ``sizes`` (B, 2): height and width of the images.
    """
    starts, stops = [], []
    for view in views:
        first, last = view.box[:, :2], view.box[:, 2:]
        beyond = CONTEXT[view.interpolation]
        margin = beyond * np.ceil((last - first) / view.size) * view.context
        starts.append(first - margin)
        stops.append(last + margin)
    start = np.maximum(np.floor(np.min(starts, 0)), 0)
    stop = np.minimum(np.ceil(np.max(stops, 0)), sizes)
    return start.astype(np.int32), stop.astype(np.int32)


def _view_inputs(view: View, start: np.ndarray, blur: bool) -> list[np.ndarray]:
    """A view's first and last corner in the decoded part, then its blur sigma if any.

    Left and right are swapped to mirror.
    """
    box = view.box - np.tile(start, 2)
    box[view.flip] = box[view.flip][:, [0, 3, 2, 1]]
    corners = [np.ascontiguousarray(corner, np.float32) for corner in (box[:, :2], box[:, 2:])]
    return [*corners, view.blur_sigma] if blur else corners


@pipeline_def(enable_conditionals=True)
def _pipeline(source: _Source, plan: BatchPlan, resize: Callable, device: str):
    per_image, per_view = 1 if source.whole else 3, [3 if blur else 2 for blur in plan.blurs]
    inputs = fn.external_source(
        source, num_outputs=per_image + sum(per_view), batch=True, batch_info=True
    )
    image = decoded(inputs[0], device, *inputs[1:per_image])
    outputs = []
    for view in range(len(plan.sizes)):
        first = per_image + sum(per_view[:view])
        how = plan.sizes[view], plan.interpolations[view]
        output = resize(image, inputs[first], inputs[first + 1], *how)
        if plan.blurs[view]:  # a Python bool: decides the graph, not the sample
            sigma = inputs[first + 2]
            # a DALI conditional: only the samples that drew a blur pay for it
            if sigma > 0:  # noqa: SIM108
                output = fn.gaussian_blur(output, sigma=sigma)
            else:
                output = output
        outputs.append(output)
    return tuple(outputs)


def _resize_by_dali(image, first_corner, last_corner, size: int, interpolation: str):
    return fn.resize(
        image,
        size=[size, size],
        roi_start=first_corner,
        roi_end=last_corner,
        interp_type=BY_DALI[interpolation],
        antialias=True,
    )


class _TorchResize:
    """Cuts out and resizes whole-pixel boxes with torch, in ``threads`` threads."""

    def __init__(self, threads: int):
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, image, first_corner, last_corner, size: int, interpolation: str):
        return fn.python_function(
            image,
            first_corner,
            last_corner,
            function=partial(self._resize_batch, size, interpolation),
            batch_processing=True,
            output_layouts="HWC",
        )

    def _resize_batch(
        self, size: int, interpolation: str, *batch: list[np.ndarray]
    ) -> list[np.ndarray]:
        samples = list(zip(*batch))

        def resize(thread: int) -> list[np.ndarray]:
            share = rank_share(len(samples), thread, self.threads)
            return [_torch_resize(size, interpolation, *samples[index]) for index in share]

        return list(itertools.chain(*self.pool.map(resize, range(self.threads))))


def _torch_resize(
    size: int,
    interpolation: str,
    image: np.ndarray,
    first_corner: np.ndarray,
    last_corner: np.ndarray,
) -> np.ndarray:
    top, left = first_corner.astype(int).tolist()
    bottom, right = last_corner.astype(int).tolist()
    part = torch.from_numpy(image[top:bottom, min(left, right) : max(left, right)])
    box = part.permute(2, 0, 1)[None]
    output = F.interpolate(box, (size, size), mode=interpolation, antialias=True)
    if right < left:
        output = output.flip(3)
    return output[0].permute(1, 2, 0).contiguous().numpy()
