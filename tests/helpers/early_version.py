"""Prepared sets as early versions wrote them."""

from dataclasses import replace
from pathlib import Path

from lt_train.data.dataset import read_dataset, write_dataset


def forget_checksums(root: Path) -> None:
    """Have dataset.json vouch for the tables of ``train`` no more."""
    dataset = read_dataset(root)
    train = replace(dataset.splits["train"], tables={})
    write_dataset(root, replace(dataset, splits=dataset.splits | {"train": train}))
