"""Run a config or a pipeline on this machine: ``python launch/local.py NAME [--ranks N] [key=value
...]``; ``--list`` shows the names.
"""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the checkout that this file is of, not the folder or an installed one
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launch.arguments import make_parser
from launch.console import say
from launch.pipeline import Experiment, StageJob, listing, load_experiment
from lt_train.errors import (
    EXIT_INTERRUPTED,
    EXIT_MACHINE,
    EXIT_MISTAKE,
    EXIT_PREEMPTED,
    MachineFault,
    UserError,
    run_cli,
)
from lt_train.locks import WAIT

PROGRAM = "python launch/local.py"


def main(words: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run what ``words`` (default: the process's) say; ``program`` stands in its usage."""
    arguments = _parse(words, program)
    if arguments.list:
        sys.stdout.write(listing())
        return 0
    if arguments.experiment is None:
        raise UserError("name a config or a pipeline, or give --list")
    experiment = load_experiment(arguments.experiment, arguments.overrides)
    started = time.monotonic()
    ranks = _ranks(arguments.ranks)
    for number, stage in enumerate(experiment.stages, 1):
        what = f"stage {number}/{len(experiment.stages)}: {stage.title}"
        if stage.kind == "prepare" and stage.is_finished():
            say(f"{what}: finished, skipped ({stage.run_dir})")
            continue
        if stage.kind == "prepare":
            say(f"{what}: python -m data_prep {shlex.join(stage.words)}")
            _run_module("data_prep", stage.words)
            continue
        command = stage.config or shlex.join(stage.words)
        say(f"{what}: {command}, {ranks} rank(s), {stage.run_dir}")
        status = _run_ranks(stage, ranks)
        if status:
            return status
    _report(experiment, time.monotonic() - started)
    return 0


def _parse(words: list[str] | None, program: str) -> argparse.Namespace:
    parser = make_parser(
        program,
        "Run a config or a whole pipeline on this machine. The same command again goes on where it"
        " stopped.",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        help="processes (default: one per GPU; without a GPU 2, or 1 on a single core)",
    )
    return parser.parse_intermixed_args(words)


def _ranks(wanted: int | None) -> int:
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    ranks = wanted if wanted is not None else gpus or min(2, cores)
    if ranks < 1:
        raise UserError(f"--ranks must be at least 1, not {ranks}")
    if gpus and ranks > gpus:
        raise UserError(
            f"--ranks {ranks}, but this machine has {gpus} GPU(s) and each rank needs its own"
        )
    return ranks


def _run_ranks(stage: StageJob, ranks: int) -> int:
    """torchrun's own launcher, called as a library: it picks a free port, watches the ranks and
    ends them all if one fails.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # the failing rank says what is wrong, in one line
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault(WAIT, "1")  # another pipeline may be making the stage that they share
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="lt-train",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "lt_train", *stage.command)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        # of those, the rank has said all there is to say
        if status not in (EXIT_MISTAKE, EXIT_PREEMPTED):
            name = f"signal {-status}" if status < 0 else f"exit status {status}"
            say(
                f"stage {stage.name} failed ({name}); the same command goes on from its last"
                " checkpoint"
            )
        return status if status > 0 else 128 - status
    except SignalException as error:
        say(
            f"stage {stage.name} stopped by {error.sigval.name}; the same command goes on from its"
            " last checkpoint"
        )
        return EXIT_INTERRUPTED if error.sigval == signal.SIGINT else EXIT_PREEMPTED
    return 0


def _run_module(module: str, arguments: Sequence[str]) -> None:
    status = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if status:
        kind = MachineFault if status == EXIT_MACHINE else UserError
        raise kind(f"python -m {module} {shlex.join(arguments)} failed with exit status {status}")


def _report(experiment: Experiment, seconds: float) -> None:
    if experiment.has_report:
        _run_module("lt_train", ["report", *experiment.report])
        say(f"to look at: {experiment.root}/report.html; tensorboard --logdir {experiment.root}")
    say(f"{experiment.name} done in {seconds:.0f} s")


if __name__ == "__main__":
    run_cli("launch/local.py", main)
