"""What a training step is made of: its parts in turn, and what the host asks of the device."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import islice

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lt_train.data.batch import Batch
from lt_train.models.moving_average import MovingAverage
from lt_train.training.loop import Window
from lt_train.training.step_graphs import EAGER
from lt_train.training.trainer import Trainer

STEPS = 4  # looked at, after as many that are not
LOOP = "loop"  # what is in no part
# what starts work on a GPU, and what waits for it, by the names that the profiler has for them
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
PEAKS = {  # dense bf16 FLOP/s of NVIDIA's data sheets, by what a GPU's name has in it
    "H100 80GB HBM3": 989.4e12,
    "H100 PCIe": 756e12,
    "H200": 989.4e12,
    "A100": 312e12,
}


def look_at_steps(
    trainer: Trainer, real: Iterator[Batch], synthetic: Iterator[Batch], seconds: float
) -> dict:
    """``parts``: ms of a step by part, in order; ``operations``, ``launches`` and ``kernels`` a
    step (of which a CPU has the first alone), ``waits``; ``flop_utilisation`` where it is known.

    ``seconds``: of a whole step, as it was timed.
    """
    found: dict = {"parts": _parts(trainer, real)}
    if trainer.world.device.type == "cpu":
        return found | _operations(trainer, synthetic)
    found |= _launches(trainer, synthetic)
    name = torch.cuda.get_device_name(trainer.world.device)
    peaks = [peak for part, peak in PEAKS.items() if part in name]
    if peaks and trainer.config.engine.precision == "bf16":
        found["flop_utilisation"] = _flops(trainer, synthetic) / seconds / peaks[0]
    return found


class Clock:
    """Notes when which part of a step begins; parts may lie within others, and stop them then."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self._open = [LOOP]
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._open.append(name)
        self._mark()
        try:
            yield
        finally:
            self._open.pop()
            self._mark()

    def timing(self, name: str) -> Callable[[Callable], Callable]:
        """Decorator: calls of a function are part ``name``."""

        def decorate(function: Callable) -> Callable:
            @wraps(function)
            def timed(*arguments, **keywords):
                with self.part(name):
                    return function(*arguments, **keywords)

            return timed

        return decorate

    def _mark(self) -> None:
        if not self.on_gpu:
            self.marks.append((self._open[-1], time.perf_counter()))
            return
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        self.marks.append((self._open[-1], now))

    def seconds(self) -> Counter[str]:
        """Of every part, without what lies within it; on a GPU, those of its stream."""
        if self.on_gpu:
            torch.cuda.synchronize()
        found: Counter[str] = Counter()
        for (name, begin), (_, end) in zip(self.marks, self.marks[1:]):
            found[name] += begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin
        return found


def _parts(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, float]:
    """ms of a step by part; of one that is captured, as it is before."""
    engine, log_every = trainer.engine, trainer.config.run.log_every
    clock = Clock(trainer.world.device)
    names = {
        "data": [],
        "forward": [(engine, "forward")],
        "moving average": [(MovingAverage, "follow"), (MovingAverage, "copy_buffers")],
        "backward": [(engine, "backward")],
        "optimizer": [(engine, "step")],
        "after the step": [(engine.method, "after_step")],
        "logging": [(Window, "close"), (trainer.monitor, "record")],
    }
    captures, engine.captures_steps = engine.captures_steps, False
    try:
        trainer.train(islice(batches, STEPS), 0)
        with ExitStack() as stack:
            for part, functions in names.items():
                for owner, name in functions:
                    stack.enter_context(_replaced(owner, name, clock.timing(part)))
            first = max(0, log_every - STEPS // 2)  # so that one of them is logged
            with clock.part(LOOP):
                trainer.train(_fetched(islice(batches, STEPS), clock), first)
    finally:
        engine.captures_steps = captures
    seconds = clock.seconds()
    parts = {part: 1e3 * seconds[part] / STEPS for part in (*names, LOOP)}
    parts["logging"] = 1e3 * seconds["logging"] / max(1, log_every)
    return parts


def _fetched(batches: Iterable[Batch], clock: Clock) -> Iterator[Batch]:
    iterator = iter(batches)
    while True:
        with clock.part("data"):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _replaced(owner: object, name: str, change: Callable[[Callable], Callable]) -> Iterator[None]:
    """A changed method in an object's, or a class's, place of one."""
    own = vars(owner).get(name)
    setattr(owner, name, change(getattr(owner, name)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


class Operations(TorchDispatchMode):
    """Counts what is dispatched, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


def _operations(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, float]:
    """Operations of a step, and how often the host takes a number out of a tensor."""
    with Operations() as operations:
        trainer.train(islice(batches, STEPS), 0)
    waits = operations.calls["_local_scalar_dense"]
    return {"operations": operations.calls.total() / STEPS, "waits": waits / STEPS}


def _launches(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, float]:
    """Of a step: calls of the host's that start work, kernels that ran, and times that the host has
    waited.
    """
    trainer.train(islice(batches, EAGER + STEPS), 0)  # captured by then, where steps are
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        trainer.train(islice(batches, STEPS), 0)
        torch.cuda.synchronize()
    return counted(profiler.events())


def counted(events: Iterable) -> dict[str, float]:
    """``launches``, ``kernels`` and ``waits`` a step, of a profiler's events."""
    found = Counter(launches=0, kernels=0, waits=0)
    for event in events:
        if event.device_type == DeviceType.CUDA:
            annotates = getattr(event, "is_user_annotation", False)
            found["kernels"] += not (annotates or event.name.startswith(("Memcpy", "Memset")))
        found["launches"] += event.name.startswith(LAUNCHES)
        found["waits"] += event.name.startswith(WAITS)
    return {name: number / STEPS for name, number in found.items()}


def _flops(trainer: Trainer, batches: Iterator[Batch]) -> float:
    """Floating-point operations of a step's products and convolutions, forward and backward."""
    engine = trainer.engine
    captures, engine.captures_steps = engine.captures_steps, False
    try:
        eager = torch.compiler.set_stance("force_eager")
        with eager, FlopCounterMode(display=False) as counter:
            trainer.train(islice(batches, 1), 0)
    finally:
        engine.captures_steps = captures
    return counter.get_total_flops()
