"""Tables of classes: the accuracy of each, and which are taken for which."""

import html
from dataclasses import dataclass

import numpy as np

from lt_train.report.calibration import has_predictions, predictions_of
from lt_train.report.class_plots import has_confusion, mean_accuracies, rows_by_classes
from lt_train.report.page import table
from lt_train.report.rows import Row

MAX_LISTED = 1000  # classes of a table
MAX_CONFUSIONS = 5  # of a run in a table


def class_tables(rows: list[Row]) -> list[str]:
    """HTML of a table for all rows of the same classes: training and test images, accuracies."""
    return [_class_table(alike, counts) for counts, alike in rows_by_classes(rows)]


def _class_table(rows: list[Row], counts: np.ndarray) -> str:
    names = class_names(rows[0])
    accuracies = list(map(mean_accuracies, rows))
    samples = next(filter(len, (row.metrics[0]["class_samples"] for row in rows)), [])
    tested = np.isfinite(accuracies).any(0)
    order = np.argsort(-counts, kind="stable")
    order = order[tested[order]]
    notes = []
    if len(order) > MAX_LISTED:
        notes.append(f"the {MAX_LISTED:,} with fewest training images of {len(order):,}")
        order = order[-MAX_LISTED:]
    if not tested.all():
        notes.append(f"{(~tested).sum():,} without test images are left out")
    header = ["class", "training images"]
    header += ["test images"] * bool(len(samples)) + [html.escape(row.label) for row in rows]
    body = []
    for label in order:
        images = [f"{each[label]:,}" for each in (counts, samples) if len(each)]
        values = [f"{each[label]:.1f}" if np.isfinite(each[label]) else "-" for each in accuracies]
        body.append([html.escape(names[label]), *images, *values])
    about = "Accuracy of each class in %; a click on a column's name sorts by it"
    about = html.escape("; ".join([about, *notes]))
    return f'<p class="note">{about}.</p>\n{table(header, body, sorts=True)}'


def class_names(row: Row) -> list[str]:
    """The names of its classes, or their numbers where there are no such names."""
    run = row.runs[0]
    names, number = run.result["classes"], len(run.class_counts)
    return [str(name) for name in (names if len(names) == number else range(number))]


@dataclass(frozen=True)
class Confusion:
    """So many of the ``samples`` of the class ``label`` were taken for ``predicted``."""

    label: int
    predicted: int
    images: int
    samples: int


def confusions(row: Row, number: int) -> list[Confusion]:
    """The ``number`` most frequent ones, over all seeds together; none where nobody knows."""
    if has_predictions(row):
        found = predictions_of(row)
        pairs, images = np.unique(
            np.stack([found["label"], found["predicted"]], 1), axis=0, return_counts=True
        )
    elif has_confusion(row):
        matrix = np.sum([each["confusion"] for each in row.metrics], axis=0).astype(np.int64)
        pairs, images = np.argwhere(matrix), matrix[matrix > 0]
    else:
        return []
    samples = np.bincount(pairs[:, 0], images).astype(int)
    wrong = np.flatnonzero(pairs[:, 0] != pairs[:, 1])
    most = wrong[np.argsort(-images[wrong], kind="stable")][:number]
    return [Confusion(*map(int, (*pairs[i], images[i], samples[pairs[i, 0]]))) for i in most]


def confusion_lines(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of the most frequent confusions of each row that knows them."""
    header = ["run", "true class", "taken for", "images", "of the class's"]
    body = []
    for row in rows:
        names = [*class_names(row), "none of the classes"]
        for found in confusions(row, MAX_CONFUSIONS):
            share = f"{100 * found.images / found.samples:.1f} %"
            pair = names[found.label], names[found.predicted]
            body.append([row.label, *pair, f"{found.images:,}", share])
    return header, body
