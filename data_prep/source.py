"""What a data set file yields: classes, and per split a label, a key and the image bytes of every sample."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Images(Protocol):
    """Random access to a split's encoded images; picklable, so that worker processes can share the reading."""

    def read(self, index: int) -> bytes:
        """Image file number ``index`` in any format the decoder check accepts. OSError: it cannot be read."""


@dataclass(frozen=True)
class SourceSplit:
    labels: np.ndarray  # (N,) int
    keys: list[str]  # (N,) unique, without dots: a webdataset key ends at the first dot
    images: Images


@dataclass(frozen=True)
class Source:
    name: str
    classes: list[str]
    splits: dict[str, SourceSplit]
    origin: str = ""  # where the images come from; part of what must not change while a data set is being made
    notes: list[str] = field(default_factory=list)  # lines that the user should see
