"""The report's plots: Matplotlib figures as SVG text that takes its ink from the page and is the
same bytes for the same results.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lt_train.drawing.style import (
    COLORS,
    ERROR_BAR,
    LOOKS,
    STYLE,
    WIDTH,
    Look,
    add_legend,
    binned,
    deviation,
    least_width,
    legend_label,
    short,
    to_svg,
)
from lt_train.report.calibration import draw_reliability, has_predictions
from lt_train.report.class_plots import (
    class_caption,
    confusion_caption,
    draw_classes,
    draw_groups,
    draw_row_confusion,
    has_confusion,
    rows_by_classes,
)
from lt_train.report.rows import Row
from lt_train.report.runs import Run

PER_FIGURE = len(COLORS)  # runs in one figure: as many as can be told apart
PER_REFERENCE_FIGURE = 20  # whose runs need no colours
MAX_POINTS = 300  # of a curve


@dataclass(frozen=True)
class Plot:
    """``least_width``: as of :func:`least_width`."""

    section: str
    caption: str
    svg: str
    least_width: int


def make_plots(rows: list[Row]) -> list[Plot]:
    """All plots that the results allow, section by section."""
    with matplotlib.rc_context(STYLE):
        plots = []
        for number, (section, caption, figure) in enumerate(_figures(rows)):
            svg = to_svg(figure, str(number))
            plots.append(Plot(section, caption, svg, least_width(figure)))
        return plots


def _figures(rows: list[Row]) -> Iterator[tuple[str, str, Figure]]:
    """(section, caption, figure) of each plot."""

    def looks(part: list[Row]) -> dict[Row, Look]:  # the same in all plots, if there are enough
        return dict(zip(rows if len(rows) <= PER_FIGURE else part, LOOKS))

    compared = [row for row in rows if row.difference is not None]
    for part in _parts(compared, PER_REFERENCE_FIGURE):
        caption = "Top-1 error on the test split, lower is better."
        yield "Beside the reference", caption, _draw_references(part)
    for part in _parts([row for row in rows if row.values("top1")]):
        caption = "Accuracy by the classes' number of training images"
        if any(len(row.runs) > 1 for row in part):
            caption += "; lines: standard deviation over seeds"
        yield "Many, medium and few", f"{caption}.", draw_groups(part, looks(part))
    for counts, alike in rows_by_classes(rows):
        for part in _parts(alike):
            figure = draw_classes(part, counts, looks(part))
            yield "Accuracy by class", class_caption(counts), figure
    for part in _parts(list(filter(has_predictions, rows))):
        caption = (
            "Accuracy of images by how sure the classifier was of them; on the diagonal it is as"
            " often right as it says. Below: how many images there are of each confidence."
        )
        yield "Calibration", caption, draw_reliability(part, looks(part))
    for method, alike in _rows_by_method(rows):
        caption = (
            f"Method {method}: training loss, and accuracy on the split that was evaluated most"
            " often, if it was more than once."
        )
        for part in _parts(alike):
            yield "Training", caption, _draw_training(part, looks(part))
    for row in filter(has_confusion, rows):
        yield "Confusion", confusion_caption(row), draw_row_confusion(row)


def _parts(rows: list[Row], size: int = PER_FIGURE) -> list[list[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


# the reference


def _draw_references(rows: list[Row]) -> Figure:
    figure = Figure((WIDTH, 1.2 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    errors = [row.values("error") for row in rows]
    means, spread = [np.mean(values) for values in errors], list(map(deviation, errors))
    references = [row.reference for row in rows]
    ours = axes.barh(
        places - 0.2,
        means,
        0.36,
        label="ours",
        color=COLORS[0],
        xerr=spread,
        error_kw=ERROR_BAR,
    )
    axes.bar_label(ours, fmt="%.2f", padding=4)
    theirs = axes.barh(places + 0.2, references, 0.36, label="reference", color=COLORS[6])
    axes.bar_label(theirs, fmt="%.2f", padding=4)
    axes.set_yticks(places, [short(row.label, 48) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("top-1 error (%)")
    axes.grid(axis="x")
    add_legend(figure, axes)
    return figure


# training


def _rows_by_method(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Rows with a loss, by method: losses of different methods are on different scales."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        records = itertools.chain(*(run.log for run in row.runs))
        if not row.is_posthoc and any("loss" in record for record in records):
            found.setdefault(row.runs[0].result["method"], []).append(row)
    return list(found.items())


def _draw_training(rows: list[Row], looks: dict[Row, Look]) -> Figure:
    figure = Figure((WIDTH, 3.6), layout="constrained")
    runs = itertools.chain(*(row.runs for row in rows))
    on_the_way = any(len(_evaluations(run)) > 1 for run in runs)
    panels = figure.subplots(1, 1 + on_the_way, sharex=True, squeeze=False)[0]
    for row in rows:
        style = looks[row].line | ({} if len(row.runs) == 1 else {"linewidth": 0.9})
        for nth, run in enumerate(row.runs):
            label = {"label": legend_label(row.label)} if nth == 0 else {}
            trained = [record for record in run.log if "split" not in record]
            panels[0].plot(*_curve(run, trained, "loss"), **style, **label)
            if on_the_way:
                evaluated = _evaluations(run)
                points = looks[row].points if len(evaluated) <= 40 else {}
                curve = _curve(run, evaluated, run.result["headline"])
                panels[1].plot(*curve, **style, **points)
    for axes, name in zip(panels, ("loss", "accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid()
    add_legend(figure, panels[0])
    return figure


def _evaluations(run: Run) -> list[dict]:
    """The evaluations of the split that was evaluated most often: validation, if there was one."""
    splits = [record["split"] for record in run.log if "split" in record]
    most = max(dict.fromkeys(splits), key=splits.count, default=None)
    return [record for record in run.log if record.get("split") == most] if splits else []


def _curve(run: Run, records: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of ``key``, thinned to MAX_POINTS means."""
    kept = [record for record in records if isinstance(record.get(key), (int, float))]
    points = [(record["step"], record[key]) for record in kept]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    epochs = steps * run.result["epochs"] / max(1, run.result["steps"])
    return binned(epochs, MAX_POINTS), binned(values, MAX_POINTS)
