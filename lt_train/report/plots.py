"""The report's plots: Matplotlib figures as SVG text that takes its ink from the page and is the
same bytes for the same results.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from lt_train.data.manifest import shot_groups
from lt_train.report.rows import Row
from lt_train.report.runs import Run

INK = "#010203"  # becomes the page's text colour, whether that is dark or light
COLORS = [
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#8c8c8c",
    "#7e57c2",
]  # Okabe and Ito 2008, and two
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ in a name is a $
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"], INK
    ),
}
WIDTH = 9.0  # inches
PER_FIGURE = len(COLORS)  # runs in one figure: as many as can be told apart
MAX_POINTS = 300  # of a curve
MAX_CLASSES = 150  # of which each has a point of its own
MAX_NAMES = 30  # of classes below an axis
MAX_MATRIX_NAMES = 20
GROUPS = {"all": "top1", "many": "many_shot", "medium": "medium_shot", "few": "few_shot"}


@dataclass(frozen=True)
class Plot:
    section: str
    caption: str
    svg: str


def make_plots(rows: list[Row]) -> list[Plot]:
    """All plots that the results allow, section by section."""
    plots: list[Plot] = []

    def add(section: str, caption: str, draw: Callable[[], Figure]) -> None:
        with matplotlib.rc_context(STYLE):
            plots.append(Plot(section, caption, _svg(draw(), f"{len(plots)}")))

    def colors(part: list[Row]) -> dict[Row, str]:  # the same in all plots, if there are enough
        return dict(zip(rows if len(rows) <= PER_FIGURE else part, COLORS))

    compared = [row for row in rows if row.difference is not None]
    for part in _parts(compared, 20):
        add(
            "Beside the reference",
            "Top-1 error on the test split, lower is better.",
            lambda: _references(part),
        )
    for part in _parts([row for row in rows if row.values("top1")]):
        deviation = (
            "; lines: standard deviation over seeds"
            if any(len(row.runs) > 1 for row in part)
            else ""
        )
        add(
            "Many, medium and few",
            f"Accuracy by the classes' number of training images{deviation}.",
            lambda: _groups(part, colors(part)),
        )
    for counts, alike in _by_classes(rows):
        for part in _parts(alike):
            add(
                "Accuracy by class",
                _class_caption(counts),
                lambda: _classes(part, counts, colors(part)),
            )
    for method, alike in _by_method(rows):
        for part in _parts(alike):
            caption = (
                f"Method {method}: training loss, and accuracy on the split that was evaluated most"
                " often, if it was more than once."
            )
            add("Training", caption, lambda: _training(part, colors(part)))
    for row in rows:
        sizes = {len(metrics["confusion"]) for metrics in row.metrics}
        if not row.is_posthoc and sizes != {0} and len(sizes) == 1:
            caption = (
                f"{row.name}, {row.split}: share of a class's images (row) that are taken for each"
                " class (column), from 0 % (dark) to 100 %"
            )
            caption += " (bright); brightness goes with its square root."
            add("Confusion", caption, lambda: _confusion(row))
    return plots


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an SVG element to stand in a page; ``salt`` keeps its ids apart from other
    figures'.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"lt-train {salt}"}), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # the reader's browser has fonts for every script
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"])
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(
        r' id="[\w.]+_\d+"', "", text
    )  # names of groups, of which every figure has the same


def _parts(rows: list, size: int = PER_FIGURE) -> list[list]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _short(name: str, length: int) -> str:
    name = " ".join(name.split())
    name = name if len(name) <= length else name[: length - 1] + "…"
    return (
        f"\u200b{name}" if name.startswith("_") else name
    )  # Matplotlib leaves labels with a leading _ out of legends


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [_short(label, 60) for label in labels]
    columns = max(1, min(len(labels), int(110 / (max(map(len, labels)) + 7)))) if labels else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


# the reference, and groups of classes


def _references(rows: list[Row]) -> Figure:
    figure = Figure((WIDTH, 1.2 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    for offset, label, color, values, spread in (
        (
            -0.2,
            "ours",
            COLORS[0],
            [np.mean(row.values("error")) for row in rows],
            [_std(row.values("error")) for row in rows],
        ),
        (0.2, "reference", COLORS[6], [row.reference for row in rows], None),
    ):
        bars = axes.barh(
            places + offset,
            values,
            0.36,
            label=label,
            color=color,
            xerr=spread,
            error_kw={"ecolor": INK, "elinewidth": 1},
        )
        axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_yticks(places, [_short(row.label, 48) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("top-1 error (%)")
    axes.grid(axis="x")
    _legend(figure, axes)
    return figure


def _groups(rows: list[Row], colors: dict[Row, str]) -> Figure:
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.82 / len(rows)
    groups = {
        name: metric for name, metric in GROUPS.items() if any(row.values(metric) for row in rows)
    }
    for index, row in enumerate(rows):
        found = [row.values(metric) for metric in groups.values()]
        means = [np.mean(values) if values else np.nan for values in found]
        spread = [_std(values) for values in found] if len(row.runs) > 1 else None
        places = np.arange(len(groups)) + (index - (len(rows) - 1) / 2) * width
        axes.bar(
            places,
            means,
            width * 0.92,
            label=row.label,
            color=colors[row],
            yerr=spread,
            error_kw={"ecolor": INK, "elinewidth": 1},
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.grid(axis="y")
    _legend(figure, axes)
    return figure


def _std(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


# classes in the order of their training counts


def _by_classes(rows: list[Row]) -> list[tuple[np.ndarray, list[Row]]]:
    """Rows with an accuracy for each class, by their training counts: only the same ones can share
    an axis.
    """
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        counts = row.runs[0].class_counts
        if counts.any() and all(
            len(metrics["per_class"]) == len(counts) for metrics in row.metrics
        ):
            found.setdefault(tuple(counts), []).append(row)
    return [(np.array(counts), alike) for counts, alike in found.items()]


def _class_caption(counts: np.ndarray) -> str:
    each = (
        f"each point is the mean of about {len(counts) / MAX_CLASSES:.0f} neighbouring classes of"
        f" {len(counts):,}"
    )
    joined = f"; {each}" if len(counts) > MAX_CLASSES else ""
    return (
        f"Accuracy by class, from the class with most training images to that with fewest{joined};"
        " below: training images."
    )


def _classes(rows: list[Row], counts: np.ndarray, colors: dict[Row, str]) -> Figure:
    order = np.argsort(-counts, kind="stable")
    size = len(counts)
    figure = Figure((WIDTH, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    x = _binned(np.arange(size), MAX_CLASSES)
    marker = {"marker": "o", "markersize": 4} if size <= 50 else {}
    for row in rows:
        accuracy = _mean_rows([metrics["per_class"] for metrics in row.metrics])
        upper.plot(
            x,
            _binned(accuracy[order], MAX_CLASSES),
            label=row.label,
            color=colors[row],
            linewidth=1.4,
            **marker,
        )
    upper.set_ylabel("accuracy (%)")
    upper.set_ylim(-3, 103)
    upper.grid(axis="y")
    lower.fill_between(
        x,
        _binned(np.maximum(counts[order], 0.5), MAX_CLASSES),
        0.5,
        step="mid",
        color=INK,
        alpha=0.25,
        linewidth=0,
    )
    lower.set_yscale("log")
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.set_ylabel("images")
    lower.set_xlim(-0.5, size - 0.5)
    _mark_groups(upper, lower, counts[order])
    names = rows[0].runs[0].result["classes"]
    if size <= MAX_NAMES and len(names) == size:
        slant = {"rotation": 35, "ha": "right"} if size <= 12 else {"rotation": 90}
        lower.set_xticks(range(size), [_short(str(names[index]), 20) for index in order], **slant)
    else:
        lower.set_xlabel("classes")
    _legend(figure, upper)
    return figure


def _mark_groups(upper: Axes, lower: Axes, counts: np.ndarray) -> None:
    """Name the many-, medium- and few-shot ranges of descending ``counts``."""
    for name, members in shot_groups(counts).items():
        places = np.flatnonzero(members)
        if len(places) > 0.07 * len(counts):  # room for the name
            middle = (places[0] + places[-1]) / 2
            upper.annotate(
                name.removesuffix("_shot"),
                (middle, 1),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                alpha=0.7,
            )
        if len(places) and places[0] > 0:
            for axes in (upper, lower):
                axes.axvline(
                    places[0] - 0.5, color=INK, alpha=0.4, linewidth=0.8, linestyle=(0, (3, 3))
                )


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    """Means of ``bins`` runs of neighbouring values, or the values themselves if they are no more;
    NaN is left out.
    """
    if len(values) <= bins:
        return values
    return np.array([_mean_rows(part[:, None])[0] for part in np.array_split(values, bins)])


def _mean_rows(rows) -> np.ndarray:
    """Mean over rows of what is not NaN; NaN where nothing is."""
    return np.ma.masked_invalid(np.array(rows, np.float64)).mean(axis=0).filled(np.nan)


# training


def _by_method(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Rows with a loss, by method: losses of different methods are on different scales."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_posthoc and any("loss" in record for run in row.runs for record in run.log):
            found.setdefault(row.runs[0].result["method"], []).append(row)
    return list(found.items())


def _training(rows: list[Row], colors: dict[Row, str]) -> Figure:
    figure = Figure((WIDTH, 3.6), layout="constrained")
    on_the_way = any(len(_evaluations(run)) > 1 for row in rows for run in row.runs)
    panels = figure.subplots(1, 1 + on_the_way, sharex=True, squeeze=False)[0]
    for row in rows:
        for nth, run in enumerate(row.runs):
            style = {"color": colors[row], "linewidth": 1.3 if len(row.runs) == 1 else 0.9}
            label = {"label": row.label} if nth == 0 else {}
            panels[0].plot(
                *_curve(run, [record for record in run.log if "split" not in record], "loss"),
                **style,
                **label,
            )
            if on_the_way:
                evaluated = _evaluations(run)
                marker = "o" if len(evaluated) <= 40 else None
                panels[1].plot(
                    *_curve(run, evaluated, run.result["headline"]),
                    **style,
                    marker=marker,
                    markersize=3,
                )
    for axes, name in zip(panels, ("loss", "accuracy (%)")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid()
    _legend(figure, panels[0])
    return figure


def _evaluations(run: Run) -> list[dict]:
    """The evaluations of the split that was evaluated most often: validation, if there was one."""
    splits = [record["split"] for record in run.log if "split" in record]
    most = max(dict.fromkeys(splits), key=splits.count, default=None)
    return [record for record in run.log if record.get("split") == most] if splits else []


def _curve(run: Run, records: list[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of ``key``, thinned to MAX_POINTS means."""
    points = [
        (record["step"], record[key])
        for record in records
        if isinstance(record.get(key), (int, float))
    ]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return _binned(steps * run.result["epochs"] / max(1, run.result["steps"]), MAX_POINTS), _binned(
        values, MAX_POINTS
    )


# confusion


def _confusion(row: Row) -> Figure:
    """Counts of all seeds together, in % of each true class."""
    counts = np.sum([metrics["confusion"] for metrics in row.metrics], axis=0)
    size = len(counts)
    share = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure((4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="viridis", norm=PowerNorm(0.5, 0, 100), interpolation="none")
    names = row.runs[0].result["classes"]
    if size <= MAX_MATRIX_NAMES and len(names) == size:
        labels = [_short(str(name), 16) for name in names]
        axes.set_xticks(range(size), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(size), labels, fontsize=8)
    if size <= 10:
        for true, predicted in np.ndindex(size, size):
            color = "white" if share[true, predicted] < 50 else "black"
            axes.text(
                predicted,
                true,
                f"{share[true, predicted]:.0f}",
                ha="center",
                va="center",
                color=color,
                fontsize=7,
            )
    axes.set(xlabel="predicted", ylabel="true class")
    axes.set_title(_short(row.label, 44), fontsize=10)
    return figure
