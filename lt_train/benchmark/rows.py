"""What ``--suite`` measures: experiments, and the rows read off them, each with its aim."""

from dataclasses import dataclass
from pathlib import Path

from lt_train.benchmark.measure import ALL_RUNS, BASELINE

Cell = tuple[str, str]  # an experiment and one of its runs
Values = dict[str, dict[str, list[float]]]  # by experiment and run: a number a repeat

SUITES = ("cpu", "gpu")
LARGE, SMALL = "large", "small"  # the sets that the suite makes
SECONDS = "whole_run"  # a run whose values are seconds, not images/s: all epochs of the config
TRAINING = {"synthetic", "bare_loop", "end_to_end"}

CROP = ("view.jitter=[0.0,0.0,0.0,0.0]",)  # random resized crop and flip alone
GRAPHS = "engine.cuda_graph"
RANDAUGMENT = "+randaugment"


@dataclass(frozen=True)
class Experiment:
    """A config, on one of the suite's sets, and what of it is timed, in turns."""

    name: str
    config: str
    settings: tuple[str, ...]
    runs: tuple[str, ...]  # of measure.make_runs, and SECONDS
    images: str = LARGE
    ranks: int = 1  # more are started by torchrun

    @property
    def trains(self) -> bool:
        return bool(TRAINING & set(self.runs))

    def words(self, roots: dict[str, Path]) -> list[str]:
        """Overrides of its config, with a set's folder by its name."""
        return [*self.settings, f"data.root={roots[self.images]}"]


@dataclass(frozen=True)
class Row:
    """A number a repeat: what ``of`` reached, over the least of what ``over`` did."""

    name: str
    of: Cell
    over: tuple[Cell, ...] = ()
    aim: float | None = None
    unit: str = "x"  # "images/s" and "s" (less is better) without ``over``

    @property
    def experiments(self) -> list[str]:
        """What must be known for it."""
        return [experiment for experiment, _ in (self.of, *self.over)]

    def values(self, known: Values) -> list[float]:
        measured = [known[experiment][run] for experiment, run in (self.of, *self.over)]
        found = []
        for own, *others in zip(*measured):
            found.append(own / min(others) if others else own)
        return found

    def over_aim(self, value: float) -> float | None:
        """1 or more: the aim is reached."""
        if self.aim is None:
            return None
        return self.aim / value if self.unit == "s" else value / self.aim


def experiments_of(suite: str, gpus: int = 0) -> list[Experiment]:
    """In the order in which they are made; ``gpus``: of this machine."""
    if suite == "cpu":
        with_baseline = (*ALL_RUNS, BASELINE)
        crops, views = (*CROP, "global_batch_size=8"), ("global_batch_size=8",)
        return [
            Experiment("ResNet-50", "classifier_folder", crops, with_baseline),
            Experiment("MoCo", "moco_folder", views, with_baseline),
            Experiment("ResNet-32", "classifier_cifar10_lt", (), with_baseline, SMALL),
            Experiment("RandAugment", "classifier_cifar10_lt", (RANDAUGMENT,), ("loader",), SMALL),
        ]
    large = ("global_batch_size=256",)
    found = [
        Experiment("ResNet-50", "classifier_folder", (*CROP, *large), ALL_RUNS),
        Experiment("MoCo", "moco_folder", large, ALL_RUNS),
    ]
    for precision in ("bf16", "fp32"):
        for graphs in ("auto", "false"):
            settings = f"engine.precision={precision}", f"{GRAPHS}={graphs}"
            name = f"ResNet-32, {precision}, {GRAPHS}={graphs}"
            runs = ("synthetic", "end_to_end", SECONDS)
            found.append(Experiment(name, "classifier_cifar10_lt", settings, runs, SMALL))
    compiled = (*CROP, *large, "engine.compile=true")
    found += [
        Experiment("RandAugment", "classifier_cifar10_lt", (RANDAUGMENT,), ("loader",), SMALL),
        Experiment("RandAugment, 224 px", "classifier_folder", (*large, RANDAUGMENT), ("loader",)),
        Experiment("ResNet-50, compiled", "classifier_folder", compiled, ("synthetic",)),
    ]
    for ranks in ranks_of(gpus):
        batch = (f"global_batch_size={256 * ranks}",)
        for name, config, more in (
            ("ResNet-50", "classifier_folder", CROP),
            ("MoCo", "moco_folder", ()),
        ):
            settings = (*more, *batch)
            found.append(
                Experiment(f"{name}, {ranks} ranks", config, settings, ALL_RUNS, ranks=ranks)
            )
    return found


def ranks_of(gpus: int) -> list[int]:
    """More than one, doubled as far as there are GPUs."""
    return [2**power for power in range(1, max(1, gpus).bit_length())]


def rows_of(suite: str, gpus: int = 0) -> list[Row]:
    """In the order in which they are measured."""
    return _cpu_rows() if suite == "cpu" else _gpu_rows(gpus)


def _cpu_rows() -> list[Row]:
    rows = []
    for name, what, faster in (
        ("ResNet-50", "224 px, crop and flip", 2.0),
        ("MoCo", "two 224 px views", 2.5),
        ("ResNet-32", "32 px, resident", 30.0),
    ):
        synthetic, bare, loader, end_to_end, baseline = (
            (name, run) for run in (*ALL_RUNS, BASELINE)
        )
        loads = f"{name}: loader of {what} / ImageFolder and DataLoader"
        rows += [
            Row(loads, loader, (baseline,), faster),
            Row(f"{name}: end to end / slower half", end_to_end, (synthetic, loader), 0.97),
            Row(f"{name}: loop / bare loop", synthetic, (bare,), 0.99),
        ]
    augmented = "loader of 32 px, resident, with RandAugment"
    rows.append(Row(augmented, ("RandAugment", "loader"), aim=90_000, unit="images/s"))
    return rows


def _gpu_rows(gpus: int) -> list[Row]:
    synthetic, end_to_end = ("ResNet-50", "synthetic"), ("ResNet-50", "end_to_end")
    small = f"ResNet-32, bf16, {GRAPHS}=auto"
    rows = [
        Row("ResNet-50: synthetic", synthetic, unit="images/s"),
        Row("ResNet-50: end to end / synthetic", end_to_end, (synthetic,), 0.98),
        Row("ResNet-50: loop / bare loop", synthetic, (("ResNet-50", "bare_loop"),), 0.99),
        Row("MoCo: end to end / ResNet-50 synthetic", ("MoCo", "end_to_end"), (synthetic,), 0.74),
    ]
    for experiment in experiments_of("gpu"):
        if SECONDS in experiment.runs:
            of, aim = (experiment.name, "end_to_end"), 35_000
            rows.append(Row(f"{experiment.name}: end to end", of, aim=aim, unit="images/s"))
    rows += [
        Row("ResNet-32: 200 epochs of CIFAR-10-LT", (small, SECONDS), aim=75, unit="s"),
        Row("loader of 32 px with RandAugment", ("RandAugment", "loader"), unit="images/s"),
        Row(
            "loader of 224 px with jitter and RandAugment",
            ("RandAugment, 224 px", "loader"),
            unit="images/s",
        ),
        Row(
            "ResNet-50: compiled / not, synthetic",
            ("ResNet-50, compiled", "synthetic"),
            (synthetic,),
        ),
    ]
    for ranks in ranks_of(gpus):
        for name in ("ResNet-50", "MoCo"):
            of, over = (f"{name}, {ranks} ranks", "per_rank"), ((name, "end_to_end"),)
            rows.append(Row(f"{name}: a rank of {ranks} / one alone, end to end", of, over, 0.95))
    return rows
