"""From shards on disk to batches on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_train.data.image_dataset import ImageDataset


def torch_dataset(
    root: str | Path, split: str, transform: Callable[[Any], Any] | None = None
) -> "ImageDataset":
    """A split of a prepared set as a map-style torch Dataset: see :class:`ImageDataset`."""
    from lt_train.data.image_dataset import (
        ImageDataset,
    )  # with torch, which reading a set needs not

    return ImageDataset(root, split, transform)
