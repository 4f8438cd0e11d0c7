"""How a method is evaluated on a split, while it is trained and afterwards."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from lt_train.data.batch import Batch
from lt_train.data.run_data import RunData, check_bad_samples
from lt_train.methods.base import Method


def evaluate_split(
    method: Method,
    data: RunData,
    split: str,
    precision: torch.autocast,
    check: Callable[[], None] = lambda: None,
    crops: int = 1,
    predictions: dict[str, np.ndarray] | None = None,
) -> dict:
    """Metrics of ``method`` on a split of its data set, computed in ``precision``. Collective.

    ``check`` is called before every batch, and may raise. ``crops``: views of each image, 1 or 5,
    see EvalPlan. ``predictions``: gets what each image was taken for, (N,) PREDICTION by its split,
    where the method says it. A :class:`UserError` if more of the split is damaged than
    ``data.max_bad_share`` allows.
    """

    def loaders(split: str) -> Iterator[Batch]:
        for batch in data.evaluate(split, crops):
            check()
            yield batch

    training, manifest = method.training, data.manifest(split)
    method.eval()
    with torch.no_grad(), precision:
        metrics = method.evaluate(loaders, split)
    method.train(training)
    by_image = metrics.pop("predictions", None)
    if predictions is not None and by_image is not None:
        predictions[split] = by_image
    unread = len(manifest) - metrics["samples"]
    check_bad_samples(unread, manifest, data.config.data.max_bad_share)
    return metrics
