"""MoCo against a straight-line implementation, on one rank and on several."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_train.config.schema import Config, KnnConfig, MocoConfig, ModelConfig, OptimConfig
from lt_train.data.batch import Batch
from lt_train.distributed import World, rank_share
from lt_train.methods.base import Counts
from lt_train.methods.moco import Moco, _permutation
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import make_projector
from lt_train.training.optim import make_optimizer
from tests.helpers.batches import make_batch, rows_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.small_methods import progress_of

STEPS = 4
QUEUE_SIZE = 10
MOMENTUM = 0.9
TEMPERATURE = 0.3
BATCH_SIZES = (3, 7, 12)  # on several ranks
CLASS_COUNTS = torch.tensor([4, 2, 1])
# images, as places in the global batch, that share batch norm's statistics
Groups = list[np.ndarray]


def make_config(global_batch_size: int, bn_splits: int = 1) -> Config:
    return Config(
        method="moco",
        seed=7,
        global_batch_size=global_batch_size,
        model=ModelConfig("resnet32_cifar"),
        optim=OptimConfig(lr=0.05, scale_lr=False),
        moco=MocoConfig(8, QUEUE_SIZE, TEMPERATURE, MOMENTUM, bn_splits=bn_splits),
        knn=KnnConfig(k=3),
    )


def make_method(config: Config) -> Moco:
    torch.manual_seed(0)
    method = Moco(config, Counts.of(CLASS_COUNTS))
    method.prepare()
    return method


def global_batch(size: int, step: int) -> Batch:
    """Two views and labels of batch ``step``."""
    generator = torch.Generator().manual_seed(step)
    views = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(2)]
    return make_batch(views, torch.randint(0, 3, (size,), generator=generator))


def shares_of(size: int, ranks: int) -> Groups:
    """The places that each rank has in the global batch."""
    return [np.asarray(rank_share(size, rank, ranks)) for rank in range(ranks)]


def oldest_first(queue: torch.Tensor, pointer: torch.Tensor) -> torch.Tensor:
    return queue.roll(-int(pointer), 0)


class StraightMoco:
    """He et al. 2020, algorithm 1, on the global batch in one process; the queue is a list of keys,
    oldest first.
    """

    def __init__(self, method: Moco):
        self.query = self._network(method.query_encoder)
        self.key = self._network(method.key_encoder)
        self.queue = method.queue.clone()

    @staticmethod
    def _network(encoder: nn.Module) -> nn.Module:
        network = nn.Sequential(make_backbone("resnet32_cifar"), make_projector(64, 8))
        network[0].load_state_dict(encoder.backbone.state_dict())
        network[1].load_state_dict(encoder.projector.state_dict())
        return network

    def losses(self, batch: Batch, query_groups: Groups, key_groups: Groups) -> torch.Tensor:
        """InfoNCE of each image; its keys enter the queue."""
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.query.parameters()):
                key.copy_(MOMENTUM * key + (1 - MOMENTUM) * query)
            keys = self._encode(self.key, batch.views[1], key_groups)
        queries = self._encode(self.query, batch.views[0], query_groups)
        positive = (queries * keys).sum(1) / TEMPERATURE
        negative = torch.einsum("bd,kd->bk", queries, self.queue) / TEMPERATURE
        self.queue = torch.cat([self.queue, keys])[-len(self.queue) :]
        return (positive.exp() + negative.exp().sum(1)).log() - positive

    @staticmethod
    def _encode(network: nn.Module, images: torch.Tensor, groups: Groups) -> torch.Tensor:
        codes = torch.cat([F.normalize(network(images[group]), dim=1) for group in groups])
        return codes[torch.from_numpy(np.concatenate(groups)).argsort()]


def shuffled_groups(config: Config, step: int, ranks: int) -> Groups:
    order = _permutation(config.global_batch_size, config.seed, step).numpy()
    return [order[share] for share in shares_of(config.global_batch_size, ranks)]


def test_similarities_are_means_over_pairs():
    method = make_method(make_config(4))
    queries, keys = (F.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
    found = method._health(queries, keys)
    pairs = [float(query @ key) for query, key in zip(queries, keys)]
    assert float(found["positive_similarity"]) == pytest.approx(np.mean(pairs), abs=1e-6)
    negative = [float(query @ key) for query in queries for key in method.queue]
    assert float(found["negative_similarity"]) == pytest.approx(np.mean(negative), abs=1e-6)
    same = method._health(queries, queries)
    assert float(same["positive_similarity"]) == pytest.approx(1)


def test_the_age_of_the_queue_is_told_once_no_key_of_the_start_is_left():
    method = make_method(make_config(4))
    start, told = method.queue.clone(), {}
    for step in range(1, 5):
        outputs = method(global_batch(4, step - 1), progress_of(method, step - 1))
        method.after_step()
        left = (method.queue[:, None] == start).all(2).any()
        told[step] = bool(left), method.gauges(progress_of(method, step))
        assert {"feature_std", "positive_similarity", "negative_similarity"} < outputs.keys()
    assert told == {
        1: (True, {}),
        2: (True, {}),
        3: (True, {}),
        4: (False, {"queue_age": QUEUE_SIZE / 4}),
    }


# one rank


@pytest.mark.parametrize(
    ("batch_size", "bn_splits"),
    [(5, 1), (4, 1), (13, 1), (9, 2), (16, 0)],
    ids=[
        "divides the queue",
        "does not divide it",
        "larger than it",
        "split batch norm, uneven",
        "default splits",
    ],
)
def test_first_steps_equal_the_straight_line_implementation(batch_size, bn_splits):
    config = make_config(batch_size, bn_splits)
    splits = bn_splits or 2  # at least 8 samples in each
    method = make_method(config)
    straight = StraightMoco(method)
    optim = config.optim
    optimizer = make_optimizer(optim, method)
    own = torch.optim.SGD(
        straight.query.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay
    )
    for step in range(STEPS):
        batch = global_batch(batch_size, step)
        queue = straight.queue
        query_groups = np.array_split(np.arange(batch_size), splits)
        key_groups = np.array_split(_permutation(batch_size, config.seed, step).numpy(), splits)
        expected = straight.losses(batch, query_groups, key_groups).mean()
        outputs = method(batch, progress_of(method, step))
        torch.testing.assert_close(outputs["loss"], expected, rtol=1e-4, atol=1e-5)
        held = oldest_first(method.queue, method.queue_pointer)
        torch.testing.assert_close(held, queue, rtol=1e-3, atol=1e-4)
        if batch_size <= QUEUE_SIZE:
            assert int(method.queue_pointer) == step * batch_size % QUEUE_SIZE
        for loss, sgd in ((outputs["loss"], optimizer), (expected, own)):
            sgd.zero_grad()
            loss.backward()
            sgd.step()


def test_key_encoder_is_the_moving_average_of_the_query_encoder():
    config = make_config(6)
    method = make_method(config)
    optimizer = make_optimizer(config.optim, method)
    start = [parameter.clone() for parameter in method.key_encoder.parameters()]
    seen = []  # query parameters at the beginning of each step
    for step in range(STEPS):
        seen.append([parameter.detach().clone() for parameter in method.query_encoder.parameters()])
        method(global_batch(6, step), progress_of(method, step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any((first != last).any() for first, last in zip(seen[0], seen[-1]))
    for index, parameter in enumerate(method.key_encoder.parameters()):
        expected = start[index]
        for queries in seen:
            expected = MOMENTUM * expected + (1 - MOMENTUM) * queries[index]
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
        assert parameter.grad is None


def test_contrast_top1_is_the_share_of_positives_ahead_of_the_whole_queue():
    method = make_method(make_config(8))
    method.eval()  # statistics of the start: codes do not depend on the batch
    batch = global_batch(8, 0)
    with torch.no_grad():
        outputs = method(batch, progress_of(method, 0))
        queries = method.query_encoder(batch.views[0])
        keys = method.key_encoder(batch.views[1])
    ahead = [bool((query @ key > method.queue @ query).all()) for query, key in zip(queries, keys)]
    assert float(outputs["contrast_top1"]) == 100 * np.mean(ahead)


def test_positives_and_negatives_are_compared_in_float32_inside_bf16_autocast():
    """A key that stands in the queue too has the very logit of its positive, up to float32's
    rounding; bf16 has 3 digits.
    """
    method = make_method(make_config(8)).eval()
    batch = global_batch(8, 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        method(batch, progress_of(method, 0))
        method.after_step()
        queries = method.query_encoder(batch.views[0])
        keys = method.waiting_keys
        method.queue[: len(keys)] = keys
        logits = method._logits(queries, keys)
    positive, negative = logits[:, 0], logits[:, 1 : 1 + len(keys)].diagonal()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(negative, positive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("queue_size", "images", "fitting"),
    [(4096, 12_406, 2048), (65_536, 115_846, 16_384), (3, 10, 2), (2, 3, 1)],
)
def test_a_queue_of_more_than_a_quarter_of_the_set_is_warned_of(
    caplog, queue_size, images, fitting
):
    moco = replace(make_config(4).moco, queue_size=queue_size)
    method = Moco(replace(make_config(4), moco=moco), Counts.of(CLASS_COUNTS, images=images))
    method.prepare()
    (warning,) = caplog.messages
    assert f"moco.queue_size={queue_size} is more than a quarter of the {images} " in warning
    assert f"moco.queue_size={fitting} would fit" in warning and "\n" not in warning


@pytest.mark.parametrize("images", [0, 40, 41])
def test_no_word_of_a_queue_that_fits_or_of_a_set_that_is_not_known(caplog, images):
    Moco(make_config(4), Counts.of(CLASS_COUNTS, images=images)).prepare()
    assert not caplog.messages


def test_permutation_depends_on_seed_and_step_alone():
    orders = {}
    for seed in range(5):
        for step in range(20):
            torch.manual_seed(step)
            order = _permutation(32, seed, step)
            torch.rand(seed + 1)
            assert order.equal(_permutation(32, seed, step))
            assert order.sort().values.equal(torch.arange(32))
            orders[seed, step] = tuple(order.tolist())
    assert len(set(orders.values())) == len(orders)


# several ranks


@dataclass(frozen=True)
class Step:
    """What a rank holds after one step."""

    loss: torch.Tensor
    queue: torch.Tensor  # oldest key first
    keys: torch.Tensor  # of the global batch


def grow_queries(query: nn.Module) -> None:
    """Stands for an optimizer, so that query and key encoder differ."""
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.mul_(1.1)


def moco_steps(world: World, configs: list[Config], training: bool) -> list[list[Step]]:
    """Steps without optimizer of each config, on this rank's part of the batches."""
    return [_moco_steps(world, config, training) for config in configs]


