"""What a benchmark's timings come to: medians and ratios as one JSON-able dict, and as a table."""

import resource
from importlib.metadata import version
from operator import truediv
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from lt_train.benchmark.machine import PACKAGES, cpu_model
from lt_train.benchmark.measure import Timing
from lt_train.config.schema import Config
from lt_train.distributed import World

COLUMNS = {  # of the table -> what of a measurement they show
    "images/s": "images_per_s",
    "min": "min",
    "max": "max",
    "per rank": "images_per_s_per_rank",
}


def summary(config: Config, world: World, timings: dict[str, list[Timing]]) -> dict:
    """What was measured on what; images_per_s are totals over ranks, medians over repeats."""
    result = {
        "config": {
            "method": config.method,
            "backbone": config.model.backbone,
            "size": config.view.size,
            "loader": config.data.loader,
        },
        "global_batch_size": config.global_batch_size,
        "ranks": world.size,
        "device": _device(world),
        "cpu_threads_per_rank": world.cpu_threads,
        "engine": config.engine.name,
        "precision": config.engine.precision,
        "versions": {name: version(name) for name in PACKAGES},
    }
    result |= {name: _rates(repeats) for name, repeats in timings.items()}
    waits = [timing.data_wait for timing in timings["end_to_end"]]
    result["end_to_end"]["data_wait"] = round(median(waits), 4)
    return {**result, "ratios": _ratios(timings), "peak_memory_bytes": _peak_memory(world)}


def _device(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return cpu_model()


def _rates(repeats: list[Timing]) -> dict[str, float]:
    rates = [timing.images_per_s for timing in repeats]
    per_rank = [timing.images_per_s_per_rank for timing in repeats]
    return {
        "images_per_s": round(median(rates), 2),
        "min": round(min(rates), 2),
        "max": round(max(rates), 2),
        "images_per_s_per_rank": round(median(per_rank), 2),
        "repeats": [round(rate, 2) for rate in rates],
    }


def _ratios(timings: dict[str, list[Timing]]) -> dict[str, float]:
    """Medians of ratios within one repeat, which a drifting machine disturbs less than ratios of
    medians.
    """
    rates = {}
    for name, repeats in timings.items():
        rates[name] = [timing.images_per_s for timing in repeats]
    slower = list(map(min, rates["synthetic"], rates["loader"]))
    pairs = {
        "end_to_end_over_synthetic": (rates["end_to_end"], rates["synthetic"]),
        "end_to_end_over_slower_of_synthetic_and_loader": (rates["end_to_end"], slower),
        "synthetic_over_bare_loop": (rates["synthetic"], rates["bare_loop"]),
    }
    if "baseline" in rates:
        pairs["loader_over_baseline"] = (rates["loader"], rates["baseline"])
    return {name: round(median(map(truediv, *pair)), 4) for name, pair in pairs.items()}


def _peak_memory(world: World) -> dict[str, str | int]:
    if world.device.type == "cuda":
        return {"what": "GPU memory", "rank_0": torch.cuda.max_memory_allocated()}
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"what": "resident memory", "rank_0": kibibytes * 1024}


def show(result: dict) -> None:
    """Print what :func:`summary` has summed up."""
    console = Console(soft_wrap=True)
    about = ", ".join(map(str, result["config"].values()))
    console.print(
        f"{about}; global batch {result['global_batch_size']}, {result['ranks']} rank(s),"
        f" {result['engine']}, {result['device']}, torch {result['versions']['torch']}",
        highlight=False,
    )
    table = Table("measured", *COLUMNS)
    for name in ("synthetic", "bare_loop", "loader", "end_to_end", "baseline"):
        if name in result:
            table.add_row(name, *(f"{result[name][key]:,.1f}" for key in COLUMNS.values()))
    console.print(table)
    for name, ratio in result["ratios"].items():
        console.print(f"{name.replace('_', ' ')}: {ratio:.3f}", highlight=False)
    wait, peak = result["end_to_end"]["data_wait"], result["peak_memory_bytes"]
    console.print(f"data wait in end to end: {wait:.1%}", highlight=False)
    mebibytes = peak["rank_0"] / 2**20
    console.print(f"peak {peak['what']} of rank 0: {mebibytes:,.0f} MiB", highlight=False)
