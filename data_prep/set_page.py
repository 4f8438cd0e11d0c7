"""A page about a prepared data set: counts, image sizes, what was rejected, and a few images of
each class.
"""

import html
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lt_train.data.dataset import Dataset
from lt_train.data.manifest import FEW_SHOT, MANY_SHOT, Manifest
from lt_train.drawing.style import (
    INK,
    LOOKS,
    SMALL,
    STYLE,
    WIDTH,
    add_legend,
    label_powers,
    least_width,
    to_svg,
)
from lt_train.errors import UserError, unreadable
from lt_train.files import parse_object
from lt_train.report.page import document, plot_figure, table
from lt_train.report.thumbnails import MOST, Thumbnails, gallery, picture, samples_of, spread

PER_CLASS = 3  # images of a class
MAX_REASONS = 30  # in the table of what was rejected
REJECTED_FILE = "rejected.jsonl"


def set_page(root: Path, dataset: Dataset, counts: dict[str, np.ndarray]) -> str:
    """The page. ``counts``: images of each class (C,) by split, of what has classes.

    A :class:`UserError` if the set is damaged.
    """
    manifests = {name: Manifest(root, name, "bounds") for name in dataset.splits}
    command = str(dataset.made_by.get("command"))
    about = f"{len(dataset.classes):,} classes; made by <code>{html.escape(command)}</code>."
    parts = [f"<h1>{html.escape(dataset.name)}</h1>\n<p>{about}</p>\n", _splits(dataset, manifests)]
    with matplotlib.rc_context(STYLE):
        if dataset.classes:
            note = "Images of each class, in the order of the training images."
            parts.append(_plot("Class counts", draw_counts(dataset, counts), note))
        parts.append(_sizes(manifests))
    parts.append(_rejected(root, dataset))
    parts.append(_classes(dataset, counts, manifests))
    return document(dataset.name, "".join(parts))


