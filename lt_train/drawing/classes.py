"""Figures of classes: each one's accuracy and weight by its training images, and confusion."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from lt_train.data.manifest import shot_groups
from lt_train.drawing.style import COLORS, SMALL, label_powers, short

MAX_MATRIX_NAMES = 20
SIDE = 4.6  # inches
GROUP_COLORS = dict(zip(("many_shot", "medium_shot", "few_shot"), COLORS))


def draw_accuracies(accuracy: np.ndarray, counts: np.ndarray, title: str) -> Figure:
    """Accuracy (C,) in %, or NaN, by training images (C,); lines are the means of groups."""
    figure = Figure((SIDE, 0.8 * SIDE))
    axes = figure.add_subplot()
    seen = ~np.isnan(accuracy)
    places = np.maximum(counts, 0.5)  # which has a logarithm
    for name, members in shot_groups(counts).items():
        shown = members & seen
        if not shown.any():
            continue
        label, color = _label(name, shown), GROUP_COLORS[name]
        axes.scatter(places[shown], accuracy[shown], 22, color, alpha=0.75, label=label, lw=0)
        ends = places[shown].min() / 1.05, places[shown].max() * 1.05
        axes.hlines(accuracy[shown].mean(), *ends, color, linewidth=1.4)
    axes.set_xscale("log")
    label_powers(axes.xaxis, (1, 2, 5))
    axes.set(xlabel="training images", ylabel="accuracy (%)", ylim=(-3, 103))
    return _titled(figure, axes, title)


def draw_weights(weights: np.ndarray, counts: np.ndarray, title: str) -> Figure:
    """Weights of classes (C,), from the one with most training images (C,) to that with fewest."""
    figure = Figure((SIDE, 0.8 * SIDE))
    axes = figure.add_subplot()
    order = np.argsort(-counts, kind="stable")
    for name, members in shot_groups(counts[order]).items():
        if members.any():
            edges = np.arange(members.sum() + 1) + members.argmax() - 0.5  # they lie in a row
            label, color = _label(name, members), GROUP_COLORS[name]
            axes.stairs(weights[order][members], edges, fill=True, color=color, label=label)
    axes.set(xlabel="classes, by their training images", ylabel="weight in the loss")
    axes.set_xlim(-0.5, len(counts) - 0.5)
    return _titled(figure, axes, title)


def _label(group: str, members: np.ndarray) -> str:
    return f"{group.removesuffix('_shot')} ({members.sum():,} classes)"


def _titled(figure: Figure, axes: Axes, title: str) -> Figure:
    axes.grid(axis="y")
    axes.set_title(short(title, 44), fontsize=10, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    narrow = {"fontsize": SMALL, "columnspacing": 1, "handlelength": 1, "handletextpad": 0.5}
    figure.legend(handles, labels, loc="lower center", ncols=3, **narrow)
    figure.subplots_adjust(left=0.14, right=0.97, top=0.92, bottom=0.25)
    return figure


def draw_confusion(counts: np.ndarray, names: list[str], title: str) -> Figure:
    """Counts (C, C) with a row a true class, in % of each; classes without images have no row."""
    size, tested = len(counts), np.flatnonzero(counts.sum(axis=1))
    share = 100 * counts[tested] / counts[tested].sum(axis=1, keepdims=True)
    figure = Figure((SIDE, SIDE), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="viridis", norm=PowerNorm(0.5, 0, 100), interpolation="none")
    if size <= MAX_MATRIX_NAMES and len(names) == size:
        labels = [short(str(name), 16) for name in names]
        axes.set_xticks(range(size), labels, rotation=90, fontsize=SMALL)
        rows = [labels[label] for label in tested]
        axes.set_yticks(range(len(tested)), rows, fontsize=SMALL)
    if size <= 10:
        for true, predicted in np.ndindex(share.shape):
            percent = share[true, predicted]
            style = {"color": "white" if percent < 50 else "black", "fontsize": SMALL}
            axes.text(predicted, true, f"{percent:.0f}", ha="center", va="center", **style)
    axes.set(xlabel="predicted", ylabel="true class")
    axes.set_title(short(title, 44), fontsize=10)
    return figure
