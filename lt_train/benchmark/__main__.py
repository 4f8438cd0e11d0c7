"""Throughput: ``[torchrun ...] -m lt_train.benchmark CONFIG [key=value ...] [--json FILE]
[--baseline]``.

Measured in turns, several times over, so that a drifting machine touches all alike:

    synthetic    the training loop on batches that already lie on the device
    bare_loop    the same step in the shortest hand-written loop, to see what the loop itself costs
    loader       the loader alone
    end_to_end   the training loop fed by the loader
    baseline     torchvision's ImageFolder, PIL transforms and a DataLoader of 2 workers, on the same images
"""

import argparse
import dataclasses
import itertools
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lt_train import distributed
from lt_train.benchmark.baseline_loader import baseline_batches, write_image_folder
from lt_train.config.load import load_config
from lt_train.config.schema import Config, views_in_order
from lt_train.console import setup_logging
from lt_train.data.batch import Batch
from lt_train.distributed import World, broadcast_object
from lt_train.errors import UserError, run_cli
from lt_train.files import write_atomically
from lt_train.training.engine import DeepSpeedEngine
from lt_train.training.monitor import Monitor
from lt_train.training.trainer import Trainer

WARMUP = 3  # untimed steps before every timed run; also lets prefetch queues reach their usual fill
ENOUGH_STEPS = 10**7

Measure = Callable[[int], float]  # steps -> share of the time that the host waited for data


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    arguments = _parse(sys.argv[1:] if words is None else words)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.repeats < 1 or arguments.seconds <= 0:
        raise UserError("--repeats must be at least 1 and --seconds more than 0")
    world = distributed.start()
    setup_logging(world.is_main)
    with tempfile.TemporaryDirectory(prefix="lt-train-benchmark-") as scratch:
        result = measure(
            config, world, Path(scratch), arguments.repeats, arguments.seconds, arguments.baseline
        )
    if world.is_main:
        _show(result)
        if arguments.json:
            try:
                write_atomically(arguments.json, (json.dumps(result, indent=1) + "\n").encode())
            except OSError as error:
                raise UserError(
                    f"cannot write --json {arguments.json}: {error.strerror}"
                ) from error
    distributed.stop()
    return 0


def measure(
    config: Config, world: World, scratch: Path, repeats: int, seconds: float, baseline: bool
) -> dict:
    """All measurements as one JSON-able dict; images_per_s are totals over ranks, medians of
    ``repeats``. Collective.
    """
    # A rate of zero keeps random batches from diverging; the work of a step is the same
    config = dataclasses.replace(
        config,
        epochs=float(ENOUGH_STEPS),
        max_steps=None,
        run=dataclasses.replace(
            config.run, dir=str(scratch), checkpoint_every=ENOUGH_STEPS, evaluate_every=ENOUGH_STEPS
        ),
        optim=dataclasses.replace(config.optim, lr=0.0),
    )
    trainer = Trainer(config, world)
    trainer.build()
    trainer.monitor = Monitor(scratch, 0, ENOUGH_STEPS, enabled=False)
    measures = _measures(trainer, scratch if baseline else None)
    steps = {name: _calibrate(run, seconds, world) for name, run in measures.items()}
    samples: dict[str, list[dict]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, run in measures.items():
            samples[name].append(_time(run, steps[name], config.global_batch_size, world))
    return _summary(config, world, samples)


def _measures(trainer: Trainer, baseline_folder: Path | None) -> dict[str, Measure]:
    """What to time, by name: each a function that does a number of steps."""
    config, world = trainer.config, trainer.world
    real = iter(trainer.data.train(0, ENOUGH_STEPS))
    loader_batches = iter(trainer.data.train(0, ENOUGH_STEPS))
    synthetic = _synthetic_batches(next(real))

    def train_on(batches: Iterator[Batch]) -> Measure:
        return lambda steps: trainer.train(itertools.islice(batches, steps), 0)

    measures = {
        "synthetic": train_on(synthetic),
        "bare_loop": lambda steps: _bare_loop(trainer, itertools.islice(synthetic, steps)),
        "loader": lambda steps: _drain(itertools.islice(loader_batches, steps)),
        "end_to_end": train_on(real),
    }
    if baseline_folder is not None:
        root = baseline_folder / "images"
        if world.is_main:
            write_image_folder(trainer.train_set, root)
        world.barrier()
        local_batch = -(-config.global_batch_size // world.size)
        batches = baseline_batches(broadcast_object(root), views_in_order(config), local_batch)
        measures["baseline"] = lambda steps: _drain(itertools.islice(batches, steps))
    return measures


def _synthetic_batches(like: Batch) -> Iterator[Batch]:
    """Two batches of noise on the device, in turns for ever."""
    noise = [[torch.randn_like(view) for view in like.views] for _ in range(2)]
    return itertools.cycle([dataclasses.replace(like, views=views) for views in noise])


def _bare_loop(trainer: Trainer, batches: Iterator[Batch]) -> None:
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


def _drain(batches: Iterator[Batch]) -> None:
    for _ in batches:
        pass


def _calibrate(run: Measure, seconds: float, world: World) -> int:
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


def _time(run: Measure, steps: int, global_batch_size: int, world: World) -> dict:
    run(WARMUP)
    _wait(world)
    started = time.monotonic()
    wait_share = run(steps)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    own = time.monotonic() - started
    _wait(world)
    total = time.monotonic() - started
    return {
        "images_per_s": global_batch_size * steps / total,
        "images_per_s_per_rank": global_batch_size / world.size * steps / own,
        "data_wait": wait_share or 0.0,
    }


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def _summary(config: Config, world: World, samples: dict[str, list[dict]]) -> dict:
    result = {
        "config": {
            "method": config.method,
            "backbone": config.model.backbone,
            "size": config.view.size,
            "loader": config.data.loader,
        },
        "global_batch_size": config.global_batch_size,
        "ranks": world.size,
        "device": (
            torch.cuda.get_device_name(world.device)
            if world.device.type == "cuda"
            else platform.processor() or platform.machine()
        ),
        "cpu_threads_per_rank": world.cpu_threads,
        "engine": config.engine.name,
        "precision": config.engine.precision,
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "nvidia-dali-cuda130")
        },
    }
    for name, runs in samples.items():
        rates = [run["images_per_s"] for run in runs]
        result[name] = {
            "images_per_s": round(statistics.median(rates), 2),
            "min": round(min(rates), 2),
            "max": round(max(rates), 2),
            "images_per_s_per_rank": round(
                statistics.median(run["images_per_s_per_rank"] for run in runs), 2
            ),
        }
    result["end_to_end"]["data_wait"] = round(
        statistics.median(run["data_wait"] for run in samples["end_to_end"]), 4
    )
    result["ratios"] = _ratios(samples)
    on_gpu = world.device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    result["peak_memory_bytes"] = {
        "what": "GPU memory" if on_gpu else "resident memory",
        "rank_0": peak,
    }
    return result


