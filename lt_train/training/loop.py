"""THE loop, and what is looked at every so many steps. Nothing here comes from a paper."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import mul

import torch

from lt_train.collectives import all_reduce_named
from lt_train.data.batch import Batch
from lt_train.distributed import World
from lt_train.methods.base import Outputs, Progress
from lt_train.random_streams import Stream, mix
from lt_train.training.engine import NORMS, Engine
from lt_train.training.optim import Schedule
from lt_train.training.step_graphs import CapturedSteps, Step


def training_steps(
    engine: Engine,
    batches: Iterable[Batch],
    schedule: Schedule,
    first_step: int,
    measured: Callable[[int], bool] = lambda step: False,
) -> Iterator[tuple[int, Outputs]]:
    """THE loop: one optimizer step per batch, of gradients that ``engine.accumulate`` parts of it
    add up to.

    Yields (steps done, the method's outputs) without waiting for the device. ``measured``: of so
    many steps done, whether norms (see :meth:`Engine.step`) are wanted too.
    """
    world, seed = engine.world, engine.config.seed
    one_step: Step = partial(training_step, engine)
    if engine.captures_steps:
        engine.captured = engine.captured or CapturedSteps(engine.method, one_step)
        one_step = engine.captured
    for step, batch in enumerate(batches, first_step):
        # random numbers follow from the step alone, so a resumed run draws the same
        seed_generators(world.device, int(mix(seed, step, world.rank, Stream.STEP)[0] >> 1))
        engine.set_lr(schedule.lr(step))
        # captured, it is part of every step
        engine.measuring = engine.captures_steps or measured(step + 1)
        yield step + 1, one_step(batch, schedule.progress(step))


def training_step(engine: Engine, batch: Batch, progress: Progress) -> Outputs:
    """One optimizer step; what the method has put out, for all of the batch, and the engine."""
    world, config = engine.world, engine.config
    passes, parts = [], batch.parts(config.engine.accumulate)
    for number, part in enumerate(parts, 1):
        with engine.accumulating(is_last=number == len(parts)):
            found = engine.forward(part, progress)
            # engines average over ranks; what has more samples, by one, counts for more
            share = len(part) * world.size / config.global_batch_size
            engine.backward(found["loss"] * share)
        passes.append({name: value.detach() for name, value in found.items()})
    norms = engine.step()
    engine.method.after_step()
    return _mean(passes, [len(part) / len(batch) for part in parts]) | norms


def seed_generators(device: torch.device, seed: int) -> None:
    """What torch.manual_seed does, for the generators that a step may draw from: it asks every
    backend there could be, which takes a hundred times as long.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def _mean(passes: list[Outputs], shares: list[float]) -> Outputs:
    """What a method has put out for a batch, of its parts by their shares of the samples."""
    first, *others = passes
    if not others:
        return first
    means = {}
    for name in first:
        means[name] = sum(map(mul, shares, [each[name] for each in passes]))
    return means


@dataclass(frozen=True)
class Summary:
    """The steps of a window, as all ranks together see them."""

    losses: list[float]  # of each step
    means: dict[str, float]  # of everything else that is put out, over the steps; last norms
    data_wait: float  # share of the time that the host waited for batches
    images_per_s: float
    seconds_per_step: float  # the mean over ranks, and so the same on each
    bad_samples: int  # damaged ones that ranks have met, some of them the same
    save: bool  # some rank finds that a checkpoint is due

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


class Window:
    """The steps since the last look: host, device and ranks meet only when it is closed."""

    def __init__(self, world: World, global_batch_size: int, batch_share: float):
        """``batch_share``: this rank's samples in a batch over the mean of all ranks."""
        self.world, self.batch_share = world, batch_share
        self.global_batch_size = global_batch_size
        self.open(0.0)

    def open(self, waited: float) -> None:
        """Begin anew; ``waited``: seconds for batches since the start of training."""
        self.outputs: list[Outputs] = []
        self.started, self.waited = time.monotonic(), waited

    def add(self, outputs: Outputs) -> None:
        self.outputs.append(outputs)

    def close(self, waited: float, bad_samples: int, save: bool) -> Summary:
        """Sum up over ranks, in one collective. What comes until the next :meth:`open` counts not.

        ``waited``: seconds for batches since the start of training.
        """
        seconds = time.monotonic() - self.started
        stacked, last = {}, self.outputs[-1]
        for name in last:
            steps = [last] if name in NORMS else self.outputs
            stacked[name] = torch.stack([step[name] for step in steps]).double()
        losses = stacked.pop("loss")
        own = {
            "losses": losses * self.batch_share,
            "waits": losses.new_tensor((waited - self.waited) / max(seconds, 1e-9)),
            "bad": losses.new_tensor(bad_samples),
            "save": losses.new_tensor(save),
            "seconds": losses.new_tensor(seconds / len(self.outputs)),
        }
        for name, values in stacked.items():
            own[f"mean {name}"] = values.mean() * self.batch_share
        sums, ranks = all_reduce_named(own), self.world.size
        return Summary(
            losses=(sums["losses"] / ranks).tolist(),
            means={name: float(sums[f"mean {name}"]) / ranks for name in stacked},
            data_wait=float(sums["waits"]) / ranks,
            images_per_s=self.global_batch_size * len(self.outputs) / seconds,
            seconds_per_step=float(sums["seconds"]) / ranks,
            bad_samples=int(sums["bad"]),
            save=bool(sums["save"]),
        )


class Timed:
    """Iterates batches and adds up the seconds that the host waited for them."""

    def __init__(self, batches: Iterable[Batch]):
        self.batches, self.waited = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self.batches)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch
