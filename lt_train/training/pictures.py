"""Pictures of a run that is under way, for TensorBoard: tag -> (H, W, 3) uint8."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from lt_train.data.batch import Batch
from lt_train.data.pixels import denormalize, scale_of
from lt_train.methods.base import Method, Progress

Pictures = dict[str, np.ndarray]
SAMPLES = 8  # of a batch, whose views are shown
GAP = 2  # white pixels between them


def first_seen(batches: Iterable[Batch], see: Callable[[Batch], None]) -> Iterator[Batch]:
    """The batches; ``see`` is called with the first one before it is."""
    iterator = iter(batches)
    for batch in iterator:
        see(batch)
        yield batch
        break
    yield from iterator


def view_pictures(method: Method, batch: Batch, progress: Progress) -> Pictures:
    """Some samples of a batch, a picture a view, as networks see them; none of features."""
    if batch.views[0].ndim == 2:
        return {}
    config = method.config
    with torch.no_grad():
        views = method.seen(batch.parts(config.engine.accumulate)[0], progress)
    pictures = {}
    for number, images in enumerate(views, 1):
        shown = min(SAMPLES, len(images))
        rows = [place * len(images) // shown for place in range(shown)]  # of two sets, both
        pixels = denormalize(images[rows], scale_of(config.model))
        pictures[f"views/view_{number}"] = _in_a_row(pixels.cpu().numpy())
    return pictures


def _in_a_row(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) -> (H, N * (W + GAP) - GAP, 3)."""
    framed = np.pad(images, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)[:, :-GAP]


def class_pictures(
    method: Method, split: str, metrics: dict, names: list[str], progress: Progress
) -> Pictures:
    """Accuracy by training images, and confusion, where ``metrics`` of ``split`` have them; and the
    weights of classes at ``progress``, where there are any.
    """
    weights = method.class_weights(progress)
    if "per_class" not in metrics:
        return {}
    # imported here: half a second, which other ranks and methods do not need
    from matplotlib import rc_context

    from lt_train.drawing import classes
    from lt_train.drawing.style import STYLE, to_pixels

    counts, figures = method.class_counts.numpy(), {}
    accuracy = np.array(metrics["per_class"], np.float64)
    title = f"{split}: accuracy by class"
    with rc_context(STYLE):
        figures[f"{split}/accuracy_by_class"] = classes.draw_accuracies(accuracy, counts, title)
        if "confusion" in metrics:
            confusion = np.array(metrics["confusion"])
            title = f"{split}: % of each true class"
            figures[f"{split}/confusion"] = classes.draw_confusion(confusion, names, title)
        if weights is not None:
            weights = weights.cpu().numpy()
            figures["train/class_weights"] = classes.draw_weights(weights, counts, "class weights")
        return {tag: to_pixels(figure) for tag, figure in figures.items()}
