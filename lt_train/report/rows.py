"""The table of a report: a row for each run and each post-hoc classifier on it."""

import re
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

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
KINDS = {
    "": "",
    "knn_": "k-NN",
    "rotation_": "rotation",
}  # prefix of the headline metric -> what is added to the name
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
        """The name, marked where the test split had a say in the numbers."""
        return f"{self.name} †" if self.selected_on == "test" else self.name

    def values(self, metric: str) -> list[float]:
        """The metric of every seed that has it."""
        return [found[metric] for found in self.metrics if found[metric] is not None]

    @property
    def reference(self) -> float | None:
        """The reference's top-1 error in %; it is of the run, not of classifiers made later."""
        return None if self.is_posthoc else self.runs[0].result.get("reference_error")

    @property
    def difference(self) -> float | None:
        """Our mean error minus the reference's, in points; None unless both are of the test split."""
        errors = self.values("error")
        return (
            mean(errors) - self.reference
            if errors and self.reference is not None and self.split != "val"
            else None
        )


# the table


def make_rows(runs: list[Run]) -> list[Row]:
    """A row for each run and each post-hoc classifier on it; runs that differ only in the seed
    share one.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        base = SEED_SUFFIX.sub("", run.name)
        same = (
            "method",
            "headline",
            "description",
            "steps",
            "train_samples",
            "global_batch_size",
            "reference_error",
            "selected_on",
        )
        alike = (
            (base, run.split, *(run.result.get(key) for key in same), *run.result["class_counts"])
            if base != run.name
            else (run.name,)
        )
        groups.setdefault(alike, []).append(run)
    rows = []
    for members in map(tuple, groups.values()):
        first = members[0]
        name = SEED_SUFFIX.sub("", first.name) if len(members) > 1 else first.name
        kind = KINDS.get(prefix := first.result["headline"].removesuffix("top1"), prefix.strip("_"))
        shown = f"{name} ({kind})" if kind else name
        rows.append(
            Row(
                shown,
                members,
                first.split,
                tuple(run.metrics for run in members),
                first.selected_on,
            )
        )
        rows += _posthoc_rows(name, members)
    return rows


def _posthoc_rows(name: str, runs: tuple[Run, ...]) -> list[Row]:
    """A row for each post-hoc classifier of a run; seeds share it, although each may have chosen
    another parameter.
    """
    found: dict[tuple, list[tuple[Run, Posthoc]]] = {}
    for run in runs:
        names = [own.name for own in run.posthoc]
        for place, own in enumerate(run.posthoc):
            nth = names[:place].count(
                own.name
            )  # one that is there several times is told apart by its place
            found.setdefault((own.name, nth, own.split), []).append((run, own))
    rows = []
    for (title, _, split), pairs in found.items():
        parameters = dict.fromkeys(own.parameter for _, own in pairs if own.parameter)
        shown = f"{name}: {title}" + (f" ({', '.join(parameters)})" if parameters else "")
        owners, classifiers = zip(*pairs)
        selected_on = (
            "test"
            if owners[0].selected_on == "test"
            else owners[0].posthoc_selected_on
            if parameters
            else "none"
        )
        rows.append(
            Row(
                shown,
                owners,
                split,
                tuple(own.metrics for own in classifiers),
                selected_on,
                is_posthoc=True,
            )
        )
    return rows


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text; mean and standard deviation (of the sample, n - 1) over seeds.

    Columns without any value are left out.
    """
    lines = [["run", "split", "seeds", *COLUMNS, "reference", "diff.", "seconds"]]
    for row in rows:
        several = len(row.runs) > 1
        lines.append(
            [
                row.label,
                row.split or "-",
                str(len(row.runs)) if several else "",
                *(
                    _cell(row.values(metric), 2 if metric == "error" else 1)
                    for metric in COLUMNS.values()
                ),
                "" if row.reference is None else f"{row.reference:.2f}",
                "" if row.difference is None else f"{row.difference:+.2f}",
                "" if row.is_posthoc else f"{mean(run.result['seconds'] for run in row.runs):.0f}",
            ]
        )
    kept = [column for column in zip(*lines) if any(column[1:])]
    header, *body = ([cell or "-" for cell in line] for line in zip(*kept))
    return header, body


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (
        f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    )


def remarks(rows: list[Row], unfinished: dict[str, str]) -> list[tuple[str, str]]:
    """(run, what its reader must know): how weights were selected, trouble on the way, and runs
    that are not in the table.
    """
    found = []
    for row in rows:
        what = (
            "its parameter was"
            if row.is_posthoc and row.runs[0].selected_on != "test"
            else "weights were"
        )
        if row.selected_on == "test":
            found.append(
                (
                    f"† {row.name}",
                    (
                        f"{what} selected on the test split, as the reference does; not a fair"
                        " estimate"
                    ),
                )
            )
        elif row.selected_on == "val":
            found.append((row.name, f"{what} selected on the validation split"))
        if row.is_posthoc:
            continue
        for run in row.runs:
            found += [(run.name, warning) for warning in run.warnings]
        seeds = [run.result["seed"] for run in row.runs if run.result.get("seed") is not None]
        if len(set(seeds)) < len(seeds):
            found.append(
                (
                    row.name,
                    (
                        f"its runs do not differ in the seed ({', '.join(map(str, seeds))}), so the"
                        " deviation over seeds says little"
                    ),
                )
            )
    return [*found, *((name, f"{state}; not in the table") for name, state in unfinished.items())]
