"""What classes look like, the surest mistakes on rare ones, and what is taken for what: with the
data set's own images, where it is on this machine.
"""

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lt_train.data.manifest import Manifest
from lt_train.errors import UserError
from lt_train.files import is_url
from lt_train.report.calibration import has_predictions
from lt_train.report.classes import class_names, confusions
from lt_train.report.rows import Row
from lt_train.report.runs import Run
from lt_train.report.thumbnails import Thumbnails, gallery, picture, samples_of, spread

MAX_CLASSES, PER_CLASS = 30, 3  # of a data set
MAX_MISTAKES, MISTAKES_PER_CLASS = 12, 3  # of a run
MAX_PAIRS = 6


@dataclass(frozen=True)
class Images:
    """What a run was trained on, and what it was evaluated on."""

    train: Manifest
    held_out: Manifest


def picture_section(rows: list[Row], thumbnails: Thumbnails) -> str:
    """HTML of all pictures; where there can be none, a line says why."""
    opened: dict[str, Images | str] = {}
    parts, known = [], []
    for row in rows:
        run = row.runs[0]
        root = str(run.setting("data.root") or "")
        if row.is_posthoc or not root:
            continue
        if root not in opened:
            opened[root] = _open(run, root)
            known.append((root, row))
        if isinstance(images := opened[root], Images) and has_predictions(row):
            parts.append(_of_run(row, images, thumbnails))
    for root, row in known:
        parts.append(_of_set(root, row, opened[root], thumbnails))
    if thumbnails.left <= 0:
        parts.append(_note("Further pictures are left out."))
    return "<h2>Pictures</h2>\n" + "".join(parts) if parts else ""


def _open(run: Run, root: str) -> Images | str:
    """The images of a run's data set, or why there are none."""
    if is_url(root) or not Path(root).exists():
        return f"{root} is not on this machine, or not below this folder: no pictures."
    train = str(run.setting("data.train_split") or "train")
    try:
        images = Images(*(Manifest(root, name, "bounds") for name in (train, run.split or train)))
    except UserError as error:
        return f"No pictures: {error}."
    if images.train.classes != run.result["classes"] or not _fits(run, images.held_out):
        return f"{root} is not the data set of {run.name} any more: no pictures."
    return images


def _fits(run: Run, held_out: Manifest) -> bool:
    """Whether the images that a run was evaluated on can be those of ``held_out``."""
    found = run.predictions
    if found is None:
        return True
    ids = found["sample_id"]
    is_inside = len(ids) == 0 or 0 <= ids.min() <= ids.max() < len(held_out)
    return bool(is_inside and (held_out.labels[ids] == found["label"]).all())


def _of_set(root: str, row: Row, images: Images | str, thumbnails: Thumbnails) -> str:
    """Some images of each class, or of some classes, from the most frequent to the rarest."""
    if isinstance(images, str):
        return _note(images)
    counts, names = row.runs[0].class_counts, class_names(row)
    order = np.argsort(-counts, kind="stable")
    figures = []
    for place in spread(len(order), MAX_CLASSES):
        label = int(order[place])
        found = [
            thumbnails.of(images.train, sample_id, names[label])
            for sample_id in samples_of(images.train, label, PER_CLASS)
        ]
        figures.append(picture(found, [names[label], f"{counts[label]:,} training images"]))
    if thumbnails.left > 0 and not any(figures):
        return _note(f"The images of {root} cannot be read: no pictures.")
    part = f", {len(figures)} of {len(order):,} classes" if len(figures) < len(order) else ""
    title = f"<h3>Training images of {html.escape(root)}{part}</h3>\n"
    return title + gallery(figures, PER_CLASS)


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>\n'


def _of_run(row: Row, images: Images, thumbnails: Thumbnails) -> str:
    run, names = row.runs[0], [*class_names(row), "none of the classes"]
    if not _fits(run, images.held_out):
        return ""
    parts = []
    of_seed = ", its first seed" if len(row.runs) > 1 else ""
    mistakes = []
    for found in _surest_mistakes(run):
        true, taken = names[found["label"]], names[found["predicted"]]
        image = thumbnails.of(images.held_out, found["sample_id"], true)
        sure = f"{100 * found['confidence']:.0f} %"
        mistakes.append(picture([image], [true, f"taken for {taken}, {sure}"]))
    if any(mistakes):
        about = "surest mistakes on the third of classes with fewest training images"
        parts.append(f"<h3>{html.escape(row.label)}{of_seed}: {about}</h3>\n{gallery(mistakes)}")
    pairs = []
    for found in confusions(row, MAX_PAIRS):
        shown = [
            thumbnails.of(images.held_out, sample_id, names[label])
            for label, sample_id in _examples(run, found.label, found.predicted)
        ]
        lines = [f"{names[found.label]} (left), taken for {names[found.predicted]}"]
        pairs.append(picture(shown, [*lines, f"{found.images:,} of {found.samples:,} images"]))
    if any(pairs):
        about = "most frequent confusions, each beside an image that is what it is taken for"
        parts.append(f"<h3>{html.escape(row.label)}: {about}</h3>\n{gallery(pairs, 2)}")
    return "".join(parts)


def _surest_mistakes(run: Run) -> list[np.void]:
    """Rows of the predictions of rare classes, no class too often."""
    found, counts = run.predictions, run.class_counts
    rare = np.argsort(counts, kind="stable")[: -(-len(counts) // 3)]
    wrong = found[np.isin(found["label"], rare) & (found["label"] != found["predicted"])]
    chosen, taken = [], np.zeros(len(counts), int)
    for row in wrong[np.argsort(-wrong["confidence"], kind="stable")]:
        if taken[row["label"]] < MISTAKES_PER_CLASS and len(chosen) < MAX_MISTAKES:
            taken[row["label"]] += 1
            chosen.append(row)
    return chosen


def _examples(run: Run, label: int, predicted: int) -> list[tuple[int, int]]:
    """Class and sample id of the surest of such mistakes, and of the surest right image of the
    class that it is taken for.
    """
    found, examples = run.predictions, []
    for true in (label, predicted):
        alike = found[(found["label"] == true) & (found["predicted"] == predicted)]
        if len(alike):
            examples.append((true, int(alike["sample_id"][alike["confidence"].argmax()])))
    return examples
