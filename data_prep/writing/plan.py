"""What to write, and who may write it: the plan is a pure function of the source and the options;
locks keep two runs apart.
"""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.reading.many_files import ask
from data_prep.reading.source import Source, SourceSplit
from lt_train.data.dataset import COPY_AGAIN
from lt_train.data.image_files.check import DECODED, Checker
from lt_train.errors import UserError, unreadable
from lt_train.files import read_sealed, write_atomically
from lt_train.locks import locked

PARTIAL = ".partial"
KEYS_AT_ONCE = 65536


@dataclass(frozen=True)
class Task:
    """One of several processes, perhaps on several machines, that share the work: number ``index``
    of ``count``.
    """

    index: int = 0
    count: int = 1


ALONE = Task()  # no array job


@dataclass(frozen=True)
class ShardPlan:
    name: str
    split: str
    number: int  # within the split
    indices: Sequence[int]  # of the source's samples, in the order in which they are written


@dataclass(frozen=True)
class Plan:
    """Every shard of a data set.

    ``fingerprint`` says what is made, ``stamp`` also when the source's files were last written.
    """

    source: Source
    out: Path
    seed: int
    checker: Checker
    shards: list[ShardPlan]
    fingerprint: str
    stamp: str

    @property
    def partial(self) -> Path:
        return self.out / PARTIAL

    def checker_of(self, split: str) -> Checker:
        """Only training images are re-encoded: evaluation wants the published pixels."""
        return self.checker if split == "train" else replace(self.checker, resize=None)


def make_plan(
    source: Source, out: Path, seed: int, samples_per_shard: int, checker: Checker = DECODED
) -> Plan:
    """Deal every class's samples over the shards, so that each shard sees as many classes as it
    can.
    """
    if not any(len(split.keys) for split in source.splits.values()):
        raise UserError(f"'{source.name}' would have no images")
    shards = []
    for name, split in source.splits.items():
        for number, indices in enumerate(_deal(name, split, seed, samples_per_shard)):
            shards.append(ShardPlan(f"{name}-{number:06d}.tar", name, number, indices))
    checks = asdict(checker)
    if not checks["pillow_only"]:
        del checks["pillow_only"]  # which early versions did not know
    options = [source.name, source.classes, seed, samples_per_shard, checks]
    digest = hashlib.sha256(json.dumps(options).encode())
    for name, split in source.splits.items():
        digest.update(name.encode())
        for start in range(0, len(split.keys), KEYS_AT_ONCE):
            digest.update("\n".join(split.keys[start : start + KEYS_AT_ONCE]).encode())
        for column in (split.labels, *split.columns.values()):
            for start in range(0, 0 if column is None else len(column), KEYS_AT_ONCE):
                digest.update(column[start : start + KEYS_AT_ONCE].astype(np.float64).tobytes())
    sizes, times = _stat(source.files)
    digest.update(sizes.tobytes())
    stamp = hashlib.sha256(digest.digest() + times.tobytes())
    return Plan(source, out, seed, checker, shards, digest.hexdigest(), stamp.hexdigest())


def _deal(
    name: str, split: SourceSplit, seed: int, samples_per_shard: int
) -> Iterator[Sequence[int]]:
    total = len(split.keys)
    number = -(-total // samples_per_shard)
    deal_by = split.labels if split.labels is not None else split.deal_by
    if deal_by is None:  # runs, which need no memory however many samples there are
        for shard in range(number):
            yield range(total * shard // number, total * (shard + 1) // number)
        return
    # Where the same samples come out does not depend on other splits: one generator a split
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shuffled = generator.permutation(total)
    by_class = shuffled[np.argsort(deal_by[shuffled], kind="stable")]
    for shard in range(number):
        yield generator.permutation(by_class[shard::number])


def _stat(files: Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and times of the last change, in bytes and nanoseconds, (N,) int64 each."""

    def look(part: Sequence[str | Path]) -> np.ndarray:
        found = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, part)]
        return np.array(found, np.int64)

    try:
        columns = np.fromiter(ask(look, files), np.dtype((np.int64, 2)), len(files))
    except OSError as error:
        raise unreadable(error, f"cannot read '{error.filename}': {error.strerror}") from error
    return columns[:, 0].copy(), columns[:, 1].copy()


def is_complete(plan: Plan) -> bool:
    """Whether the folder already holds this very data set; a :class:`UserError` if it holds
    another.
    """
    path = plan.out / "dataset.json"
    try:
        fingerprint = read_sealed(path, COPY_AGAIN)["made_by"]["fingerprint"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (KeyError, TypeError):  # not written by data_prep
        fingerprint = None
    if fingerprint != plan.fingerprint:
        raise UserError(
            f"'{plan.out}' holds another data set (the source or an option changed since); choose"
            " another --out"
        )
    return True


@contextmanager
def claim(plan: Plan, task: Task) -> Iterator[None]:
    """Hold the target folder: no other run, and no other process of the same task, may write to it.

    Raises :class:`UserError` if one does, or if the folder holds anything but the start of this
    very data set.
    """
    is_foreign = plan.out.is_dir() and not plan.partial.is_dir() and any(plan.out.iterdir())
    if is_foreign and not is_complete(plan):
        raise UserError(f"'{plan.out}' is not empty; choose another --out")
    plan.partial.mkdir(parents=True, exist_ok=True)
    # tasks share the folder's lock, and each holds its own; a run alone takes the folder's for
    # itself
    shared = fcntl.LOCK_SH if task.count > 1 else fcntl.LOCK_EX
    with (
        _locked(plan.partial / "lock", shared | fcntl.LOCK_NB),
        _locked(plan.partial / f"task-{task.index}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB),
    ):
        with finishing(plan):  # of tasks that start at the same time, one writes the marker
            _mark(plan)
        if task.count == 1:  # nobody else writes here: what a killed run left only takes space
            for path in plan.partial.glob("*.tmp"):
                path.unlink()
        yield


def tidy(plan: Plan) -> None:
    """Remove from a complete data set what only the work on it needed."""
    shutil.rmtree(plan.partial, ignore_errors=True)


def _mark(plan: Plan) -> None:
    """Say in the folder what is being made there, or refuse if something else is."""
    marker = plan.partial / "plan"
    if not marker.is_file():
        write_atomically(marker, plan.stamp.encode())
    elif marker.read_text() != plan.stamp:
        raise UserError(
            f"'{plan.out}' holds the start of another data set (the source's files or an option"
            " changed since); remove the folder or choose another --out"
        )


@contextmanager
def finishing(plan: Plan) -> Iterator[None]:
    """Only one task at a time writes what all of them share, such as the manifest; others wait."""
    with _locked(plan.partial / "finish.lock", fcntl.LOCK_EX):
        yield


def _locked(path: Path, kind: int) -> AbstractContextManager[None]:
    busy = (
        f"another data_prep is writing to '{path.parent.parent}' now; wait for it or choose another"
        " --out"
    )
    return locked(path, kind, busy)
