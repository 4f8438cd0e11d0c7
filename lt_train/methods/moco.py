"""MoCo v2: He et al. 2020, "Momentum Contrast"; Chen et al. 2020, "Improved Baselines with MoCo".

Differences from the published code change cost, not the method: each image travels once for
ShuffleBN (all_to_all instead of all_gather) while the queries are encoded, and its key back; all
keys are gathered while gradients are computed, and enter the queue at the start of the next step,
so that autograd's view of the queue needs no copy; the key encoder is updated by one fused
operation, and the queue's pointer stays on the device. Any batch size works.
"""

import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.collectives import (
    Coming,
    all_to_all_rows,
    rank_and_size,
    start_all_gather_rows,
    start_all_to_all_rows,
)
from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.distributed import rank_share
from lt_train.methods.base import Counts, Loaders, Method, Outputs, Progress, train_top1
from lt_train.methods.metrics import feature_std
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import Encoder
from lt_train.models.moving_average import MovingAverage
from lt_train.models.split_batch_norm import split_batch_norms
from lt_train.random_streams import Stream, mix

log = logging.getLogger(__name__)

LARGEST_QUEUE = 1 / 4  # of the training set


class Moco(Method):
    """Query encoder, momentum key encoder, and a queue of the newest keys of all ranks."""

    def __init__(self, config: Config, counts: Counts):
        super().__init__(config, counts)
        moco, backbone = config.moco, (config.model.backbone, config.eval_view.size)
        self.query_encoder = Encoder(make_backbone(*backbone), moco.dim, moco.projector)
        self.key_encoder = Encoder(make_backbone(*backbone), moco.dim, moco.projector)
        self.key_encoder.requires_grad_(False)

        generator = torch.Generator().manual_seed(config.seed)
        queue = torch.randn(moco.queue_size, moco.dim, generator=generator)
        self.register_buffer("queue", F.normalize(queue, dim=1))  # (K, dim)
        self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.int64))
        # keys of the step before, not yet in the queue, and whether there are any
        self.register_buffer("waiting_keys", torch.zeros(config.global_batch_size, moco.dim))
        self.register_buffer("has_waiting_keys", torch.zeros(1, dtype=torch.bool))

        splits = moco.bn_splits or _default_splits(config.global_batch_size)
        for encoder in (self.query_encoder, self.key_encoder):
            split_batch_norms(encoder, splits)
        self._shuffles = Shuffles(config.global_batch_size, config.seed)
        self._coming_keys: Coming | None = None  # of all ranks

    @property
    def backbone(self) -> nn.Module:
        return self.query_encoder.backbone

    @cached_property
    def _averaging(self) -> MovingAverage:
        return MovingAverage(self.key_encoder, self.query_encoder)

    def encoders(self) -> list[nn.Module]:
        return [self.query_encoder.backbone, self.key_encoder.backbone]

    def prepare(self) -> None:
        """The key encoder starts as a copy of the query encoder."""
        self._warn_of_large_queue()
        self.key_encoder.load_state_dict(self.query_encoder.state_dict())

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        query_images, key_images = batch.views
        with torch.no_grad():
            shuffle = self._shuffles.of(progress.step, batch.place, key_images.device)
            shuffled = _sent(key_images, shuffle)
            self._keep_coming_keys()
            self._enqueue_waiting()
            self._averaging.follow(self.config.moco.ema_momentum)
        queries = self.query_encoder(query_images)
        with torch.no_grad():
            keys = self._keys(shuffled, shuffle)
            self._coming_keys = start_all_gather_rows(keys, shuffle.shares)

        logits = self._logits(queries, keys)
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return {
            "loss": F.cross_entropy(logits, first),
            "contrast_top1": train_top1(logits, first),
            **self._health(queries.detach(), keys),
        }

    def gauges(self, progress: Progress) -> dict[str, float]:
        """``queue_age``, how many steps a key lies in the queue; once it holds nothing but keys."""
        age = self.config.moco.queue_size / self.config.global_batch_size
        # the last step's keys wait outside
        return {"queue_age": age} if progress.step - 1 >= age else {}

    def _health(self, queries: torch.Tensor, keys: torch.Tensor) -> Outputs:
        """How far ``queries`` (B, dim) are spread, and their mean similarity (a cosine) to their
        own ``keys`` (B, dim) and to the queue's.
        """
        return {
            "feature_std": feature_std(queries),
            "positive_similarity": (queries * keys).sum(1).mean(),
            # the mean over all pairs is the product of the means
            "negative_similarity": (queries.mean(0) * self.queue.mean(0)).sum(),
        }

    def after_step(self) -> None:
        self._keep_coming_keys()

    def _logits(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1 + K) of a query's own key, and of all in the queue; float32.

        Both kinds, since bf16's 3 digits for the queue alone put positives ahead or behind by
        rounding. On a CPU core that computes in bf16, K = 65,536 and a batch of 128 cost the same
        either way, forward and backward. A GPU takes float32 in full unless
        torch.set_float32_matmul_precision allows it TF32, which would be for the queue alone again.
        """
        with torch.autocast(queries.device.type, enabled=False):
            positive = (queries * keys).sum(1, keepdim=True)
            negative = queries @ self.queue.T
            return torch.cat([positive, negative], 1) / self.config.moco.temperature

    def _warn_of_large_queue(self) -> None:
        """Say so on rank 0 if many images stand among their own negatives, as older keys."""
        size, images = self.config.moco.queue_size, self.counts.images
        if images and size > images * LARGEST_QUEUE and rank_and_size()[0] == 0:
            fitting = 2 ** max(0, math.floor(math.log2(images * LARGEST_QUEUE)))
            log.warning(
                "moco.queue_size=%d is more than a quarter of the %d training images: too often an "
                "image is its own negative, which costs features; moco.queue_size=%d would fit",
                size,
                images,
                fitting,
            )

    def _keys(self, shuffled: Coming, shuffle: "Shuffle") -> torch.Tensor:
        """Keys (B, dim) of this rank's images, encoded in other company: ShuffleBN.

        On a single rank that shuffles the groups of split batch norm.
        """
        arrived = shuffled.wait()
        images = torch.empty_like(arrived).index_copy_(0, shuffle.arrival, arrived)
        encoded = self.key_encoder(_as_images(images))
        back = all_to_all_rows(encoded[shuffle.arrival], shuffle.coming, shuffle.sent)
        return torch.empty_like(back).index_copy_(0, shuffle.picked, back)

    def _keep_coming_keys(self) -> None:
        """Have the last step's keys of all ranks wait for the next one."""
        if self._coming_keys is not None:
            self.waiting_keys.copy_(self._coming_keys.wait())
            self.has_waiting_keys.fill_(True)
            self._coming_keys = None

    def _enqueue_waiting(self) -> None:
        """Write the last step's keys over the oldest ones.

        More keys than the queue holds leave the newest.
        """
        size, pointer, any_keys = len(self.queue), self.queue_pointer, self.has_waiting_keys
        keys = self.waiting_keys[-size:]
        places = (pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue.index_copy_(0, places, torch.where(any_keys, keys, self.queue[places]))
        pointer.copy_(torch.where(any_keys, (pointer + len(keys)) % size, pointer))

    def evaluate(self, loaders: Loaders, split: str) -> dict:
        return self.evaluate_knn(loaders, split)


@dataclass(frozen=True)
class Shuffle:
    """A deal of the global batch's images to ranks, as one rank sees it.

    ``picked`` (B,): its own images, sorted by the rank that encodes them, of which each gets
    ``sent``; ``arrival``: where what arrives, ``coming`` from each rank, has its place in what this
    rank encodes. ``shares``: images of each rank.
    """

    picked: torch.Tensor
    sent: list[int]
    arrival: torch.Tensor
    coming: list[int]
    shares: list[int]

    @classmethod
    def make(
        cls, batch_size: int, seed: int, step: int, first: int, device: torch.device
    ) -> "Shuffle":
        """That of a permutation which is the same on all ranks; this one's images are at the places
        from ``first`` on.
        """
        rank, size = rank_and_size()
        shares = [rank_share(batch_size, other, size) for other in range(size)]
        last_places = torch.tensor([share[-1] for share in shares])
        order = _permutation(batch_size, seed, step)  # shuffled place -> place in the batch
        encodes = order[shares[rank].start : shares[rank].stop]
        owners = torch.bucketize(encodes, last_places)
        shuffled_places = torch.empty_like(order).index_copy_(0, order, torch.arange(batch_size))
        own = shuffled_places[first : first + len(shares[rank])]
        # sent in the order in which each receiver encodes them
        picked, arrival = own.argsort(), owners.argsort(stable=True)
        receivers = torch.bucketize(own, last_places)
        if device.type == "cuda":
            picked, arrival = picked.pin_memory(), arrival.pin_memory()
        return cls(
            picked.to(device, non_blocking=True),
            receivers.bincount(minlength=size).tolist(),
            arrival.to(device, non_blocking=True),
            owners.bincount(minlength=size).tolist(),
            [len(share) for share in shares],
        )


class Shuffles:
    """The deal of every step, made while the step before is under way."""

    def __init__(self, batch_size: int, seed: int):
        self.batch_size, self.seed = batch_size, seed
        self._thread = ThreadPoolExecutor(1, "shuffles")
        self._next: tuple[tuple | None, Future | None] = None, None

    def of(self, step: int, place: np.ndarray, device: torch.device) -> Shuffle:
        first = int(place[0])  # in a row: the batch is dealt in such shares
        known, made = self._next
        wanted = (step, first, device)
        shuffle = made.result() if known == wanted else self._make(*wanted)
        coming = (step + 1, first, device)
        self._next = coming, self._thread.submit(self._make, *coming)
        return shuffle

    def _make(self, step: int, first: int, device: torch.device) -> Shuffle:
        return Shuffle.make(self.batch_size, self.seed, step, first, device)


def _sent(images: torch.Tensor, shuffle: Shuffle) -> Coming:
    """Rows of ``images`` (B, 3, H, W) on their way to the ranks that encode them."""
    if torch.is_autocast_enabled(images.device.type):
        # the encoder would round to it anyway: half the bytes
        images = images.to(torch.get_autocast_dtype(images.device.type))
    rows = _as_rows(images)[shuffle.picked]
    return start_all_to_all_rows(rows, shuffle.sent, shuffle.coming)


def _permutation(size: int, seed: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(mix(seed, step, Stream.SHUFFLE)[0] >> 1))
    return torch.randperm(size, generator=generator)


def _default_splits(global_batch_size: int) -> int:
    """One rank: as many groups, up to 4, as leave 8 samples or more in each.

    Several ranks are groups already.
    """
    return 1 if rank_and_size()[1] > 1 else max(1, min(4, global_batch_size // 8))


def _as_rows(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in channels_last memory -> (B, H, W, 3), the same memory, contiguous by rows."""
    return images.permute(0, 2, 3, 1)


def _as_images(rows: torch.Tensor) -> torch.Tensor:
    return rows.permute(0, 3, 1, 2)
