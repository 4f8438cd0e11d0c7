"""Which samples and views a batch has: a pure function of the step."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np

from lt_train.config.schema import Config, ViewConfig, views_in_order
from lt_train.data.augment import CENTRE, FIVE_CROPS, View, draw_view
from lt_train.data.manifest import Manifest
from lt_train.data.order import check_batch, make_sampler
from lt_train.distributed import World, rank_share


class BatchPlan(Protocol):
    """Which samples this rank's batches hold, and how each is seen.

    Methods that take a range of batches answer for all of them, one after the other.
    """

    manifest: Manifest
    sizes: list[int]  # pixels, the side of each view
    max_batch: int  # the largest batch of this rank
    batches: range  # the batch numbers, in order
    replace_bad: bool  # training replaces a damaged sample; evaluation leaves it out and counts it
    blurs: list[bool]  # whether each view may be blurred
    interpolations: list[str]  # how each view is resized

    def sample_ids(self, batches: range) -> np.ndarray: ...

    def places(self, batches: range) -> np.ndarray: ...

    def batch_sizes(self, batches: range) -> list[int]: ...

    def views(self, batches: range, sample_ids: np.ndarray) -> list[View]: ...


@dataclass(frozen=True)
class TrainPlan:
    """Training batches from ``first_step`` to ``last_step`` (exclusive).

    The batch number is the global step; batch ``s`` of size G holds positions [s * G, (s + 1) * G).
    """

    config: Config
    manifest: Manifest
    world: World
    first_step: int
    last_step: int
    replace_bad = True

    def __post_init__(self):
        config = self.config
        parts = config.engine.accumulate
        check_batch(config.sampler, config.global_batch_size, self.world.size, parts)
        sampler = make_sampler(config.sampler, self.manifest, config.seed, config.epochs)
        object.__setattr__(self, "_sampler", sampler)

    @property
    def view_configs(self) -> list[ViewConfig]:
        return views_in_order(self.config)

    @property
    def sizes(self) -> list[int]:
        return [view.size for view in self.view_configs]

    @property
    def max_batch(self) -> int:
        return -(-self.config.global_batch_size // self.world.size)

    @property
    def batches(self) -> range:
        return range(self.first_step, self.last_step)

    @property
    def blurs(self) -> list[bool]:
        return [view.blur_probability > 0 for view in self.view_configs]

    @property
    def interpolations(self) -> list[str]:
        return [view.interpolation for view in self.view_configs]

    @property
    def share(self) -> range:
        """This rank's places in every global batch."""
        return rank_share(self.config.global_batch_size, self.world.rank, self.world.size)

    def places(self, batches: range) -> np.ndarray:
        return np.tile(np.asarray(self.share), len(batches))

    def positions(self, batches: range) -> np.ndarray:
        """Counted from the start of training."""
        starts = np.asarray(batches) * self.config.global_batch_size
        return (starts[:, None] + np.asarray(self.share)).ravel()

    def batch_sizes(self, batches: range) -> list[int]:
        return [len(self.share)] * len(batches)

    def sample_ids(self, batches: range) -> np.ndarray:
        return self._sampler(self.positions(batches))

    def views(self, batches: range, sample_ids: np.ndarray) -> list[View]:
        sizes = self.manifest.widths[sample_ids], self.manifest.heights[sample_ids]
        positions = self.positions(batches)
        return [
            draw_view(view, self.config.seed, positions, index, *sizes)
            for index, view in enumerate(self.view_configs)
        ]


@dataclass(frozen=True)
class EvalPlan:
    """Every sample of a split once over all ranks, in sample_id order, seen through ``view``.

    ``crops``: 1, or 5: at its centre and in its corners, each a view of its own.
    """

    manifest: Manifest
    view: ViewConfig
    batch_size: int  # samples a rank
    world: World
    crops: int = 1
    replace_bad = False

    @property
    def sizes(self) -> list[int]:
        return [self.view.size] * self.crops

    @property
    def blurs(self) -> list[bool]:
        return [False] * self.crops

    @property
    def interpolations(self) -> list[str]:
        return [self.view.interpolation] * self.crops

    @property
    def max_batch(self) -> int:
        return self.batch_size

    @property
    def share(self) -> range:
        """This rank's samples."""
        return rank_share(len(self.manifest), self.world.rank, self.world.size)

    @property
    def batches(self) -> range:
        return range(-(-len(self.share) // self.batch_size))

    def sample_ids(self, batches: range) -> np.ndarray:
        first, last = batches.start * self.batch_size, batches.stop * self.batch_size
        return np.asarray(self.share[first:last], np.int64)

    def places(self, batches: range) -> np.ndarray:
        return self.sample_ids(batches)

    def batch_sizes(self, batches: range) -> list[int]:
        return [len(self.sample_ids(range(index, index + 1))) for index in batches]

    def views(self, batches: range, sample_ids: np.ndarray) -> list[View]:
        sizes = self.manifest.widths[sample_ids], self.manifest.heights[sample_ids]
        places = [CENTRE] if self.crops == 1 else FIVE_CROPS
        return [draw_view(self.view, 0, sample_ids, 0, *sizes, place) for place in places]


@dataclass(frozen=True)
class OncePlan(EvalPlan):
    """The ``samples`` (N,) once, in their order, as training sees them: damaged ones replaced."""

    samples: np.ndarray = field(kw_only=True)
    replace_bad = True

    @property
    def share(self) -> np.ndarray:
        return self.samples


NONE_FAILED: Mapping[int, Container[int]] = MappingProxyType({})


@dataclass(frozen=True)
class EncodedBatch:
    """The images of a batch as they lie on disk, and what is known of them."""

    sample_ids: np.ndarray  # (B,) int64
    places: np.ndarray  # (B,) int64
    contents: list[np.ndarray]  # of bytes


def read_batch(
    plan: BatchPlan, index: int, failed: Mapping[int, Container[int]] = NONE_FAILED
) -> EncodedBatch:
    """Batch ``index``, damaged samples replaced or left out as the plan says.

    ``failed``: by place in the global batch, the samples that did not decode there.
    """
    batches = range(index, index + 1)
    wanted, places = plan.sample_ids(batches), plan.places(batches)
    pairs = zip(wanted, [failed.get(place, ()) for place in places.tolist()])
    if plan.replace_bad:
        found = [plan.manifest.read_or_replace(*pair) for pair in pairs]
        sample_ids = np.array([sample_id for sample_id, _ in found], np.int64)
        return EncodedBatch(sample_ids, places, [content for _, content in found])
    contents = [None if ids else plan.manifest.read(sample_id) for sample_id, ids in pairs]
    intact = np.array([content is not None for content in contents], bool)
    kept = [content for content in contents if content is not None]
    return EncodedBatch(wanted[intact], places[intact], kept)
