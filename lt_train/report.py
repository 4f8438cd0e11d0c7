"""Reports: ``python -m lt_train report DIR...`` turns the result.json files of runs into report.md, report.html and a table."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.data.manifest import write_atomically
from lt_train.errors import UserError, run_cli

AS_TRAINED = "as trained"  # the head in heads.json that a run's own row shows already
RUN_FILES = ("result.json", "metrics.jsonl", "config.yaml")  # any of them makes a folder a run
SCALARS = ("top1", "balanced", "many_shot", "medium_shot", "few_shot", "ece")
COLUMNS = {  # of the table -> the metric that they show
    "top-1": "top1",
    "balanced": "balanced",
    "many": "many_shot",
    "medium": "medium_shot",
    "few": "few_shot",
    "ECE": "ece",
    "error": "error",
}
KINDS = {"": "", "knn_": "k-NN", "rotation_": "rotation"}  # prefix of the headline metric -> what is added to the name
SEED_SUFFIX = re.compile(r"-seed\d+(?=/|$)")  # as launch/slurm.py --array-seeds names folders


@dataclass(frozen=True)
class Head:
    """A classifier made after training: an entry of heads.json."""

    name: str
    parameter: str  # such as "tau 0.7", or empty
    split: str | None
    metrics: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    ``result``: its result.json. ``metrics``: those of ``split``, without the headline's prefix: SCALARS and "error" in % or None,
    "per_class" (C,) float64 in % with NaN for classes without samples, "confusion" (C, C) float64 or empty. ``log``: the records of
    metrics.jsonl. ``warnings``: what its files tell of trouble.
    """

    name: str
    result: dict[str, Any]
    split: str | None
    metrics: dict[str, Any]
    heads: tuple[Head, ...]
    heads_selected_on: str
    log: tuple[dict, ...]
    warnings: tuple[str, ...]

    @property
    def class_counts(self) -> np.ndarray:
        return np.array(self.result["class_counts"], np.int64)

    @property
    def selected_on(self) -> str:
        return self.result.get("selected_on") or "last"


@dataclass(frozen=True, eq=False)
class Row:
    """A line of the table: a run, or a head on it, once for each of its seeds."""

    name: str
    runs: tuple[Run, ...]
    split: str | None
    metrics: tuple[dict[str, Any], ...]  # one a seed
    selected_on: str
    is_head: bool = False

    @property
    def label(self) -> str:
        """The name, marked where the test split had a say in the numbers."""
        return f"{self.name} †" if self.selected_on == "test" else self.name

    def values(self, metric: str) -> list[float]:
        """The metric of every seed that has it."""
        return [found[metric] for found in self.metrics if found[metric] is not None]

    @property
    def reference(self) -> float | None:
        """The reference's top-1 error in %; it is of the run, not of heads made later."""
        return None if self.is_head else self.runs[0].result.get("reference_error")

    @property
    def difference(self) -> float | None:
        """Our mean error minus the reference's, in points; None unless both are of the test split."""
        errors = self.values("error")
        return mean(errors) - self.reference if errors and self.reference is not None and self.split != "val" else None


# reading


def find_runs(folders: list[Path]) -> dict[str, Path]:
    """All runs in ``folders``, finished or not, by name: each folder itself, its sub-folders, and theirs."""
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder: name a run, or a folder of runs")
        root = folder.resolve()
        try:
            below = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
            runs = [run for run in below if any((run / file).is_file() for file in RUN_FILES)]
        except OSError as error:
            raise UserError(f"cannot read '{folder}': {error.strerror}") from error
        if not runs:
            raise UserError(f"there is no run in '{folder}' or the folders in it: name a run.dir, or a folder of them")
        found |= dict.fromkeys(runs)
    base = folders[0].resolve() if len(folders) == 1 else Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    return {run.relative_to(base).as_posix() if run != base else run.name: run for run in found}


def read_runs(folders: list[Path]) -> tuple[list[Run], dict[str, str]]:
    """The finished runs in ``folders``, folder by folder in the order in which they finished; and how far each other one is."""
    runs, unfinished = [], {}
    found = find_runs(folders)
    for name, folder in found.items():
        if (folder / "result.json").is_file():
            runs.append(_read_run(name, folder))
        else:
            unfinished[name] = _progress(folder)
    if not runs:
        states = "; ".join(f"{name}: {state}" for name, state in unfinished.items())
        raise UserError(f"no run has finished in {', '.join(map(str, folders))} ({states}); the same training command again goes on with it")
    given = [folder.resolve() for folder in folders]
    order = {name: min(i for i, root in enumerate(given) if folder.is_relative_to(root)) for name, folder in found.items()}
    return sorted(runs, key=lambda run: (order[run.name], run.result["finished"], run.name)), unfinished


def _parse(path: Path, parse: Callable[[Any], Any], advice: str) -> Any:
    """``parse`` of the JSON in a file; whatever is wrong with it is a :class:`UserError` that names the file."""
    try:
        return parse(json.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}; {advice}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}; {advice}") from error


