"""Time the training loop, the loader and both together, a number of steps each, in turns."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lt_train.benchmark.baseline_loader import baseline_batches, write_image_folder
from lt_train.collectives import broadcast_object, from_main
from lt_train.config.schema import Config, views_in_order
from lt_train.data.batch import Batch
from lt_train.distributed import World
from lt_train.training.engine import DeepSpeedEngine
from lt_train.training.monitor import Monitor
from lt_train.training.trainer import Trainer

WARMUP = 3  # untimed steps before every timed run; also lets prefetch queues reach their usual fill
ENOUGH_STEPS = 10**7
ALL_RUNS, BASELINE = ("synthetic", "bare_loop", "loader", "end_to_end"), "baseline"

Run = Callable[[int], float | None]  # steps -> share of the time that the host waited for data


@dataclass(frozen=True)
class Timing:
    """One measurement, as this rank sees it."""

    images_per_s: float  # of all ranks together
    images_per_s_per_rank: float
    data_wait: float  # share of the time that the host waited for data


def measure(
    config: Config, world: World, scratch: Path, repeats: int, seconds: float, baseline: bool
) -> dict[str, list[Timing]]:
    """``repeats`` timings of about ``seconds`` each, of everything that is measured, by its name.

    ``scratch``: an empty folder of this rank's. ``baseline``: measure that too. Collective.
    """
    trainer = make_trainer(config, world, scratch)
    names = (*ALL_RUNS, BASELINE) if baseline else ALL_RUNS
    return in_turns(trainer, make_runs(trainer, names, scratch), repeats, seconds)


def make_trainer(config: Config, world: World, scratch: Path) -> Trainer:
    """Ready to train for ever, recording nothing. Collective."""
    # A rate of zero keeps random batches from diverging; the work of a step is the same
    run = replace(
        config.run, dir=str(scratch), checkpoint_every=ENOUGH_STEPS, evaluate_every=ENOUGH_STEPS
    )
    optim = replace(config.optim, lr=0.0)
    config = replace(config, epochs=float(ENOUGH_STEPS), max_steps=None, run=run, optim=optim)
    trainer = Trainer(config, world)
    trainer.build()
    trainer.monitor = Monitor(scratch, 0, ENOUGH_STEPS, enabled=False)
    return trainer


def in_turns(
    trainer: Trainer, runs: dict[str, Run], repeats: int, seconds: float
) -> dict[str, list[Timing]]:
    """``repeats`` timings of about ``seconds`` each of every run. Collective."""
    world, batch_size = trainer.world, trainer.config.global_batch_size
    steps = {name: _calibrate(run, seconds, world) for name, run in runs.items()}
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            timings[name].append(_time(run, steps[name], batch_size, world))
    return timings


def make_runs(trainer: Trainer, names: Iterable[str], scratch: Path) -> dict[str, Run]:
    """What to time, by these names: of :data:`ALL_RUNS`, and :data:`BASELINE`, which writes its
    images to ``scratch``. Collective.
    """
    real = iter(trainer.data.train(0, ENOUGH_STEPS))
    synthetic = synthetic_batches(next(real))

    def train_on(batches: Iterator[Batch]) -> Run:
        return lambda steps: trainer.train(itertools.islice(batches, steps), 0)

    def load() -> Run:
        loaded = iter(trainer.data.train(0, ENOUGH_STEPS))
        return lambda steps: _drain(itertools.islice(loaded, steps))

    makers = {
        "synthetic": lambda: train_on(synthetic),
        "bare_loop": lambda: lambda steps: _bare_loop(trainer, itertools.islice(synthetic, steps)),
        "loader": load,
        "end_to_end": lambda: train_on(real),
        BASELINE: lambda: _baseline(trainer, scratch / "images"),
    }
    return {name: makers[name]() for name in names}


def _baseline(trainer: Trainer, folder: Path) -> Run:
    """The usual loader, over images that are written to ``folder`` first. Collective."""
    config, world = trainer.config, trainer.world

    def write() -> Path:
        write_image_folder(trainer.train_set, folder)
        return folder

    local_batch = -(-config.global_batch_size // world.size)
    batches = baseline_batches(from_main(write), views_in_order(config), local_batch)
    return lambda steps: _drain(itertools.islice(batches, steps))


def synthetic_batches(like: Batch) -> Iterator[Batch]:
    """Two batches of noise on the device, in turns for ever."""

    def noise() -> Batch:
        return replace(like, views=[torch.randn_like(view) for view in like.views])

    return itertools.cycle([noise(), noise()])


def _bare_loop(trainer: Trainer, batches: Iterable[Batch]) -> None:
    """What one would write by hand around the same wrapped model and optimizer."""
    engine = trainer.engine
    for step, batch in enumerate(batches):
        loss = engine.wrapped(batch, trainer.schedule.progress(step))["loss"]
        if isinstance(engine, DeepSpeedEngine):
            engine.wrapped.backward(loss)
            engine.wrapped.step()
        else:
            loss.backward()
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        engine.method.after_step()


def _drain(batches: Iterable) -> None:
    for _ in batches:
        pass


def _calibrate(run: Run, seconds: float, world: World) -> int:
    """How many steps take about ``seconds``, the same on all ranks."""
    steps, took = 1, 0.0
    while took < seconds / 4:  # a loader may make several batches at once: a few steps tell nothing
        steps *= 2
        _wait(world)
        started = time.monotonic()
        run(steps)
        _wait(world)
        took = broadcast_object(time.monotonic() - started)
    return max(3, round(steps * seconds / took))


def _time(run: Run, steps: int, global_batch_size: int, world: World) -> Timing:
    run(WARMUP)
    _wait(world)
    started = time.monotonic()
    wait_share = run(steps)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    own = time.monotonic() - started
    _wait(world)
    total = time.monotonic() - started
    return Timing(
        images_per_s=global_batch_size * steps / total,
        images_per_s_per_rank=global_batch_size / world.size * steps / own,
        data_wait=wait_share or 0.0,
    )


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()
