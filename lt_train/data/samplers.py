"""The samplers of training (:mod:`order`) for PyTorch's DataLoader, on any number of ranks."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypedDict, Unpack

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler

from lt_train.config.checks import check
from lt_train.config.schema import SAMPLERS, Config, SamplerConfig, code_of
from lt_train.data.tables import UNLABELED, class_index, class_offsets, count_classes
from lt_train.errors import UserError

AT_ONCE = 4096  # indices that are computed together


class _ByClass:
    """The samples of each class, as :mod:`order` asks a manifest for them."""

    def __init__(self, labels: np.ndarray):
        self.labels = labels
        self.class_counts = count_classes(labels, int(labels.max(initial=UNLABELED)) + 1)
        self.class_offsets = class_offsets(self.class_counts)

    @cached_property
    def class_ids(self) -> np.ndarray:
        return class_index(self.labels, self.class_counts)

    def __len__(self) -> int:
        return len(self.labels)


class Settings(TypedDict, total=False):
    """What all samplers take beside what is their own."""

    seed: int
    num_replicas: int | None
    rank: int | None
    drop_last: bool


class ElasticSampler(Sampler[int]):
    """Indices in the order of training, as a pure function of seed, epoch and position.

    ``data``: the label of each sample (N,), from 0 on, -1 for one without; or a dataset that has
    them as ``targets``. ``config``: the sampler's name and keys, those of a config's ``sampler``
    section, and so one of your own that is in SAMPLERS, too. ``epochs``: how long training will be;
    only ``progressively_balanced`` looks at it.

    Epoch ``e`` is positions [e * N, (e + 1) * N) of one endless sequence, the one that ``lt_train``
    trains on with that seed. Rank r of R takes every R-th position from the r-th on. With batches
    of b samples on each rank, global batch k, of all ranks together, is then the G = R * b
    positions from k * G on: for the same G the same samples, whatever R. So a training may go on
    with another number of ranks in the middle of an epoch: see :meth:`state_dict`.

    All ranks get as many indices: where R does not divide them, the last ones get some of the next
    epoch's first. ``drop_last``: the odd ones are left out instead; with ``drop_last`` of the
    DataLoader too, an epoch is N // G batches, whatever R.

    ``num_replicas`` and ``rank``: R and r; by default those of torch.distributed, or 1 and 0.

    Attributes: ``epoch``; ``position``, where in the epoch the next iteration begins.
    """

    def __init__(
        self,
        data: Any,
        config: SamplerConfig,
        *,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        epochs: float = 1.0,
    ):
        check(Config(sampler=config, seed=seed, epochs=epochs))
        labels = _labels_of(data)
        self.num_replicas, self.rank = _place(num_replicas, rank)
        self.config, self.seed, self.epochs, self.drop_last = config, seed, epochs, drop_last
        self.size, self.epoch, self.position = len(labels), 0, 0
        grouped, kind = _ByClass(labels), code_of(SAMPLERS, config.name)
        if not len(labels):
            raise UserError("there are no samples to draw from")
        if kind.by_class and not grouped.class_counts.any():
            raise UserError(f"{config.name} goes by classes, and no sample has a label")
        self._digest = zlib.crc32(grouped.class_counts.tobytes())
        self._order = kind(config, grouped, seed, epochs)

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration be of ``epoch``: from its start on, if it is another one."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        """How many indices an iteration gives this rank."""
        left = self.size - self.position
        return left // self.num_replicas if self.drop_last else -(-left // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        first, indices = self.epoch * self.size + self.position + self.rank, len(self)
        for start in range(0, indices, AT_ONCE):
            turns = np.arange(start, min(start + AT_ONCE, indices), dtype=np.int64)
            yield from self._order(first + turns * self.num_replicas).tolist()

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """What :meth:`load_state_dict` goes on from, on any number of ranks; the same on all.

        ``position``: how many samples of this epoch, from its start on, all ranks together have
        trained on. The sampler cannot know, since a DataLoader's workers ask it for batches ahead
        of time. None: where the last iteration began.
        """
        position = self.position if position is None else position
        return {**self._about(), "epoch": self.epoch, "position": position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a :class:`UserError` if it is of another sequence."""
        about = self._about()
        others = [f"{name} {state.get(name)}" for name in about if state.get(name) != about[name]]
        if others:
            here = ", ".join(f"{name} {value}" for name, value in about.items())
            raise UserError(
                f"the state is of another sampler ({', '.join(others)}) than this one ({here})"
            )
        epoch, position = (state.get(name, -1) for name in ("epoch", "position"))
        if epoch < 0 or not 0 <= position <= self.size:
            raise UserError(f"the state's epoch {epoch} has no position {position}")
        self.epoch, self.position = epoch, position

    def _about(self) -> dict[str, Any]:
        """All that the sequence follows from."""
        keys = {"seed": self.seed, "epochs": self.epochs, "samples": self.size}
        return {**asdict(self.config), **keys, "class_counts_crc32": self._digest}


class InstanceBalancedSampler(ElasticSampler):
    """Every sample once an epoch, in a new permutation each epoch."""

    def __init__(self, data: Any, **settings: Unpack[Settings]):
        super().__init__(data, SamplerConfig("instance_balanced"), **settings)


class ClassBalancedSampler(ElasticSampler):
    """Every class alike: each has ``samples_per_class`` positions in a row, classes taking turns.

    In every cycle of C * samples_per_class positions each class has exactly as many, and within a
    class no sample comes again before all have come.
    """

    def __init__(self, data: Any, samples_per_class: int = 4, **settings: Unpack[Settings]):
        super().__init__(data, SamplerConfig("class_balanced", samples_per_class), **settings)


class SquareRootSampler(ElasticSampler):
    """A class by the square root of its number of samples, with replacement."""

    def __init__(self, data: Any, **settings: Unpack[Settings]):
        super().__init__(data, SamplerConfig("square_root"), **settings)


class ProgressivelyBalancedSampler(ElasticSampler):
    """From every sample alike to every class alike, linearly over ``epochs``, with replacement."""

    def __init__(self, data: Any, epochs: float, **settings: Unpack[Settings]):
        config = SamplerConfig("progressively_balanced")
        super().__init__(data, config, epochs=epochs, **settings)


class EffectiveNumberSampler(ElasticSampler):
    """A sample of a class of n in proportion to (1 - beta) / (1 - beta^n), with replacement."""

    def __init__(self, data: Any, beta: float = 0.9999, **settings: Unpack[Settings]):
        super().__init__(data, SamplerConfig("effective_number", beta=beta), **settings)


def _labels_of(data: Any) -> np.ndarray:
    """(N,) of integers."""
    labels = np.asarray(getattr(data, "targets", data))
    if labels.ndim != 1 or (labels.dtype.kind not in "iu" and len(labels)):
        raise UserError("a sampler takes a dataset with targets, or one whole number a sample")
    if labels.min(initial=UNLABELED) < UNLABELED:
        raise UserError(f"labels are 0 or more, or {UNLABELED}, not {labels.min()}")
    return labels


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """R and r of rank r of R."""
    joined = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if joined else 1
    if rank is None:
        rank = dist.get_rank() if joined else 0
    if not 0 <= rank < num_replicas:
        raise UserError(f"rank must be from 0 to num_replicas - 1, not {rank} of {num_replicas}")
    return num_replicas, rank
