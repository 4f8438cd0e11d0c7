"""MoCo v2: He et al. 2020, "Momentum Contrast"; Chen et al. 2020, "Improved Baselines with MoCo".

Differences from the published code change cost, not the method: each image travels once for
ShuffleBN (all_to_all instead of all_gather), the key encoder is updated by one fused operation, the
queue's pointer stays on the device, and a batch's keys enter the queue at the start of the next
step, so that autograd's view of the queue needs no copy. Any batch size works.
"""

import logging
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.collectives import all_gather_rows, all_to_all_rows, rank_and_size
from lt_train.config.schema import Config
from lt_train.data.batch import Batch
from lt_train.distributed import rank_share
from lt_train.methods.base import Counts, Loaders, Method, Outputs, Progress, train_top1
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import Encoder
from lt_train.models.moving_average import follow
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

    @property
    def backbone(self) -> nn.Module:
        return self.query_encoder.backbone

    def encoders(self) -> list[nn.Module]:
        return [self.query_encoder.backbone, self.key_encoder.backbone]

    def prepare(self) -> None:
        """The key encoder starts as a copy of the query encoder."""
        self._warn_of_large_queue()
        self.key_encoder.load_state_dict(self.query_encoder.state_dict())

    def forward(self, batch: Batch, progress: Progress) -> Outputs:
        query_images, key_images = batch.views
        with torch.no_grad():
            self._enqueue_waiting()
            follow(self.key_encoder, self.query_encoder, self.config.moco.ema_momentum)
        queries = self.query_encoder(query_images)
        with torch.no_grad():
            keys, all_keys = self._shuffled_keys(key_images, batch.place, progress.step)
            self.waiting_keys.copy_(all_keys)
            self.has_waiting_keys.fill_(True)

        logits = self._logits(queries, keys)
        first = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return {
            "loss": F.cross_entropy(logits, first),
            "contrast_top1": train_top1(logits, first),
        }

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

    def _shuffled_keys(
        self, images: torch.Tensor, place: np.ndarray, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys of this rank's ``images`` and of the global batch, encoded in other company.

        ShuffleBN: a permutation of the global batch, the same on all ranks, deals every image to
        one rank. Keys travel back by the gather that the queue needs anyway. On a single rank it
        shuffles the groups of split batch norm.
        """
        rank, size = rank_and_size()
        batch_size = self.config.global_batch_size
        shares = [rank_share(batch_size, other, size) for other in range(size)]
        # place in the shuffled batch -> place in the batch
        order = _permutation(batch_size, self.config.seed, step)
        wanted = [order[share.start : share.stop] for share in shares]  # by rank: what it encodes
        first, last = int(place[0]), int(place[-1])  # in a row: the batch is dealt in such shares

        # send in the order in which each receiver holds them; then put what came, sorted by sender,
        # into that order
        to_send = [images_of[(first <= images_of) & (images_of <= last)] for images_of in wanted]
        picked = torch.cat(to_send).to(images.device, non_blocking=True) - first
        owner = torch.bucketize(wanted[rank], torch.tensor([share[-1] for share in shares]))
        if torch.is_autocast_enabled(images.device.type):
            # the encoder would round to it anyway: half the bytes
            images = images.to(torch.get_autocast_dtype(images.device.type))
        sent = [len(part) for part in to_send]
        coming = torch.bincount(owner, minlength=size).tolist()
        received = all_to_all_rows(_as_rows(images)[picked], sent, coming)
        arrival = owner.argsort(stable=True).to(images.device, non_blocking=True)
        shuffled = torch.empty_like(received).index_copy_(0, arrival, received)

        keys = self.key_encoder(_as_images(shuffled))
        gathered = all_gather_rows(keys, [len(share) for share in shares])
        order = order.to(images.device, non_blocking=True)
        all_keys = torch.empty_like(gathered).index_copy_(0, order, gathered)
        return all_keys[first : last + 1], all_keys

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
