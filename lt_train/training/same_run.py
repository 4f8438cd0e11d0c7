"""Whether a folder's run is the one that is asked for: its config and its data."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from lt_train.collectives import from_main
from lt_train.config.load import RENAMED, flatten, to_dict
from lt_train.config.run_name import FREE_KEYS
from lt_train.config.schema import Config
from lt_train.data.columns import slices
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.errors import UserError


def check_same_config(
    where: str, saved: dict[str, Any], config: Config, moved: Iterable[str] = ()
) -> None:
    """Refuse to go on with ``where``, which was made with the config ``saved`` (nested).

    ``moved``: keys of sets that may lie elsewhere now, since they are known to be the same.
    """
    defaults = flatten(to_dict(Config()))  # for keys that are newer than the saved config
    before, now = {**defaults, **flatten(saved)}, flatten(to_dict(config))
    changed = _changed(before, now, (before.keys() | now.keys()).difference(moved), config)
    renamed = [key for key in changed if key in RENAMED]
    if renamed:
        raise UserError(
            f"{where} holds a run of an earlier version of lt_train ({renamed[0]} is "
            f"{RENAMED[renamed[0]]} now); choose another run.dir or remove the folder"
        )
    if changed:
        changes = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed]
        raise UserError(
            f"{where} holds a run with another config ({', '.join(changes)}); choose "
            f"another run.dir, remove the folder, or go on with {_allowing(changed)}"
        )


def check_same_data(where: str, saved: dict[str, str], now: dict[str, str], config: Config) -> None:
    """Refuse to go on with ``where``, which was made of the data ``saved``; see data_digests."""
    changed = _changed(saved, now, saved.keys() & now.keys(), config)
    if changed:
        sets = [f"{key}={flatten(to_dict(config))[key]}" for key in changed]
        raise UserError(
            f"{where} holds a run on other data than there is in {' and '.join(sets)} now; choose "
            f"another run.dir, bring the data back, or go on with {_allowing(changed)}"
        )


def data_digests(data: RunData) -> dict[str, str]:
    """sha256 of what a run learns from and is measured on, by the key that names the set.

    Of images (their crc32) and labels in the order of their sample ids, and of classes: the same
    wherever the set lies, however it is cut into shards and whatever columns were added to it. Of
    a second set, what is used of it. Every rank opens the sets, rank 0 reads them. Collective.
    """
    config = data.config
    splits = dict.fromkeys((config.data.train_split, config.data.val_split, config.data.test_split))
    known = data.train_set.dataset.splits
    parts = {"data.root": [data.manifest(split) for split in splits if split in known]}
    if data.unlabeled_set is not None:
        parts["unlabeled.root"] = [data.unlabeled_set]
    return from_main(lambda: {key: _digest(sets) for key, sets in parts.items()})


def _digest(parts: Iterable[Manifest]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([len(part), part.classes]).encode())
        for column, kind in ((part.column("crc32"), "<u4"), (part.labels, "<i4")):
            for rows in slices(len(part)):
                digest.update(np.ascontiguousarray(column[rows], kind))
    return digest.hexdigest()


def _changed(before: dict, now: dict, keys: Iterable[str], config: Config) -> list[str]:
    free = (*FREE_KEYS, *config.resume.allow_changes)
    watched = [key for key in sorted(keys) if not key.startswith(free)]
    return [key for key in watched if before.get(key) != now.get(key)]


def _allowing(keys: list[str]) -> str:
    return f"resume.allow_changes=[{','.join(keys)}]"
