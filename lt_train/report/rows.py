"""The table of a report: a row for each run and each post-hoc classifier on it."""

import math
import re
from dataclasses import dataclass
from itertools import chain
from statistics import mean, stdev
from typing import Any

from lt_train.report.intervals import Interval, can_be_drawn, intervals
from lt_train.report.runs import Posthoc, Run

COLUMNS = {  # of the table -> the metric that they show
    "top-1": "top1",
    "balanced": "balanced",
    "many": "many_shot",
    "medium": "medium_shot",
    "few": "few_shot",
    "ECE": "ece",
    "error": "error",
}
RATES = ("top1", "balanced", "many_shot", "medium_shot", "few_shot")
MARGIN = "95 %"  # the column after top-1
# prefix of the headline metric -> what is added to the name
KINDS = {"": "", "knn_": "k-NN", "rotation_": "rotation"}
SAME = (  # of results whose runs differ only in the seed
    "method",
    "headline",
    "description",
    "steps",
    "train_samples",
    "global_batch_size",
    "reference_error",
    "selected_on",
)
Z = 1.96  # standard deviations to either side that hold 95 % of a normal distribution
OF_TEST, OUTSIDE, TRIAL = "†", "‡", "(trial)"  # marks of rows
SEED_SUFFIX = re.compile(r"-seed\d+(?=/|$)")  # as launch/slurm.py --array-seeds names folders


@dataclass(frozen=True, eq=False)
class Row:
    """A line of the table: a run, or a post-hoc classifier on it, once for each of its seeds."""

    name: str
    runs: tuple[Run, ...]
    split: str | None
    metrics: tuple[dict[str, Any], ...]  # one a seed
    selected_on: str
    is_posthoc: bool = False

    @property
    def label(self) -> str:
        """The name, marked where the test split had a say in the numbers, outside data, or a
        training that was shorter than it should be.
        """
        marks = [TRIAL] * bool(self.trial) + [OF_TEST] * (self.selected_on == "test")
        marks += [OUTSIDE] * bool(self.outside_data)
        return " ".join([self.name, *marks])

    @property
    def outside_data(self) -> tuple[str, ...]:
        """What its runs have learnt from beside their training set."""
        return tuple(dict.fromkeys(chain(*(run.outside_data for run in self.runs))))

    @property
    def trial(self) -> str:
        """What makes any of its runs a trial, in words."""
        return next(filter(None, (run.trial for run in self.runs)), "")

    def values(self, metric: str) -> list[float]:
        """The metric of every seed that has it."""
        return [found[metric] for found in self.metrics if found[metric] is not None]

    @property
    def margin(self) -> float | None:
        """Half the 95 % interval of the mean top-1, in points: that of a share of so many images.

        Seeds are tested on the same images, and narrow nothing. None where their number is unknown.
        """
        scores, samples = self.values("top1"), self.values("samples")
        if not scores or not samples:
            return None
        share = mean(scores) / 100
        return 100 * Z * math.sqrt(share * (1 - share) / samples[0])

    @property
    def reference(self) -> float | None:
        """The reference's top-1 error in %; it is of the run, not of classifiers made later."""
        return None if self.is_posthoc else self.runs[0].result.get("reference_error")

    @property
    def difference(self) -> float | None:
        """Our mean error minus the reference's, in points; None unless both are of the test
        split.
        """
        errors = self.values("error")
        if not errors or self.reference is None or self.split == "val":
            return None
        return mean(errors) - self.reference


def make_rows(runs: list[Run]) -> list[Row]:
    """A row for each run and each post-hoc classifier on it; runs that differ only in the seed
    share one.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(_alike(run), []).append(run)
    rows = []
    for members in map(tuple, groups.values()):
        first = members[0]
        name = SEED_SUFFIX.sub("", first.name) if len(members) > 1 else first.name
        prefix = first.result["headline"].removesuffix("top1")
        kind = KINDS.get(prefix, prefix.strip("_"))
        shown = f"{name} ({kind})" if kind and first.split else name
        metrics = tuple(run.metrics for run in members)
        rows.append(Row(shown, members, first.split, metrics, first.selected_on))
        rows += _posthoc_rows(name, members)
    return rows


def _alike(run: Run) -> tuple:
    """The same for runs that share a row."""
    base = SEED_SUFFIX.sub("", run.name)
    if base == run.name:
        return (run.name,)
    return base, run.split, *map(run.result.get, SAME), *run.result["class_counts"]


def _posthoc_rows(name: str, runs: tuple[Run, ...]) -> list[Row]:
    """A row for each post-hoc classifier of a run; seeds share it, although each may have chosen
    another parameter.
    """
    found: dict[tuple, list[tuple[Run, Posthoc]]] = {}
    for run in runs:
        names = [classifier.name for classifier in run.posthoc]
        for place, classifier in enumerate(run.posthoc):
            nth = names[:place].count(classifier.name)  # of those with the same name
            key = classifier.name, nth, classifier.split
            found.setdefault(key, []).append((run, classifier))
    rows = []
    for (title, _, split), pairs in found.items():
        owners, classifiers = zip(*pairs)
        given = [classifier.parameter for classifier in classifiers if classifier.parameter]
        parameters = ", ".join(dict.fromkeys(given))
        shown = f"{name}: {title} ({parameters})" if parameters else f"{name}: {title}"
        selected_on = owners[0].posthoc_selected_on if parameters else "none"
        if owners[0].selected_on == "test":
            selected_on = "test"
        metrics = tuple(classifier.metrics for classifier in classifiers)
        rows.append(Row(shown, owners, split, metrics, selected_on, is_posthoc=True))
    return rows


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text; mean and standard deviation (of the sample, n - 1) over seeds.

    Columns without any value are left out.
    """
    first, *others = COLUMNS
    lines = [["run", "split", "seeds", first, MARGIN, *others, "reference", "diff.", "seconds"]]
    return with_values([*lines, *map(_cells, rows)])