def _moco_steps(world: World, config: Config, training: bool) -> list[Step]:
    method = make_method(config).train(training)
    steps = []
    own = rank_share(config.global_batch_size, world.rank, world.size)
    for step in range(STEPS):
        grow_queries(method.query_encoder)
        batch = rows_of(global_batch(config.global_batch_size, step), own)
        outputs = method(batch, progress_of(method, step))
        queue = oldest_first(method.queue, method.queue_pointer)
        method.after_step()
        steps.append(Step(outputs["loss"].detach(), queue, method.waiting_keys.clone()))
    return steps


def moco_knn(world: World, config: Config, sizes: dict[str, int]) -> dict:
    """k-NN evaluation with every split spread over ranks; ranks without samples have no batch."""
    splits = {split: global_batch(size, 100) for split, size in sizes.items()}

    def loaders(split: str) -> list[Batch]:
        rows = rank_share(sizes[split], world.rank, world.size)
        return [rows_of(splits[split], rows)] if len(rows) else []

    with torch.no_grad():
        return make_method(config).eval().evaluate(loaders, "val")


def moco_everywhere(world: World, configs: list[Config]) -> dict:
    return {
        True: moco_steps(world, configs, True),
        False: moco_steps(world, configs, False),
        "knn": moco_knn(world, configs[0], {"train": 2, "val": 7}),
    }


