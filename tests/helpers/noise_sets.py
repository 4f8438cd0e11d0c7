"""A set of noise that is planned and written in no time, for the tests of plans and shards."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import Plan, make_plan
from data_prep.writing.shards import Summary, write
from tests.helpers.sources import png

COUNTS = {"train": [20, 9, 5, 1], "test": [3, 3, 3, 3]}


class Interrupted(Exception):
    """Neither an OSError nor a ValueError, as when the process is stopped."""


@dataclass(frozen=True)
class Noise:
    """Small PNGs; reading number ``stop_at`` is interrupted."""

    number: int
    stop_at: int = -1

    def read(self, index: int) -> bytes:
        if index == self.stop_at:
            raise Interrupted
        generator = np.random.default_rng([self.number, index])
        return png(generator.integers(0, 256, (9, 7, 3), np.uint8))


def plan_noise(out: Path, stop_at: int = -1, seed: int = 0, samples_per_shard: int = 6) -> Plan:
    """35 training and 12 test images of four classes, in six and two shards."""
    splits = {}
    for number, (split, counts) in enumerate(COUNTS.items()):
        labels = np.repeat(np.arange(len(counts)), counts)
        keys = [f"{split}/{index}" for index in range(len(labels))]
        images = Noise(number, stop_at if split == "train" else -1)
        splits[split] = SourceSplit(labels, keys, images)
    return make_plan(Source("noise", list("abcd"), splits), out, seed, samples_per_shard)


def run(plan: Plan, workers: int = 1, max_rejected: float = 0.0) -> Summary:
    return write(plan, workers, max_rejected, "tests", lambda images, size: None)


def interrupt(out: Path, shard: int) -> None:
    """Begin, and be interrupted at the last sample of a training shard."""
    last = plan_noise(out).shards[shard].indices[-1]
    with pytest.raises(Interrupted):
        run(plan_noise(out, last))