def with_values(lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of ``lines``, without columns that are empty but for their header."""
    kept = [column for column in zip(*lines) if any(column[1:])]
    header, *body = zip(*kept)
    return list(header), [_filled(line) for line in body]


def _filled(line: tuple[str, ...]) -> list[str]:
    return [cell or "-" for cell in line]


def uncertainty(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of how far accuracies may be off; nothing where nobody can say.

    Of one run 95 % intervals over its test images, of several seeds the lowest and the highest.
    """
    names = {column: metric for column, metric in COLUMNS.items() if metric in RATES}
    lines = [["run", "over", *names]]
    for row in rows:
        if len(row.runs) > 1:
            found, over = {}, f"{len(row.runs)} seeds"
            for metric in RATES:
                if values := row.values(metric):
                    found[metric] = Interval(min(values), max(values))
        elif can_be_drawn(row.metrics[0], row.runs[0].class_counts):
            found = intervals(row.metrics[0], row.runs[0].class_counts)
            over = f"{row.metrics[0]['class_samples'].sum():,} images"
        else:
            continue
        shown = [_range(found.get(metric)) for metric in names.values()]
        lines.append([row.label, over, *shown])
    return with_values(lines) if len(lines) > 1 else ([], [])


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.1f} to {interval.high:.1f}"


def _cells(row: Row) -> list[str]:
    seconds = mean(run.result["seconds"] for run in row.runs)
    first, *others = (
        _mean(row.values(metric), 2 if metric == "error" else 1) for metric in COLUMNS.values()
    )
    return [
        row.label,
        row.split or "-",
        str(len(row.runs)) if len(row.runs) > 1 else "",
        first,
        "" if row.margin is None else f"± {row.margin:.1f}",
        *others,
        "" if row.reference is None else f"{row.reference:.2f}",
        "" if row.difference is None else f"{row.difference:+.2f}",
        "" if row.is_posthoc else f"{seconds:.0f}",
    ]


def _mean(values: list[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def remarks(rows: list[Row], unfinished: dict[str, str]) -> list[tuple[str, str]]:
    """(run, what its reader must know): how weights were selected, trouble on the way, and runs
    that are not in the table.
    """
    found = []
    for row in rows:
        found += _selection(row)
        if row.is_posthoc:
            continue
        if row.trial:
            found.append((row.name, f"a trial: {row.trial}"))
        if row.outside_data:
            remark = f"outside data: {', '.join(row.outside_data)}"
            found.append((f"{OUTSIDE} {row.name}", remark))
        for run in row.runs:
            found += [(run.name, warning) for warning in run.warnings]
        seeds = [run.result["seed"] for run in row.runs if run.result.get("seed") is not None]
        if len(set(seeds)) < len(seeds):
            remark = (
                f"its runs do not differ in the seed ({', '.join(map(str, seeds))}), so the"
                " deviation over seeds says little"
            )
            found.append((row.name, remark))
    return [*found, *((name, f"{state}; not in the table") for name, state in unfinished.items())]


def _selection(row: Row) -> list[tuple[str, str]]:
    parameter = row.is_posthoc and row.runs[0].selected_on != "test"
    what = "its parameter was" if parameter else "weights were"
    if row.selected_on == "test":
        remark = f"{what} selected on the test split, as the reference does; not a fair estimate"
        return [(f"{OF_TEST} {row.name}", remark)]
    if row.selected_on == "val":
        return [(row.name, f"{what} selected on the validation split")]
    return []