def draw_counts(dataset: Dataset, counts: dict[str, np.ndarray]) -> Figure:
    """The class counts of all splits, each in the order of the training split's."""
    order = class_order(counts)
    figure = Figure((WIDTH, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), look in zip(counts.items(), LOOKS):
        axes.step(
            np.arange(len(order)),
            np.maximum(values[order], 0.5),
            where="mid",
            label=f"{name} ({dataset.splits[name].samples:,})",
            **look.line,
        )
    most = 1.6 * max(values.max() for values in counts.values())
    axes.set(yscale="log", xlabel="class, sorted by training images", ylabel="images")
    axes.set_ylim(0.4, most)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_powers(axes.yaxis)
    for limit, words in ((MANY_SHOT, "many-shot above"), (FEW_SHOT, "few-shot below")):
        if limit < most:
            axes.axhline(limit, color=INK, alpha=0.4, linewidth=0.8, linestyle=":")
            style = {"ha": "right", "va": "bottom", "fontsize": SMALL, "alpha": 0.7}
            axes.text(1, limit, words, transform=axes.get_yaxis_transform(), **style)
    add_legend(figure, axes)
    return figure


def class_order(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Classes (C,), the most frequent of training first."""
    return np.argsort(-counts.get("train", next(iter(counts.values()))), kind="stable")


def _plot(title: str, figure: Figure, note: str) -> str:
    least = least_width(figure)
    return f"<h2>{title}</h2>\n{plot_figure(to_svg(figure, title), note, least)}"


def _splits(dataset: Dataset, manifests: dict[str, Manifest]) -> str:
    header = ["split", "images", "shards", "MB", "rejected", "width", "height"]
    body = []
    for name, split in dataset.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        numbers = [f"{split.samples:,}", str(len(split.shards)), f"{size:,.1f}"]
        manifest = manifests[name]
        sides = [_range(side) for side in (manifest.widths, manifest.heights)]
        body.append([html.escape(name), *numbers, f"{split.rejected:,}", *sides])
    note = "Width and height in pixels: smallest, median, largest."
    return f'{table(header, body)}<p class="note">{note}</p>\n'


def _range(sides: np.ndarray) -> str:
    if not len(sides):
        return "-"
    shown = [f"{int(each):,}" for each in np.quantile(sides, (0, 0.5, 1))]
    return shown[0] if len(set(shown)) == 1 else " / ".join(shown)


def _sizes(manifests: dict[str, Manifest]) -> str:
    """How many images there are of each width and height, where they are not all alike."""
    widths = np.concatenate([manifest.widths for manifest in manifests.values()])
    heights = np.concatenate([manifest.heights for manifest in manifests.values()])
    both = np.concatenate([widths, heights])
    if not len(both) or both.min() == both.max():
        return ""
    edges = np.geomspace(both.min() * 0.98, both.max() * 1.02, 50)
    figure = Figure((WIDTH, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for name, sides, look in zip(("width", "height"), (widths, heights), LOOKS):
        style = {"color": look.color, "linestyle": look.dash, "linewidth": 1.4}
        axes.stairs(np.histogram(sides, edges)[0], edges, label=name, **style)
    axes.set(xscale="log", xlabel="pixels", ylabel="images")
    label_powers(axes.xaxis, subs=(1, 2, 5))
    add_legend(figure, axes)
    return _plot("Image sizes", figure, "Images of all splits by width and by height.")


def _rejected(root: Path, dataset: Dataset) -> str:
    """How many images were left out, by the reason."""
    number = sum(split.rejected for split in dataset.splits.values())
    title = "<h2>Rejected images</h2>\n"
    if not number:
        return f"{title}<p>None.</p>\n"
    reasons: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    try:
        for line in (root / REJECTED_FILE).read_bytes().splitlines():
            row = parse_object(line)
            kind = str(row["split"]), str(row["reason"])
            reasons[kind] += 1
            examples.setdefault(kind, str(row["key"]))
    except FileNotFoundError:
        return f"{title}<p>{number:,}; {REJECTED_FILE}, which names them, is not here.</p>\n"
    except (ValueError, KeyError) as error:
        raise UserError(f"{root / REJECTED_FILE} is damaged: {error}; move it away") from error
    except OSError as error:
        message = f"cannot read {root / REJECTED_FILE}: {error.strerror}; make it readable"
        raise unreadable(error, message) from error
    body = []
    for kind, images in reasons.most_common(MAX_REASONS):
        body.append([*map(html.escape, (*kind, examples[kind])), f"{images:,}"])
    note = f'<p class="note">All of them: {REJECTED_FILE}.</p>\n'
    return f"{title}{table(['split', 'reason', 'such as', 'images'], body, texts=3)}{note}"


def _classes(
    dataset: Dataset, counts: dict[str, np.ndarray], manifests: dict[str, Manifest]
) -> str:
    """A few images of each class, or of classes from the most frequent to the rarest."""
    source = manifests.get("train", next(iter(manifests.values())))
    thumbnails = Thumbnails()
    if not source.class_counts.any():  # unlabeled
        places = spread(len(source), MOST // PER_CLASS)
        images = [thumbnails.of(source, place, source.key(place)) for place in places]
        figures = [picture([image], []) for image in images]
        return f"<h2>Images</h2>\n{gallery(figures)}"
    figures, order = [], class_order(counts)
    for place in spread(len(order), MOST // PER_CLASS):
        label = int(order[place])
        name = dataset.classes[label]
        ids = samples_of(source, label, PER_CLASS)
        images = [thumbnails.of(source, sample_id, name) for sample_id in ids]
        numbers = [f"{values[label]:,} {split}" for split, values in counts.items()]
        figures.append(picture(images, [name, ", ".join(numbers)]))
    part = f" ({len(figures)} of {len(order):,})" if len(figures) < len(order) else ""
    return f"<h2>Classes{part}</h2>\n{gallery(figures, PER_CLASS)}"
