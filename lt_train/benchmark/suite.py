"""``--suite``: every row of rows.py for this kind of machine, measured and written one by one."""

import gc
import itertools
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from lt_train.benchmark.measure import (
    ALL_RUNS,
    BASELINE,
    ENOUGH_STEPS,
    in_turns,
    make_runs,
    make_trainer,
    synthetic_batches,
)
from lt_train.benchmark.pictures import make_sets
from lt_train.benchmark.rows import (
    LARGE,
    SECONDS,
    SMALL,
    Experiment,
    Row,
    Values,
    experiments_of,
    rows_of,
)
from lt_train.benchmark.step_parts import look_at_steps
from lt_train.benchmark.suite_report import Report
from lt_train.config.load import load_config
from lt_train.config.schema import Config, RunConfig
from lt_train.distributed import World
from lt_train.errors import MachineFault, UserError
from lt_train.training.evaluation import evaluate_split
from lt_train.training.precision import decided
from lt_train.training.trainer import Trainer

log = logging.getLogger(__name__)

IMAGES = {  # of the sets, by split; CIFAR-10-LT's on a GPU, where a whole training is told
    "cpu": {LARGE: {"train": 320}, SMALL: {"train": 4096}},
    "gpu": {LARGE: {"train": 512}, SMALL: {"train": 12_406, "val": 10_000}},
}
SPEND = {"cpu": 3.0, "gpu": 2.0}  # seconds of a measurement


def run_suite(
    suite: str, world: World, report: Report, repeats: int, seconds: float | None, data: Path | None
) -> int:
    """Measure all rows of a suite on this machine; 1 if any of them failed, else 0.

    ``data``: a prepared set of large images, in place of one that is made. ``report`` is written
    before the first row, so that a file that cannot be is known at once, and after every one.
    """
    check_suite(suite, world)
    gpus = torch.cuda.device_count() if world.device.type == "cuda" else 0
    spend = SPEND[suite] if seconds is None else seconds
    rows = rows_of(suite, gpus)
    report.begin(suite, rows)
    with tempfile.TemporaryDirectory(prefix="lt-train-suite-") as scratch:
        sizes = {name: of for name, of in IMAGES[suite].items() if name != LARGE or data is None}
        roots = make_sets(Path(scratch), sizes, log.info)
        if data is not None:
            roots[LARGE] = data
        bench = Bench(world, roots, Path(scratch), repeats, spend)
        report.note("precision", bench.precision)
        return measure_rows(rows, experiments_of(suite, gpus), bench, report)


def check_suite(suite: str, world: World) -> None:
    """A :class:`UserError` if this machine has not what the suite measures."""
    if world.size > 1:
        raise UserError("--suite starts its ranks itself: run it without torchrun")
    if suite == "gpu" and world.device.type != "cuda":
        raise UserError("--suite gpu: there is no GPU; --suite cpu measures this machine")
    if suite == "cpu" and world.device.type != "cpu":
        raise UserError("--suite cpu: hide the GPUs from it, with CUDA_VISIBLE_DEVICES=")


def measure_rows(
    rows: list[Row],
    experiments: list[Experiment],
    bench: Callable[[Experiment], tuple[dict[str, list[float]], dict]],
    report: Report,
) -> int:
    """Make each experiment when the first row asks for it, and tell ``report`` of every row.

    One that fails has its rows say so, and the others go on; 1 then.
    """
    by_name = {experiment.name: experiment for experiment in experiments}
    known: Values = {}
    failed: dict[str, str] = {}
    for row in rows:
        for name in row.experiments:
            if name in known or name in failed:
                continue
            log.info("measuring %s", name)
            try:
                known[name], step = bench(by_name[name])
            except MachineFault as error:
                log.error("%s failed: %s", name, error)
                failed[name] = str(error)
            except UserError:
                raise
            except Exception as error:
                log.exception("%s failed", name)
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                report.measured(name, known[name], step)
        reasons = [failed[name] for name in row.experiments if name in failed]
        if reasons:
            report.failed(row, reasons[0])
        else:
            report.add(row, row.values(known))
    return 1 if failed else 0