def _read_run(name: str, folder: Path) -> Run:
    result, split, metrics = _parse(folder / "result.json", _checked, "delete it and give the training command again")
    selected_on, heads = "none", ()
    if (folder / "heads.json").is_file():
        selected_on, heads = _parse(folder / "heads.json", _heads, "make it again")
    log, unreadable = read_log(folder)
    warnings = [f"{unreadable} unreadable line(s) in its metrics.jsonl are left out"] if unreadable else []
    if (folder / "nonfinite.json").is_file():
        warnings.append(f"its loss was not finite{_nonfinite_step(folder)}; nonfinite.json names the samples")
    return Run(name, result, split, metrics, heads, selected_on, tuple(log), tuple(warnings))


def _checked(result: dict[str, Any]) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
    """``result``, if it has what the report reads, and of it the split and the metrics to report."""
    number = (int, float)
    needed = {"stage": str, "headline": str, "metrics": dict, "class_counts": list, "classes": list, "finished": str, "versions": dict}
    needed |= {"steps": int, "epochs": number, "train_samples": int, "seconds": number, "ranks": int, "global_batch_size": int}
    optional = {"description": str, "seed": int, "reference_error": number, "selected_on": str}
    if not isinstance(result, dict):
        raise TypeError("it does not hold an object")
    for key, kind in {**needed, **optional}.items():
        value = result[key] if key in needed else result.get(key)
        if not isinstance(value, kind) and (key in needed or value is not None):
            raise TypeError(f"'{key}' cannot be {json.dumps(value)[:40]}")
    np.array(result["class_counts"], np.int64)
    return result, *_reported(result["metrics"], result["headline"].removesuffix("top1"))


