"""Pools that unlabeled sets are drawn from: images with the class by which they are drawn, and what
the published pickles hold.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_prep.reading.images import Picked, PngArray
from data_prep.reading.pickles import expecting, load_pickle, text_keys
from lt_train.data.image_files.places import Images
from lt_train.data.image_files.walk import PassedOver
from lt_train.errors import UserError

WITHDRAWN = (
    "80 Million Tiny Images was withdrawn by its authors in 2020 because of offensive categories"
    " and images (https://groups.csail.mit.edu/vision/TinyImages/). Nothing is ever downloaded"
    " here; any other pool of images serves as well"
)


@dataclass(frozen=True)
class Pool:
    """Images with the class by which they are drawn, which goes to ``column``, and the score if
    there is one.
    """

    classes: list[str]
    images: Images
    keys: list[str]
    labels: np.ndarray
    scores: np.ndarray | None
    files: list[str]
    notes: list[str]
    column: str = "sourced_label"
    remedy: str = "lower --size-factor or enlarge the pool"  # where a class has too few images
    # in the published file, whose order published pseudo-labels follow, and how many it holds
    places: np.ndarray | None = None
    total: int = 0
    passed: PassedOver = field(default_factory=PassedOver)


def numbered(prefix: str, number: int) -> list[str]:
    """Keys of images that have a place and no name."""
    return [f"{prefix}_{index:07d}" for index in range(number)]


def pool_of_pickle(path: Path, classes: list[str]) -> Pool:
    """A published pickle, without the images that it gives no class (-1)."""
    content = load_pickle(path)
    complaint = "does not hold 'data' (N, 32, 32, 3) uint8 and 'extrapolated_targets' (N,)"
    with expecting(path, complaint):
        content = text_keys(content)
        pixels = np.asarray(content["data"])
        labels = np.asarray(content["extrapolated_targets"]).astype(np.int64).ravel()
        fitting = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[3] == 3
        if not fitting or len(pixels) != len(labels):
            raise ValueError(
                f"data is {pixels.dtype} of shape {pixels.shape}, with {len(labels)}"
                " extrapolated_targets"
            )
        if len(labels) and labels.max() >= len(classes):
            raise ValueError(f"extrapolated_targets go up to {labels.max()}")
    kept = np.flatnonzero(labels >= 0)
    keys = numbered("ti", len(labels))
    return Pool(
        classes,
        Picked(PngArray(pixels), kept),
        [keys[index] for index in kept.tolist()],
        labels[kept],
        None,
        [str(path)],
        [WITHDRAWN],
        places=kept,
        total=len(labels),
    )


def read_pseudo_labels(path: Path, pool: Pool) -> np.ndarray:
    """The pseudo-labels (N,) int32 that the authors' gen_pseudolabels.py wrote for the published
    file of the pool.
    """
    if pool.places is None:
        raise UserError(
            "--pseudo-labels goes with a published pickle, or with SVHN's extra images; label other"
            " sets with python -m lt_train pseudo_label"
        )
    content = load_pickle(path)
    complaint = "does not hold 'extrapolated_targets', a class for each image of the pool"
    with expecting(path, complaint):
        labels = np.asarray(text_keys(content)["extrapolated_targets"]).astype(np.int32).ravel()
        if len(labels) != pool.total:
            raise ValueError(f"it has {len(labels)} labels, and the pool {pool.total} images")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(pool.classes):
            raise ValueError(f"its labels go from {labels.min()} to {labels.max()}")
    return labels[pool.places]
