"""Throughput: ``[torchrun ...] -m lt_train.benchmark CONFIG [key=value ...] [--json FILE]
[--baseline]``.

Measured in turns, several times over, so that a drifting machine touches all alike:

    synthetic    the training loop on batches that already lie on the device
    bare_loop    the same step in the shortest hand-written loop, to see what the loop itself costs
    loader       the loader alone
    end_to_end   the training loop fed by the loader
    baseline     torchvision's ImageFolder, PIL transforms and a DataLoader of 2 workers, on the
                 same images
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from lt_train import distributed
from lt_train.benchmark.measure import measure
from lt_train.benchmark.summary import show, summary
from lt_train.config.load import load_config
from lt_train.config.schema import Config
from lt_train.console import setup_logging
from lt_train.distributed import World
from lt_train.errors import UserError, run_cli, unreadable
from lt_train.files import write_atomically


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    arguments = _parse(sys.argv[1:] if words is None else words)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.repeats < 1 or arguments.seconds <= 0:
        raise UserError("--repeats must be at least 1 and --seconds more than 0")
    with distributed.joined() as world:
        setup_logging(world.is_main)
        _measure(arguments, config, world)
    return 0


def _measure(arguments: argparse.Namespace, config: Config, world: World) -> None:
    with tempfile.TemporaryDirectory(prefix="lt-train-benchmark-") as scratch:
        timings = measure(
            config, world, Path(scratch), arguments.repeats, arguments.seconds, arguments.baseline
        )
    if world.is_main:
        result = summary(config, world, timings)
        show(result)
        if arguments.json:
            _write(arguments.json, result)


def _write(path: Path, result: dict) -> None:
    try:
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    except OSError as error:
        raise unreadable(error, f"cannot write --json {path}: {error.strerror}") from error


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
