"""What a data set file yields: classes, and per split a label, a key and the image bytes of every
sample.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lt_train.data.image_files.places import Images
from lt_train.data.image_files.walk import PassedOver

SPLITS = ("train", "val", "test")  # those that a set may have, in this order
SPLIT_NAMES = {  # what folders and CSV files call them, in lower case
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}


@dataclass(frozen=True)
class LabeledSplit:
    """A whole split: images, labels (N,) in the official order, the files they came from, and
    what lay beside them.
    """

    images: Images
    labels: np.ndarray
    files: list[str]
    passed: PassedOver = field(default_factory=PassedOver)


@dataclass(frozen=True)
class SourceSplit:
    """One split, in the source's order.

    ``labels`` (N,) int, or None: unlabeled. ``keys``: unique, without dots (a webdataset key ends
    at the first dot), with slices. ``columns``: more of the manifest, each (N,). ``deal_by`` (N,)
    int: what every shard should have its share of, if not the labels; without either, shards are
    runs of the source's order.
    """

    labels: np.ndarray | None
    keys: Sequence[str]
    images: Images
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    deal_by: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """A data set that is not prepared yet.

    ``files``: what must not change while it is being prepared. ``notes``: lines that the user
    should see. ``passed``: what was found and is not in it.
    """

    name: str
    classes: list[str]
    splits: dict[str, SourceSplit]
    files: Sequence[str | Path] = ()
    notes: list[str] = field(default_factory=list)
    passed: PassedOver = field(default_factory=PassedOver)


@dataclass(frozen=True)
class Recipe:
    """A data set of the command line: its options, and what makes a :class:`Source` of them
    (UserError: it cannot).

    Each option keeps argparse's own ``dest``, as the command is written down by it.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make_source: Callable[[argparse.Namespace], Source]
    samples_per_shard: int = 1000
