"""Throughput: ``[torchrun ...] -m lt_train.benchmark CONFIG [key=value ...] [--json FILE]
[--baseline]``.

Measured in turns, several times over, so that a drifting machine touches all alike:

    synthetic    the training loop on batches that already lie on the device
    bare_loop    the same step in the shortest hand-written loop, to see what the loop itself costs
    loader       the loader alone
    end_to_end   the training loop fed by the loader
    baseline     torchvision's ImageFolder, PIL transforms and a DataLoader of 2 workers, on the
                 same images

``--suite cpu|gpu`` measures all that docs/benchmarks.md has of such a machine instead, on images
that it makes; see rows.py.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.benchmark.measure import measure
from lt_train.benchmark.rows import SUITES
from lt_train.benchmark.suite import run_suite
from lt_train.benchmark.suite_report import Report, as_markdown
from lt_train.benchmark.summary import show, summary
from lt_train.config.load import load_config
from lt_train.config.schema import Config
from lt_train.console import setup_logging
from lt_train.distributed import World
from lt_train.errors import UserError, run_cli, unreadable
from lt_train.files import write_atomically

SECONDS = 3.0


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    arguments = _parse(sys.argv[1:] if words is None else words)
    if arguments.repeats < 1 or (arguments.seconds is not None and arguments.seconds <= 0):
        raise UserError("--repeats must be at least 1 and --seconds more than 0")
    config = None
    if arguments.suite is None:
        config = load_config(arguments.config, arguments.overrides)
    with distributed.joined() as world:
        setup_logging(world.is_main)
        if config is None:
            return _suite(arguments, world)
        _measure(arguments, config, world)
    return 0


def _suite(arguments: argparse.Namespace, world: World) -> int:
    report = Report(arguments.json, arguments.markdown, arguments.picture)
    how = arguments.repeats, arguments.seconds, arguments.data
    status = run_suite(arguments.suite, world, report, *how)
    Console(soft_wrap=True).print(as_markdown(report.found).decode(), markup=False, highlight=False)
    return status


def _measure(arguments: argparse.Namespace, config: Config, world: World) -> None:
    with tempfile.TemporaryDirectory(prefix="lt-train-benchmark-") as scratch:
        timings = measure(
            config,
            world,
            Path(scratch),
            arguments.repeats,
            arguments.seconds or SECONDS,
            arguments.baseline,
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
    parser = Parser(
        prog="python -m lt_train.benchmark",
        description="Measure the training step, the loader and both together. Also under torchrun.",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="a name from configs/ or a path to a YAML file",
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
        help="about how long each measurement takes (default: 3; --suite gpu: 2)",
    )
    suite = parser.add_argument_group("instead of CONFIG, all that this project says of its speed")
    suite.add_argument(
        "--suite", metavar="cpu|gpu", help="measure every row of docs/benchmarks.md, in minutes"
    )
    suite.add_argument(
        "--data", type=Path, metavar="ROOT", help="a prepared set of large images (default: made)"
    )
    for name, what in (("markdown", "tables"), ("picture", "a picture, .png")):
        suite.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what}")
    arguments = parser.parse_intermixed_args(words)
    _check_together(arguments)
    return arguments


def _check_together(arguments: argparse.Namespace) -> None:
    if arguments.suite is None and arguments.config is None:
        raise UserError("name a config, or give --suite cpu or --suite gpu")
    if arguments.suite not in (None, *SUITES):
        raise UserError(f"--suite {arguments.suite}: there are {' and '.join(SUITES)}")
    of_one = [arguments.config, *arguments.overrides, arguments.baseline or None]
    if arguments.suite is not None and any(of_one):
        raise UserError("--suite measures configs of its own: give no CONFIG and no --baseline")
    of_suite = arguments.data, arguments.markdown, arguments.picture
    if arguments.suite is None and any(of_suite):
        raise UserError("--data, --markdown and --picture go with --suite")


if __name__ == "__main__":
    run_cli("lt_train.benchmark", main)