def _ratios(samples: dict[str, list[dict]]) -> dict[str, float]:
    """Medians of ratios within one repeat, which a drifting machine disturbs less than ratios of
    medians.
    """
    rates = {name: [run["images_per_s"] for run in runs] for name, runs in samples.items()}
    slower = [min(pair) for pair in zip(rates["synthetic"], rates["loader"])]
    pairs = {
        "end_to_end_over_synthetic": (rates["end_to_end"], rates["synthetic"]),
        "end_to_end_over_slower_of_synthetic_and_loader": (rates["end_to_end"], slower),
        "synthetic_over_bare_loop": (rates["synthetic"], rates["bare_loop"]),
    }
    if "baseline" in rates:
        pairs["loader_over_baseline"] = (rates["loader"], rates["baseline"])
    return {
        name: round(statistics.median(a / b for a, b in zip(*pair)), 4)
        for name, pair in pairs.items()
    }


def _show(result: dict) -> None:
    console = Console(soft_wrap=True)
    about = ", ".join(str(value) for value in result["config"].values())
    console.print(
        f"{about}; global batch {result['global_batch_size']}, {result['ranks']} rank(s),"
        f" {result['engine']}, {result['device']}, torch {result['versions']['torch']}",
        highlight=False,
    )
    table = Table("measured", "images/s", "min", "max", "per rank")
    for name in ("synthetic", "bare_loop", "loader", "end_to_end", "baseline"):
        if name in result:
            row = result[name]
            table.add_row(
                name,
                *(
                    f"{row[key]:,.1f}"
                    for key in ("images_per_s", "min", "max", "images_per_s_per_rank")
                ),
            )
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name.replace('_', ' ')}: {ratio:.3f}", highlight=False)
    console.print(
        f"data wait in end to end: {result['end_to_end']['data_wait']:.1%}", highlight=False
    )
    peak = result["peak_memory_bytes"]
    console.print(
        f"peak {peak['what']} of rank 0: {peak['rank_0'] / 2**20:,.0f} MiB", highlight=False
    )


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lt_train.benchmark",
        description="Measure the training step, the loader and both together. Also under torchrun.",
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="a name from configs/ or a path to a YAML file"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="also measure ImageFolder + PIL + DataLoader (2 workers) on the same images",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="how often each is measured (default: 5)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="about how long each measurement takes (default: 3)",
    )
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    run_cli("lt_train.benchmark", main)