@pytest.fixture(scope="module", params=[2, 3], ids=lambda ranks: f"{ranks} ranks")
def on_ranks(request) -> list[dict]:
    configs = [make_config(size) for size in BATCH_SIZES]
    return run_on_ranks(request.param, moco_everywhere, configs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "training", [False, True], ids=["finished statistics", "each rank's statistics"]
)
@pytest.mark.parametrize(
    "case", range(len(BATCH_SIZES)), ids=lambda case: f"batch of {BATCH_SIZES[case]}"
)
def test_ranks_equal_the_straight_line_implementation(on_ranks, case, training):
    """With finished batch-norm statistics, shuffling changes no key; in training, a key is computed
    in other company.
    """
    config, ranks = make_config(BATCH_SIZES[case]), len(on_ranks)
    shares, whole = shares_of(config.global_batch_size, ranks), [np.arange(BATCH_SIZES[case])]
    method = make_method(config)
    straight = StraightMoco(method)
    straight.query.train(training)
    straight.key.train(training)
    for step in range(STEPS):
        grow_queries(straight.query)
        queue = straight.queue
        query_groups = shares if training else whole
        key_groups = shuffled_groups(config, step, ranks) if training else whole
        batch = global_batch(config.global_batch_size, step)
        with torch.no_grad():
            losses = straight.losses(batch, query_groups, key_groups)
        newest = min(QUEUE_SIZE, config.global_batch_size)
        for result, rows in zip(on_ranks, shares):
            actual: Step = result[training][case][step]
            keys = actual.keys[-newest:]
            torch.testing.assert_close(actual.loss, losses[rows].mean(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(actual.queue, queue, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(keys, straight.queue[-newest:], rtol=1e-3, atol=1e-4)
            assert actual.queue.equal(on_ranks[0][training][case][step].queue)


@pytest.mark.slow
def test_knn_evaluation_is_that_of_one_rank(on_ranks):
    """Also with fewer training images than ranks."""
    expected = moco_knn(World(), make_config(BATCH_SIZES[0]), {"train": 2, "val": 7})
    assert expected["samples"] == 7
    assert [result["knn"] for result in on_ranks] == [expected] * len(on_ranks)
