"""The options that every data set has, and the command that makes one again."""

import argparse
import contextlib
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from data_prep.reading.source import Recipe
from data_prep.writing.plan import ALONE, Task
from lt_train.errors import UserError, parse_task

# what is made does not depend on these
OPERATIONAL = {
    "imports",
    "command",
    "out",
    "workers",
    "task",
    "max_rejected",
    "dali_index",
    "benchmark",
}
# smallest and largest value of an option; NumPy's legacy generator takes seeds of 32 bits
LIMITS = {
    "seed": (0, 2**32 - 1),
    "workers": (1, math.inf),
    "samples_per_shard": (1, math.inf),
    "val": (0, math.inf),
    "test": (0, math.inf),
    "per_class": (1, math.inf),
    "resize": (1, math.inf),
    "quality": (1, 100),
    "max_rejected": (0, 1),
}


def add_common_arguments(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """``--out`` and all else that no data set needs to add itself."""
    add = parser.add_argument_group("for every data set").add_argument
    text = "where the prepared data set goes; the same command again goes on"
    add("--out", type=Path, required=True, metavar="DIR", help=text)
    add("--seed", type=int, default=0)
    number = recipe.samples_per_shard
    add("--samples-per-shard", type=int, default=number, help=f"(default: {number})")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, help="processes (default: one a core)")
    text = (
        "do only part I (0 ... N-1) of N, as one of N array jobs; the last to end writes the"
        " manifest"
    )
    add("--task", type=_task, default=ALONE, metavar="I/N", help=text)
    text = "re-encode larger training images with this shorter side; val and test keep their bytes"
    add("--resize", type=int, metavar="PIXELS", help=text)
    add("--quality", type=int, default=90, help="JPEG quality of --resize (default: 90)")
    text = "trust the images: read their headers only"
    add("--no-decode-check", action="store_true", help=text)
    text = "share of images that may be unusable (default: 0.001)"
    add("--max-rejected", type=float, default=0.001, help=text)
    text = "also write the .idx files that DALI's readers.webdataset takes"
    add("--dali-index", action="store_true", help=text)
    text = (
        "write nothing that stays: measure rates on this source, in a scratch folder beside --out"
    )
    add("--benchmark", action="store_true", help=text)


def expect_paths(parser: argparse.ArgumentParser) -> None:
    """Every argument of ``parser`` of type Path: an empty one is refused, which would else be the
    current folder, and ``~`` is the home folder. Call it before arguments are added.
    """
    parser.register("type", Path, _path)


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; '.' is the current folder")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}': {error}; a folder of that name is './{text}'"
        ) from error


def _task(text: str) -> Task:
    return Task(*parse_task(text))


def check_limits(arguments: argparse.Namespace) -> None:
    """A :class:`UserError` for an option that is out of its range."""
    for name, (least, most) in LIMITS.items():
        value = getattr(arguments, name, None)
        # another's data set may have an option of the same name that is no number
        if isinstance(value, int | float) and not least <= value <= most:
            limits = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            raise UserError(f"--{name.replace('_', '-')} must be {limits}, not {value}")


def check_sources(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """A :class:`UserError` for a path to read from that is not there: what --help says that it is.

    ``parser``: of the data set's command.
    """
    for action in parser._actions:
        path = getattr(arguments, action.dest, None)
        if action.type is not Path or action.dest == "out" or path is None:
            continue
        with contextlib.suppress(OSError):  # who reads it tells why it cannot
            if not path.exists():
                option = "/".join(action.option_strings)
                raise UserError(f"there is no '{path}'; {option} {action.metavar}: {action.help}")


def made_by(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command that makes this data set, with nothing in it that the data set does not depend
    on. ``parser``: of the data set's command, which knows the defaults.
    """
    words = ["python", "-m", "data_prep"]
    for module in arguments.imports:
        words += ["--import", module]
    words.append(arguments.command)
    for name, value in vars(arguments).items():
        if name not in OPERATIONAL and value is not None and value != parser.get_default(name):
            words += _option(name, value)
    return shlex.join(words)


def _option(name: str, value: object) -> Sequence[str]:
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [value]
    return [option, *map(str, values)]
