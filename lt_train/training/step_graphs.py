"""Training steps as CUDA graphs: a step of a small network is hundreds of kernels of a few
microseconds each, which take longer to launch one by one than to run.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from lt_train.config.schema import Config, views_in_order
from lt_train.data.batch import Batch
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.methods.base import Method, Outputs, Progress

Step = Callable[[Batch, Progress], Outputs]
# makes of a function that reads and writes tensors in place one that does the same again, and what
# the function returned
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]

# steps of a phase that are made as usual: libraries choose their kernels, optimizers make their
# momenta
EAGER = 3
SMALL = 64  # pixels; views of up to so many are too little work for launches to hide behind


def captures_steps(config: Config, method: Method, world: World) -> bool:
    """Whether ``engine.cuda_graph`` wants steps captured; a :class:`UserError` if that cannot be.

    "auto": for small images, wherever it can be.
    """
    wanted = config.engine.cuda_graph
    if wanted == "false":
        return False
    why_not = _hindrance(config, method, world)
    if wanted == "true" and why_not:
        raise UserError(f"engine.cuda_graph=true: {why_not}; use engine.cuda_graph=auto")
    return not why_not and (wanted == "true" or _is_small(config))


def _is_small(config: Config) -> bool:
    return max(view.size for view in views_in_order(config)) <= SMALL


def _hindrance(config: Config, method: Method, world: World) -> str:
    engine = config.engine
    if world.device.type != "cuda":
        return "there is no GPU"
    if world.size > 1:
        return f"{world.size} ranks exchange gradients in the midst of a step"
    if engine.name != "ddp" or engine.compile or engine.activation_checkpointing:
        return "engine.name=ddp without compile and activation_checkpointing can have it"
    if config.optim.name == "lars":
        return "optim.name=lars has its learning rate on the host"
    if method.phase(Progress(0, 0.0)) is None or not _has_phase_of_its_own(method):
        return f"steps of the method {config.method} need numbers that the host draws, or may do so"
    return ""


def _has_phase_of_its_own(method: Method) -> bool:
    """Whether ``phase`` is of the class that says what a step does, or of a subclass: one with
    another ``forward`` has not said what that depends on.
    """
    lineage = type(method).__mro__

    def place(name: str) -> int:
        return next(place for place, each in enumerate(lineage) if name in vars(each))

    return place("phase") <= min(place("forward"), place("after_step"))


def cuda_graph(function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    """A :data:`Capture` by torch, which only records: the kernels do not run yet."""
    graph = torch.cuda.CUDAGraph()
    # other threads, such as DALI's, may allocate meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function()
    return graph.replay, outputs


class CapturedSteps:
    """Makes the steps of a method, captured once for each of its phases.

    ``step`` must do the same for equal phases and shapes, but for what the batch's tensors hold.
    """

    def __init__(self, method: Method, step: Step, capture: Capture = cuda_graph):
        self.method, self.step, self.capture = method, step, capture
        self._made: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, _Captured] = {}

    def __call__(self, batch: Batch, progress: Progress) -> Outputs:
        key = (self.method.phase(progress), *(view.shape for view in batch.views), len(batch))
        if key not in self._captured:
            if self._made[key] < EAGER:
                self._made[key] += 1
                with _beside(batch.label.device):
                    return self.step(batch, progress)
            self._captured[key] = _Captured(self.step, self.capture, batch, progress)
        return self._captured[key](batch)


class _Captured:
    """A step with tensors of its own, into which every batch is copied."""

    def __init__(self, step: Step, capture: Capture, batch: Batch, progress: Progress):
        self.batch = replace(
            batch, views=[view.clone() for view in batch.views], label=batch.label.clone()
        )
        self._replay, self._outputs = capture(lambda: step(self.batch, progress))

    def __call__(self, batch: Batch) -> Outputs:
        for own, given in zip((*self.batch.views, self.batch.label), (*batch.views, batch.label)):
            own.copy_(given)
        self._replay()
        # in memory of their own, since the next step writes over them
        return dict(zip(self._outputs, torch.stack(list(self._outputs.values())).unbind()))


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """On another stream, as torch asks of steps that come before a capture."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
