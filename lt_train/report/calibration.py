"""Whether images that a classifier is so and so sure of are right as often: the reliability
diagram (Guo et al. 2017).
"""

import numpy as np
from matplotlib.figure import Figure

from lt_train.drawing.style import INK, Look, add_legend, legend_label
from lt_train.report.rows import Row

BINS = 15  # as of the metric "ece"


def has_predictions(row: Row) -> bool:
    """Whether it is known what every image was taken for, by all seeds."""
    return not row.is_posthoc and all(run.predictions is not None for run in row.runs)


def predictions_of(row: Row) -> np.ndarray:
    """Those of all seeds, one after the other."""
    return np.concatenate([run.predictions for run in row.runs])


def reliability(predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin of confidences, (BINS,): its images, and means of their confidence and accuracy
    in %, NaN where there are none.
    """
    confidence = 100 * predictions["confidence"].astype(np.float64)
    right = 100.0 * (predictions["label"] == predictions["predicted"])
    # bins are closed above
    places = np.clip(np.ceil(confidence * BINS / 100).astype(int), 1, BINS) - 1
    images = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(places, values, BINS) / images for values in (confidence, right)]
    return images, *means


def draw_reliability(rows: list[Row], looks: dict[Row, Look]) -> Figure:
    figure = Figure((6.0, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    upper.plot([0, 100], [0, 100], color=INK, alpha=0.4, linewidth=0.8, linestyle=(0, (3, 3)))
    edges = np.linspace(0, 100, BINS + 1)
    for row in rows:
        images, confidence, accuracy = reliability(predictions_of(row))
        filled = images > 0
        points = confidence[filled], accuracy[filled]
        upper.plot(*points, label=legend_label(row.label), **looks[row].line, **looks[row].points)
        share = 100 * images / images.sum()
        lower.stairs(share, edges, color=looks[row].color, linestyle=looks[row].dash)
    upper.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(-2, 102))
    lower.set(xlabel="confidence (%)", ylabel="images (%)", ylim=(0, None))
    upper.grid()
    add_legend(figure, upper)
    return figure
