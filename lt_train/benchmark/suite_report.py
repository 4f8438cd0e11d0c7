"""What ``--suite`` writes: JSON, Markdown and a picture, all anew after every row."""

import io
import json
import time
from pathlib import Path
from statistics import median

from lt_train.benchmark.machine import machine
from lt_train.benchmark.rows import Row
from lt_train.errors import unreadable
from lt_train.files import write_atomically

NOT_YET = "not measured yet"


class Report:
    """Rows, rates and steps as they are measured, in the files that are wanted."""

    def __init__(self, json: Path | None, markdown: Path | None, picture: Path | None):
        self.files = {"json": json, "markdown": markdown, "picture": picture}
        self.found: dict = {}

    def begin(self, suite: str, rows: list[Row]) -> None:
        """With no row measured yet; a :class:`UserError` for a file that cannot be written."""
        self.rows = {row.name: row for row in rows}
        self.found = {
            "suite": suite,
            "began": time.strftime("%Y-%m-%d %H:%M"),
            "complete": False,
            "machine": machine(),
            "rows": {row.name: {"aim": row.aim, "unit": row.unit} for row in rows},
            "rates": {},
            "steps": {},
        }
        self._write()

    def note(self, name: str, value: str) -> None:
        """Something more of the machine."""
        self.found["machine"][name] = value

    def measured(self, experiment: str, values: dict[str, list[float]], step: dict) -> None:
        """What an experiment came to, which :meth:`add` or :meth:`failed` will write."""
        self.found["rates"][experiment] = {name: _spread(runs) for name, runs in values.items()}
        if step:
            self.found["steps"][experiment] = step

    def add(self, row: Row, values: list[float]) -> None:
        spread = _spread(values)
        over = row.over_aim(spread["median"])
        self._end(row, spread | {"over_aim": over and round(over, 4)})

    def failed(self, row: Row, reason: str) -> None:
        self._end(row, {"failed": reason})

    def _end(self, row: Row, result: dict) -> None:
        self.found["rows"][row.name] |= result
        ended = [{"median", "failed"} & found.keys() for found in self.found["rows"].values()]
        self.found["complete"] = all(ended)
        self._write()

    def _write(self) -> None:
        makers = {"json": as_json, "markdown": as_markdown, "picture": as_picture}
        for kind, path in self.files.items():
            if path is None:
                continue
            try:
                write_atomically(path, makers[kind](self.found))
            except OSError as error:
                raise unreadable(
                    error, f"cannot write --{kind} {path}: {error.strerror}"
                ) from error


def _spread(values: list[float]) -> dict:
    rounded = [float(f"{value:.6g}") for value in values]
    return {
        "median": median(rounded),
        "min": min(rounded),
        "max": max(rounded),
        "repeats": rounded,
    }


def as_json(found: dict) -> bytes:
    return (json.dumps(found, indent=1) + "\n").encode()


def as_markdown(found: dict) -> bytes:
    """The machine, a table of rows, of all rates, and of what steps are made of."""
    about = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = [f"Began {found['began']}. {about}.", ""]
    lines += _table(["what", "measured", "min to max", "aim", "measured over aim"])
    for name, row in found["rows"].items():
        aim = "-" if row["aim"] is None else _number(row["aim"]) + _unit(row)
        lines.append(_line([name, *_measured(row), aim, _ratio(row.get("over_aim"))]))
    lines += ["", *_table(["images/s", "run", "median", "min to max"])]
    for name, runs in found["rates"].items():
        for run, spread in runs.items():
            shown = run.replace("_", " ")
            lines.append(_line([name, shown, _number(spread["median"]), _range(spread)]))
    if found["steps"]:
        lines += ["", *_steps(found["steps"])]
    return ("\n".join(lines) + "\n").encode()


def _measured(row: dict) -> list[str]:
    if "median" not in row:
        return [f"failed: {row['failed']}".replace("|", "/") if "failed" in row else NOT_YET, "-"]
    return [_number(row["median"]) + _unit(row), _range(row)]


def _steps(steps: dict[str, dict]) -> list[str]:
    """A row a step: ms of its parts, then what the host asked for in it."""
    counts = ("operations", "launches", "kernels", "waits", "flop_utilisation")
    parts = list(next(iter(steps.values()))["parts"])
    header = ["a step of", *(f"{part}, ms" for part in parts), *counts]
    lines = _table([name.replace("_", " ") for name in header])
    for name, step in steps.items():
        cells = [f"{step['parts'][part]:.2f}" for part in parts]
        cells += ["-" if step.get(count) is None else _number(step[count]) for count in counts]
        lines.append(_line([name, *cells]))
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _unit(row: dict) -> str:
    return "" if row["unit"] == "x" else f" {row['unit']}"


def _range(spread: dict) -> str:
    return f"{_number(spread['min'])} to {_number(spread['max'])}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(header: list[str]) -> list[str]:
    return [_line(header), _line(["---"] * len(header))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_picture(found: dict) -> bytes:
    """Bars of measured over aim, of the rows that have one; 1 is the aim."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    aimed = {name: row for name, row in found["rows"].items() if row["aim"] is not None}
    heights = [row.get("over_aim") or 0.0 for row in aimed.values()]
    figure = Figure(figsize=(9, 1 + 0.35 * len(aimed)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(list(aimed), heights, color="#0072b2")
    axes.bar_label(bars, [f"{height:.2f}" if height else NOT_YET for height in heights], padding=3)
    axes.axvline(1, color="#d55e00")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("measured over aim")
    axes.set_title(f"{found['suite']}: {found['machine']['device']}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
