"""The node cache: a verified copy of a prepared data set on node-local disk."""

import hashlib
import logging
import os
from itertools import chain
from pathlib import Path

from lt_train.collectives import on_every_rank
from lt_train.console import working
from lt_train.data.dataset import Dataset, read_dataset
from lt_train.distributed import World
from lt_train.errors import UserError, unreadable
from lt_train.files import atomic_file, file_sha256, write_atomically
from lt_train.locks import one_at_a_time

log = logging.getLogger(__name__)
COPIED_AT_ONCE = 1 << 24  # bytes


def cache_on_node(root: Path, target: Path, world: World) -> Path:
    """Copy a prepared data set to node-local ``target``, verifying every shard.

    Returns the copy's folder. One rank a node copies, all wait. Collective.
    """
    root = root.resolve()
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]  # of two sets of one name
    local = target / f"{root.name}-{place}"
    on_every_rank(lambda: _copy(root, local) if world.local_rank == 0 else None)
    return local


def _copy(root: Path, local: Path) -> None:
    dataset = read_dataset(root)
    try:
        local.mkdir(parents=True, exist_ok=True)
        # another job's copy, perhaps of other columns, comes first
        with (
            working(f"node cache: waiting for another job, which copies to {local}"),
            one_at_a_time(local / ".lock"),
        ):
            _copy_files(root, local, dataset)
    except OSError as error:
        message = f"cannot copy {root} to {local}: {error.strerror or error}"
        raise unreadable(error, f"{message}; free space there or unset data.cache_dir") from error


def _copy_files(root: Path, local: Path, dataset: Dataset) -> None:
    shards = list(chain.from_iterable(split.shards for split in dataset.splits.values()))
    total, done = sum(shard.bytes for shard in shards), 0
    log.info("node cache: %s, %.4g GB in %d shards, to %s", root, total / 1e9, len(shards), local)

    def state() -> str:
        share = 100 * done / max(total, 1)
        return f"node cache: {done / 1e9:.4g} of {total / 1e9:.4g} GB are there, {share:.0f} %"

    with working(state):
        for shard in shards:
            _copy_verified(root / shard.name, local / shard.name, shard.sha256)
            done += shard.bytes
        # what vouches for the others comes last
        for path in sorted(root.iterdir(), key=lambda path: path.name == "dataset.json"):
            if path.suffix in (".arrow", ".json") and path.is_file():
                # another job may have it mapped
                write_atomically(local / path.name, path.read_bytes())


def _copy_verified(source: Path, target: Path, sha256: str) -> None:
    if target.is_file() and file_sha256(target) == sha256:
        return
    digest = hashlib.sha256()
    with open(source, "rb") as shard, atomic_file(target) as copy:
        while piece := shard.read(COPIED_AT_ONCE):
            digest.update(piece)
            copy.write(piece)
        if digest.hexdigest() != sha256:
            raise UserError(
                f"{source} does not match its sha256 in dataset.json; "
                f"python -m data_prep verify {source.parent}"
            )
