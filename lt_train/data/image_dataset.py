"""A prepared set for PyTorch's own DataLoader."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from lt_train.data.columns import Column
from lt_train.data.manifest import Check, Manifest
from lt_train.errors import UserError
from lt_train.files import is_url


class ImageDataset(Dataset[tuple[Any, int]]):
    """A split of a prepared set: (image, label) by sample_id, in the order of its manifest.

    The image is a PIL one in RGB, whose pixels are those that training sees (no EXIF rotation), or
    what ``transform`` makes of it; the label is -1 where a sample has none. Images are read from
    the shards by offset, so that threads, and processes that were forked or spawned, read
    independently. A pickle holds the folder's name and ``transform``: whoever loads it opens the
    set again, whose columns are mapped from disk.

    A :class:`UserError` if the set is not as it was written, and one that names the sample if one
    is damaged. A set behind a URL is refused: training copies such a one to its node cache, and
    what that holds is a folder like any other.

    Attributes: ``classes``, the names of the C classes; ``class_to_idx``, their labels by name;
    ``targets`` (N,) int32, the labels; ``class_counts`` (C,) int64, without samples that have none.
    """

    def __init__(self, root: str | Path, split: str, transform: Callable[[Any], Any] | None = None):
        if is_url(str(root)):
            raise UserError(
                f"{root} is a URL, and images are read from a folder: copy the set to a local disk "
                "and name that folder"
            )
        self.root, self.split, self.transform = Path(root), split, transform
        self._open("all")

    def _open(self, check: Check) -> None:
        self._manifest = Manifest(self.root, self.split, check)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_manifest"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open("bounds")  # who has made the pickle has compared the checksums

    def __len__(self) -> int:
        return len(self._manifest)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample_id = range(len(self))[index]
        image = self._decoded(sample_id)
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self._manifest.labels[sample_id])

    def _decoded(self, sample_id: int) -> Image.Image:
        content = self._manifest.read(sample_id)
        if content is None:
            raise self._damaged(sample_id, self._manifest.bad[sample_id])
        try:
            with Image.open(io.BytesIO(content)) as image:
                return image.convert("RGB")
        except MemoryError:  # no fault of the image
            raise
        except Exception as error:  # a damaged image can raise anything
            raise self._damaged(sample_id, f"it does not decode: {error}") from error

    def _damaged(self, sample_id: int, reason: str) -> UserError:
        return UserError(
            f"sample {self.key(sample_id)} of {self.root}/{self.split} (sample_id {sample_id}) "
            f"cannot be used: {reason}; python -m data_prep verify {self.root} tells more"
        )

    def key(self, index: int) -> str:
        """The name that the sample has in its shard."""
        return self._manifest.key(range(len(self))[index])

    @property
    def classes(self) -> list[str]:
        return self._manifest.classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def targets(self) -> Column:
        return self._manifest.labels

    @property
    def class_counts(self) -> np.ndarray:
        return self._manifest.class_counts
