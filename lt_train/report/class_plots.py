"""Plots of classes: groups by their training images, each class, and the confusion matrix."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_train.data.manifest import shot_groups
from lt_train.drawing.classes import draw_confusion
from lt_train.drawing.style import (
    ERROR_BAR,
    INK,
    WIDTH,
    Look,
    add_legend,
    binned,
    deviation,
    label_powers,
    legend_label,
    mean_rows,
    short,
)
from lt_train.report.rows import Row

MAX_CLASSES = 150  # of which each has a point of its own
MAX_NAMES = 30  # of classes below an axis
GROUPS = {"all": "top1", "many": "many_shot", "medium": "medium_shot", "few": "few_shot"}


# many-, medium- and few-shot classes


def draw_groups(rows: list[Row], looks: dict[Row, Look]) -> Figure:
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.82 / len(rows)
    groups = {}
    for name, metric in GROUPS.items():
        if any(row.values(metric) for row in rows):
            groups[name] = metric
    for index, row in enumerate(rows):
        found = [row.values(metric) for metric in groups.values()]
        means = [np.mean(values) if values else np.nan for values in found]
        axes.bar(
            np.arange(len(groups)) + (index - (len(rows) - 1) / 2) * width,
            means,
            width * 0.92,
            label=legend_label(row.label),
            color=looks[row].color,
            yerr=[deviation(values) for values in found] if len(row.runs) > 1 else None,
            error_kw=ERROR_BAR,
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.grid(axis="y")
    add_legend(figure, axes)
    return figure


# classes in the order of their training counts


def rows_by_classes(rows: list[Row]) -> list[tuple[np.ndarray, list[Row]]]:
    """Rows with an accuracy for each class, by their training counts: only the same ones can share
    an axis.
    """
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        counts = row.runs[0].class_counts
        if counts.any() and {len(metrics["per_class"]) for metrics in row.metrics} == {len(counts)}:
            found.setdefault(tuple(counts), []).append(row)
    return [(np.array(counts), alike) for counts, alike in found.items()]


def mean_accuracies(row: Row) -> np.ndarray:
    """Of each class over all seeds, (C,) in %; NaN for classes without test images."""
    return mean_rows([metrics["per_class"] for metrics in row.metrics])


def class_caption(counts: np.ndarray) -> str:
    joined = ""
    if len(counts) > MAX_CLASSES:
        joined = (
            f"; each point is the mean of about {len(counts) / MAX_CLASSES:.0f} neighbouring"
            f" classes of {len(counts):,}"
        )
    return (
        f"Accuracy by class, from the class with most training images to that with fewest{joined};"
        " below: training images."
    )


def draw_classes(rows: list[Row], counts: np.ndarray, looks: dict[Row, Look]) -> Figure:
    order = np.argsort(-counts, kind="stable")
    size = len(counts)
    figure = Figure((WIDTH, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    x = binned(np.arange(size), MAX_CLASSES)
    is_sparse = size <= 50  # with room for markers beside each other
    for place, row in enumerate(rows):
        accuracy = mean_accuracies(row)
        points = looks[row].points if is_sparse else {}
        aside = 0.3 * ((place + 0.5) / len(rows) - 0.5) if is_sparse else 0
        y = binned(accuracy[order], MAX_CLASSES)
        upper.plot(x + aside, y, label=legend_label(row.label), **looks[row].line, **points)
    upper.set_ylabel("accuracy (%)")
    upper.set_ylim(-3, 103)
    upper.grid(axis="y")
    images = binned(np.maximum(counts[order], 0.5), MAX_CLASSES)
    lower.fill_between(x, images, 0.5, step="mid", color=INK, alpha=0.25, linewidth=0)
    lower.set_yscale("log")
    label_powers(lower.yaxis)
    lower.set_ylabel("images")
    lower.set_xlim(-0.5, size - 0.5)
    _mark_groups(upper, lower, counts[order])
    names = rows[0].runs[0].result["classes"]
    if size <= MAX_NAMES and len(names) == size:
        slant = {"rotation": 35, "ha": "right"} if size <= 12 else {"rotation": 90}
        lower.set_xticks(range(size), [short(str(names[index]), 20) for index in order], **slant)
    else:
        lower.set_xlabel("classes")
    add_legend(figure, upper)
    return figure


def _mark_groups(upper: Axes, lower: Axes, counts: np.ndarray) -> None:
    """Name the many-, medium- and few-shot ranges of descending ``counts``."""
    for name, members in shot_groups(counts).items():
        places = np.flatnonzero(members)
        if len(places) > 0.07 * len(counts):  # room for the name
            upper.annotate(
                name.removesuffix("_shot"),
                ((places[0] + places[-1]) / 2, 1),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                alpha=0.7,
            )
        if len(places) and places[0] > 0:
            line = {"color": INK, "alpha": 0.4, "linewidth": 0.8, "linestyle": (0, (3, 3))}
            for axes in (upper, lower):
                axes.axvline(places[0] - 0.5, **line)


# confusion


def has_confusion(row: Row) -> bool:
    """Whether all seeds have a matrix, of the same classes."""
    sizes = {len(metrics["confusion"]) for metrics in row.metrics}
    has_images = any(metrics["confusion"].any() for metrics in row.metrics)
    return not row.is_posthoc and len(sizes) == 1 and has_images


def confusion_caption(row: Row) -> str:
    return (
        f"{row.name}, {row.split}: share of a class's images (row) that are taken for each class"
        " (column), from 0 % (dark) to 100 % (bright); brightness goes with its square root."
        f"{_untested(row)}"
    )


def draw_row_confusion(row: Row) -> Figure:
    """Counts of all seeds together."""
    counts = np.sum([metrics["confusion"] for metrics in row.metrics], axis=0)
    return draw_confusion(counts, row.runs[0].result["classes"], row.label)


def _untested(row: Row) -> str:
    images = np.sum([metrics["confusion"] for metrics in row.metrics], axis=(0, 2))
    missing = int((images == 0).sum())
    return f" {missing} class(es) without test images have no row." if missing else ""
