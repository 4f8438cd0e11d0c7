"""The decoder of training images, DALI's: its settings, which all who decode with it share, and
batches decoded outside of any training graph. No torch here.
"""

from collections.abc import Sequence

import numpy as np
from nvidia.dali import fn, pipeline_def, types

TINY = np.frombuffer(b"P6\n1 1\n255\n\0\0\0", np.uint8)  # an image that nothing is wrong with


def decoded(contents, device: str = "cpu", start=None, shape=None):
    """In a DALI graph: encoded images as RGB, each whole or its part of ``shape`` from ``start``.

    As torchvision, without EXIF rotation.
    """
    settings = {"device": device, "output_type": types.RGB, "adjust_orientation": False}
    if start is None:
        return fn.decoders.image(contents, **settings)
    return fn.decoders.image_slice(contents, start=start, shape=shape, axis_names="HW", **settings)


class Decoder:
    """Decodes up to ``batch_size`` images at once, on the CPU or on a GPU ("mixed")."""

    def __init__(self, batch_size: int, device: str = "cpu", device_id: int | None = None):
        self.batch_size, self.device, self.device_id = batch_size, device, device_id
        self._pipelines = {}  # whole images, and parts of them

    def __call__(
        self,
        contents: Sequence[np.ndarray],
        start: Sequence[np.ndarray] | None = None,
        shape: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """Encoded images, each (size,) uint8, as (H, W, 3) uint8; with ``start`` and ``shape``,
        both (2,) int32 an image, that part of each.

        RuntimeError: one of them does not decode.
        """
        inputs = {"contents": contents}
        if start is not None:
            inputs |= {"start": start, "shape": shape}
        pipeline = self._pipelines.pop(len(inputs), None)  # one that has failed is of no more use
        if pipeline is None:
            pipeline = self._built(in_parts=start is not None)
        for name, values in inputs.items():
            pipeline.feed_input(name, list(values))
        (outputs,) = pipeline.run()
        images = outputs.as_cpu()
        self._pipelines[len(inputs)] = pipeline
        return [np.asarray(images[index]) for index in range(len(contents))]

    def _built(self, in_parts: bool):
        pipeline = _graph(
            self.device,
            in_parts,
            batch_size=self.batch_size,
            num_threads=1,
            device_id=self.device_id,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline


@pipeline_def
def _graph(device: str, in_parts: bool):
    contents = fn.external_source(name="contents")
    if not in_parts:
        return decoded(contents, device)
    start, shape = (fn.external_source(name=name) for name in ("start", "shape"))
    return decoded(contents, device, start, shape)


def reason_of(error: RuntimeError) -> str:
    """What DALI's error says of an image, without the rest, which is about its graph."""
    text = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
    return " ".join(text.split()).rstrip(" :") or " ".join(str(error).split())
