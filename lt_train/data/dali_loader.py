"""DALI loader: decodes JPEG, PNG, ... on the GPU where there is one, else on the CPU, with the same graph.

The graph is fed bytes and per-sample parameters and draws nothing itself: decode the part of the image that any view needs,
then one antialiased resize per view straight from its box (mirrored by a swapped box), then blur where one was drawn.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from lt_train.data.augment import View
from lt_train.data.loader import Plan, finish, read_batch

CONTEXT = 2  # output pixels; how far beyond a box an antialiased resize looks, with one to spare
INPUTS_PER_IMAGE = 3


class DaliLoader:
    """Iterates the batches of ``plan`` once. DALI decodes two batches ahead in ``threads`` threads of its own."""

    def __init__(self, plan: Plan, device: torch.device, threads: int):
        self.plan, self.device, self.threads = plan, device, threads

    def __iter__(self) -> Iterator[dict]:
        on_gpu = self.device.type == "cuda"
        source = _Source(self.plan)
        pipeline = _pipeline(
            source,
            self.plan,
            "mixed" if on_gpu else "cpu",
            batch_size=self.plan.max_batch,
            num_threads=self.threads,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=2,
        )
        pipeline.build()
        stream = {"cuda_stream": torch.cuda.current_stream()} if on_gpu else {}
        while True:
            try:
                outputs = pipeline.run(**stream)
            except StopIteration:
                return
            sample_ids, colours = source.drawn.popleft()
            yield {
                # `finish` copies to float, so DALI may reuse its memory for the next run
                "views": [
                    finish(torch.from_dlpack(output.as_tensor()), None if colour is None else self._upload(colour))
                    for output, colour in zip(outputs, colours)
                ],
                "label": self._upload(self.plan.manifest.labels[sample_ids].astype(np.int64)),
                "sample_id": self._upload(sample_ids),
            }

    def _upload(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor


class _Source:
    """Feeds the graph. DALI asks ahead, so what does not pass through the graph waits in ``drawn``, first in, first out."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.indices = iter(plan.batches)
        self.drawn: deque[tuple[np.ndarray, list[np.ndarray | None]]] = deque()

    def __call__(self, _batch_info) -> list:
        sample_ids, contents = np.empty(0, np.int64), []
        while not len(sample_ids):  # evaluation may leave out a whole batch of damaged samples
            index = next(self.indices)
            sample_ids, contents = read_batch(self.plan, index)
        views = self.plan.views(index, sample_ids)
        self.drawn.append((sample_ids, [view.colour for view in views]))
        sizes = np.stack([self.plan.manifest.heights[sample_ids], self.plan.manifest.widths[sample_ids]], 1)
        start, stop = _needed_part(views, sizes)
        per_view = [array for view in views for array in _view_inputs(view, start, self.plan.blur)]
        return [contents, start, stop - start, *per_view]


def _needed_part(views: list[View], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, 2) int32 corners of the smallest rectangle that holds all views, within images of ``sizes`` (B, 2)."""
    margins = [CONTEXT * np.ceil((view.box[:, 2:] - view.box[:, :2]) / view.size) * view.context for view in views]
    start = np.min([view.box[:, :2] - margin for view, margin in zip(views, margins)], 0)
    stop = np.max([view.box[:, 2:] + margin for view, margin in zip(views, margins)], 0)
    return np.maximum(np.floor(start), 0).astype(np.int32), np.minimum(np.ceil(stop), sizes).astype(np.int32)


def _view_inputs(view: View, start: np.ndarray, blur: bool) -> list[np.ndarray]:
    """A view's first and last corner in the decoded part (left and right swapped to mirror), then its blur sigma if any."""
    box = view.box - np.tile(start, 2)
    box[view.flip] = box[view.flip][:, [0, 3, 2, 1]]
    corners = [np.ascontiguousarray(box[:, :2], np.float32), np.ascontiguousarray(box[:, 2:], np.float32)]
    return [*corners, view.blur_sigma] if blur else corners


@pipeline_def(enable_conditionals=True)
def _pipeline(source: _Source, plan: Plan, device: str):
    inputs_per_view = 3 if plan.blur else 2
    inputs = fn.external_source(
        source, num_outputs=INPUTS_PER_IMAGE + inputs_per_view * plan.num_views, batch=True, batch_info=True
    )
    encoded, start, shape = inputs[:INPUTS_PER_IMAGE]
    image = fn.decoders.image_slice(
        encoded,
        start=start,
        shape=shape,
        axis_names="HW",
        device=device,
        output_type=types.RGB,
        adjust_orientation=False,  # as torchvision: EXIF rotation is not applied
    )
    outputs = []
    for view in range(plan.num_views):
        first = INPUTS_PER_IMAGE + inputs_per_view * view
        roi_start, roi_end = inputs[first], inputs[first + 1]
        output = fn.resize(
            image,
            size=[plan.size, plan.size],
            roi_start=roi_start,
            roi_end=roi_end,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if plan.blur:  # a Python bool: decides the graph, not the sample
            sigma = inputs[first + 2]
            if sigma > 0:  # a DALI conditional: only the samples that drew a blur pay for it
                output = fn.gaussian_blur(output, sigma=sigma)
            else:
                output = output
        outputs.append(output)
    return tuple(outputs)