def _reported(splits: dict[str, dict], prefix: str) -> tuple[str | None, dict[str, Any]]:
    """The test split where there is one, else the last (the loop evaluates validation first), and its metrics as in :class:`Run`."""
    split = "test" if "test" in splits else next(reversed(splits), None)
    found = {key.removeprefix(prefix): value for key, value in splits.get(split, {}).items() if key.startswith(prefix)}
    metrics: dict[str, Any] = {key: None if found.get(key) is None else float(found[key]) for key in SCALARS}
    metrics["error"] = None if metrics["top1"] is None else 100 - metrics["top1"]
    metrics["per_class"] = np.array(found.get("per_class") or [], np.float64).ravel()
    confusion = np.array(found.get("confusion") or np.zeros((0, 0)), np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError("its confusion matrix is not square")
    metrics["confusion"] = confusion
    if metrics["balanced"] is None and np.isfinite(metrics["per_class"]).any():  # results from before it was written
        metrics["balanced"] = float(np.nanmean(metrics["per_class"]))
    return split, metrics


def _heads(content: dict[str, Any]) -> tuple[str, tuple[Head, ...]]:
    others = [head for head in content["heads"] if head["name"] != AS_TRAINED]
    heads = [Head(str(head["name"]), str(head.get("parameter") or ""), *_reported(head["metrics"], "")) for head in others]
    return content.get("selected_on") or "none", tuple(heads)


def read_log(folder: Path) -> tuple[list[dict], int]:
    """The records of metrics.jsonl, and how many lines cannot be read. A last line that a kill cut short is not counted."""
    try:
        lines = (folder / "metrics.jsonl").read_text(errors="replace").splitlines(keepends=True)
    except OSError:
        return [], 0
    records, unreadable = [], 0
    for line in lines:
        try:
            record = json.loads(line)
            record["step"] + 0
            records.append(record)
        except (ValueError, TypeError, KeyError):
            unreadable += line.endswith("\n")
    return records, unreadable


def _progress(folder: Path) -> str:
    """How far an unfinished run is, in words."""
    trained = [record for record in read_log(folder)[0] if "loss" in record]
    last = trained[-1] if trained else None
    state = f"unfinished, step {last['step']} of {last.get('last_step', '?')}" if last else "unfinished, nothing logged yet"
    if (folder / "nonfinite.json").is_file():
        state += f"; stopped because its loss was not finite{_nonfinite_step(folder)}"
    return state


def _nonfinite_step(folder: Path) -> str:
    try:
        return f" at step {json.loads((folder / 'nonfinite.json').read_text())['step']}"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


# the table


def make_rows(runs: list[Run]) -> list[Row]:
    """A row for each run and each head on it; runs that differ only in the seed share one."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        base = SEED_SUFFIX.sub("", run.name)
        same = ("stage", "headline", "description", "steps", "train_samples", "global_batch_size", "reference_error", "selected_on")
        alike = (base, run.split, *(run.result.get(key) for key in same), *run.result["class_counts"]) if base != run.name else (run.name,)
        groups.setdefault(alike, []).append(run)
    rows = []
    for members in map(tuple, groups.values()):
        first = members[0]
        name = SEED_SUFFIX.sub("", first.name) if len(members) > 1 else first.name
        kind = KINDS.get(prefix := first.result["headline"].removesuffix("top1"), prefix.strip("_"))
        shown = f"{name} ({kind})" if kind else name
        rows.append(Row(shown, members, first.split, tuple(run.metrics for run in members), first.selected_on))
        rows += _head_rows(name, members)
    return rows


def _head_rows(name: str, runs: tuple[Run, ...]) -> list[Row]:
    """A row for each head of a run; seeds share it, although each may have chosen another parameter."""
    found: dict[tuple, list[tuple[Run, Head]]] = {}
    for run in runs:
        names = [head.name for head in run.heads]
        for place, head in enumerate(run.heads):
            nth = names[:place].count(head.name)  # a head that is there several times is told apart by its place
            found.setdefault((head.name, nth, head.split), []).append((run, head))
    rows = []
    for (head_name, _, split), pairs in found.items():
        parameters = dict.fromkeys(head.parameter for _, head in pairs if head.parameter)
        shown = f"{name}: {head_name}" + (f" ({', '.join(parameters)})" if parameters else "")
        owners, heads = zip(*pairs)
        selected_on = "test" if owners[0].selected_on == "test" else owners[0].heads_selected_on if parameters else "none"
        rows.append(Row(shown, owners, split, tuple(head.metrics for head in heads), selected_on, is_head=True))
    return rows


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text; mean and standard deviation (of the sample, n - 1) over seeds. Columns without any value are left out."""
    lines = [["run", "split", "seeds", *COLUMNS, "reference", "diff.", "seconds"]]
    for row in rows:
        several = len(row.runs) > 1
        lines.append(
            [
                row.label,
                row.split or "-",
                str(len(row.runs)) if several else "",
                *(_cell(row.values(metric), 2 if metric == "error" else 1) for metric in COLUMNS.values()),
                "" if row.reference is None else f"{row.reference:.2f}",
                "" if row.difference is None else f"{row.difference:+.2f}",
                "" if row.is_head else f"{mean(run.result['seconds'] for run in row.runs):.0f}",
            ]
        )
    kept = [column for column in zip(*lines) if any(column[1:])]
    header, *body = ([cell or "-" for cell in line] for line in zip(*kept))
    return header, body


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def remarks(rows: list[Row], unfinished: dict[str, str]) -> list[tuple[str, str]]:
    """(run, what its reader must know): how weights were selected, trouble on the way, and runs that are not in the table."""
    found = []
    for row in rows:
        what = "its parameter was" if row.is_head and row.runs[0].selected_on != "test" else "weights were"
        if row.selected_on == "test":
            found.append((f"† {row.name}", f"{what} selected on the test split, as the reference does; not a fair estimate"))
        elif row.selected_on == "val":
            found.append((row.name, f"{what} selected on the validation split"))
        if row.is_head:
            continue
        for run in row.runs:
            found += [(run.name, warning) for warning in run.warnings]
        seeds = [run.result["seed"] for run in row.runs if run.result.get("seed") is not None]
        if len(set(seeds)) < len(seeds):
            found.append((row.name, f"its runs do not differ in the seed ({', '.join(map(str, seeds))}), so the deviation over seeds says little"))
    return [*found, *((name, f"{state}; not in the table") for name, state in unfinished.items())]


# the command


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lt_train report",
        description="Write report.md and report.html about runs, and print their table. Folders that differ only in a suffix -seedN are "
        "shown as mean and standard deviation.",
    )
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="a run, or a folder of runs as a pipeline makes it")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the report goes (default: the one DIR; of several, reports/)")
    arguments = parser.parse_args(words)
    out = arguments.out or (arguments.dirs[0] if len(arguments.dirs) == 1 else Path("reports"))
    runs, unfinished = read_runs(arguments.dirs)
    rows = make_rows(runs)
    notes = remarks(rows, unfinished)
    from lt_train.report_html import to_html, to_markdown  # only now: matplotlib is slow to import

    title = _title([folder.resolve().name for folder in arguments.dirs])
    content = title, rows, *table(rows), notes
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.md", to_markdown(*content).encode())
        write_atomically(out / "report.html", to_html(*content).encode())
    except OSError as error:
        raise UserError(f"cannot write the report to '{out}': {error.strerror}; choose another folder with --out") from error
    _show(rows, notes)
    Console(soft_wrap=True).print(f"{out / 'report.md'}\n{out / 'report.html'}", highlight=False, markup=False)
    return 0


def _title(names: list[str]) -> str:
    names = names if len(names) == 1 else list(dict.fromkeys(SEED_SUFFIX.sub("", name) for name in names))
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} and {len(names) - 1} more"


def _show(rows: list[Row], notes: list[tuple[str, str]]) -> None:
    sys.stdout.reconfigure(errors="replace")  # where the encoding has no ±
    console = Console()
    if not console.is_terminal:  # a log has no width
        console = Console(width=240)
    header, body = table(rows)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in header:
        is_text = column in ("run", "split")
        shown.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for line in body:
        shown.add_row(*map(Text, line))
    console.print(shown)
    for name, remark in notes:
        console.print(f"{name}: {remark}", highlight=False, markup=False)


if __name__ == "__main__":
    run_cli("lt_train.report", main)