class Bench:
    """Makes experiments: their numbers by run, a repeat each, and what a step is made of."""

    def __init__(
        self, world: World, roots: dict[str, Path], scratch: Path, repeats: int, seconds: float
    ):
        self.world, self.roots, self.scratch = world, roots, scratch
        self.repeats, self.seconds = repeats, seconds
        # one for all, since on a CPU it is timed
        start = Config(run=RunConfig(dir=str(scratch)))
        self.precision = decided(start, world).engine.precision
        self._folders = (scratch / str(number) for number in itertools.count())

    def __call__(self, experiment: Experiment) -> tuple[dict[str, list[float]], dict]:
        words = [f"engine.precision={self.precision}", *experiment.words(self.roots)]
        if experiment.ranks > 1:
            return self._on_ranks(experiment, words), {}
        try:
            return self._here(experiment, load_config(experiment.config, words))
        finally:
            gc.collect()  # the network, and the loaders with their threads and processes
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()

    def _here(self, experiment: Experiment, config: Config) -> tuple[dict[str, list[float]], dict]:
        folder = next(self._folders)
        folder.mkdir()
        trainer = make_trainer(config, self.world, folder)
        known = (*ALL_RUNS, BASELINE)
        runs = make_runs(trainer, [name for name in known if name in experiment.runs], folder)
        timings = in_turns(trainer, runs, self.repeats, self.seconds)
        values = {}
        for name, repeats in timings.items():
            values[name] = [timing.images_per_s for timing in repeats]
        if SECONDS in experiment.runs:
            values[SECONDS] = self._whole_run(trainer, config, values["end_to_end"])
        if not experiment.trains:
            return values, {}
        try:
            return values, self._step(
                trainer, config.global_batch_size / median(values["synthetic"])
            )
        except Exception:  # rates are worth more than what explains them
            log.exception("what a step of %s is made of could not be seen", experiment.name)
            return values, {}

    def _step(self, trainer: Trainer, seconds: float) -> dict:
        real = iter(trainer.data.train(0, ENOUGH_STEPS))
        return look_at_steps(trainer, real, synthetic_batches(next(real)), seconds)

    def _whole_run(self, trainer: Trainer, config: Config, rates: list[float]) -> list[float]:
        """Seconds of all epochs and evaluations of ``config``, by so many images/s."""
        images = config.epochs * trainer.schedule.positions_per_epoch
        evaluations = config.epochs / config.run.evaluate_every
        found = []
        for rate in rates:
            started = time.monotonic()
            autocast, split = trainer.engine.autocast(), config.data.val_split
            evaluate_split(trainer.engine.method, trainer.data, split, autocast)
            found.append(images / rate + evaluations * (time.monotonic() - started))
        return found

    def _on_ranks(self, experiment: Experiment, words: list[str]) -> dict[str, list[float]]:
        """What this command measures on so many ranks, which torchrun starts."""
        out = next(self._folders).with_suffix(".json")
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc-per-node", str(experiment.ranks), "-m", "lt_train.benchmark"]
        options = ["--json", out, "--repeats", self.repeats, "--seconds", self.seconds]
        command = [sys.executable, *torchrun, experiment.config, *words, *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            # torchrun's own report comes after the line that says why
            lines = done.stderr.splitlines()
            said = [line for line in lines if "rror: " in line] or ["they did not say why"]
            raise MachineFault(f"{experiment.ranks} ranks failed: {said[-1].strip()}")
        result = json.loads(out.read_text())
        values = {name: result[name]["repeats"] for name in ALL_RUNS}
        alone = [rate / experiment.ranks for rate in values["end_to_end"]]
        return values | {"per_rank": alone}
