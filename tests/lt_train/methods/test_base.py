"""What every method owes the loop: steps that train what should train and nothing else, alone, in
bf16, restored, and on several ranks.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lt_train.collectives import all_reduce_
from lt_train.config.schema import (
    METHODS,
    ClassifierConfig,
    Config,
    EngineConfig,
    FixmatchConfig,
    KnnConfig,
    LossConfig,
    ModelConfig,
    ProcoConfig,
    RotationConfig,
    SemiConfig,
    UnlabeledConfig,
    labeled_batch,
)
from lt_train.data.batch import Batch
from lt_train.distributed import World, rank_share
from lt_train.methods.base import Counts, Method
from lt_train.methods.rotation import Rotation
from lt_train.training.engine import make_engine
from tests.helpers.batches import make_batch, rows_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.small_methods import (
    COUNTS,
    Pooled,
    make_images,
    make_labels,
    make_method,
    new_method,
    progress_of,
    state_of,
)

PSEUDO_COUNTS = torch.tensor([4, 6, 20])
BATCH = 11  # divided by neither 2 nor 3
POOL = UnlabeledConfig("pool", share=0.6)
LABELED_POOL = UnlabeledConfig("pool", share=None, label_column="pseudo_label")
# re-weighted from the second batch on
DRW = LossConfig("ldam", class_weights="effective_number", weights_from_epoch=0.1)
MIXED = ClassifierConfig("cosine", mixup_alpha=1.0, cutmix_alpha=1.0)
SETTINGS = {
    "classifier": Config(loss=DRW, classifier=MIXED),
    "crt": Config(method="crt", classifier=ClassifierConfig("cosine")),
    "lws": Config(method="lws"),
    "experts": Config(method="experts"),
    "proco": Config(method="proco", loss=LossConfig("balanced_softmax"), proco=ProcoConfig(dim=16)),
    "semi": Config(
        method="semi",
        loss=LossConfig(class_weights="inverse"),
        semi=SemiConfig(2.0),
        unlabeled=LABELED_POOL,
    ),
    "fixmatch": Config(
        method="fixmatch", fixmatch=FixmatchConfig(threshold=0.4, ema_momentum=0.5), unlabeled=POOL
    ),
    "rotation": Config(method="rotation"),
    "rotation, all four": Config(method="rotation", rotation=RotationConfig(all_four=True)),
}
EXACT = {  # on backbones without batch norm, whose gradient may not depend on the number of ranks
    "class weights": Config(loss=LossConfig("focal", class_weights="inverse")),
    "semi": SETTINGS["semi"],
    "semi, a share": replace(SETTINGS["semi"], unlabeled=replace(LABELED_POOL, share=0.6)),
    "fixmatch": replace(
        SETTINGS["fixmatch"],
        loss=LossConfig(class_weights="inverse"),
        fixmatch=FixmatchConfig(0.4, weight=3.0),
    ),
}
FROZEN_BACKBONE = ("crt", "lws")


@pytest.fixture(params=SETTINGS)
def config(request) -> Config:
    return complete(SETTINGS[request.param])


def complete(config: Config) -> Config:
    return replace(
        config,
        global_batch_size=BATCH,
        model=ModelConfig("resnet32_cifar"),
        engine=EngineConfig(precision="fp32"),
    )


def start(config: Config, seed: int = 0) -> Method:
    return new_method(config, PSEUDO_COUNTS, seed)


def global_batch(config: Config, step: int) -> Batch:
    """Labeled samples first, as the loaders have them; FixMatch's others have no label."""
    share = config.unlabeled.share or 0.5
    labeled = labeled_batch(replace(config, unlabeled=replace(config.unlabeled, share=share)))
    ids, is_labeled = torch.arange(BATCH), np.arange(BATCH) < labeled
    own, labels = torch.from_numpy(is_labeled), make_labels(BATCH).roll(step)
    views = range(METHODS[config.method].num_views)
    return make_batch(
        [make_images(BATCH, 10 * step + view, 16) for view in views],
        labels.where(own, -1) if config.method == "fixmatch" else labels,
        sample_id=ids.where(own, ids + int(COUNTS.sum())),
        is_labeled=is_labeled,
    )


def share_of(batch: Batch, config: Config, rank: int, size: int) -> Batch:
    """What the rank's loader yields: two loaders' batches one after the other, the second one's
    ranks from the other end.
    """
    labeled = labeled_batch(config)
    second = rank_share(BATCH - labeled, size - 1 - rank, size)
    rows = [*rank_share(labeled, rank, size), *(labeled + row for row in second)]
    return rows_of(batch, np.array(rows))


def trained(config: Config, world: World, steps: int = 2) -> Method:
    """After some steps as the loop takes them."""
    method = start(config)
    engine = make_engine(config, method, world)
    for step in range(steps):
        batch = share_of(global_batch(config, step), config, world.rank, world.size)
        loss = engine.forward(batch, progress_of(method, step))["loss"]
        engine.backward(loss * (len(batch) * world.size / BATCH))
        engine.set_lr(0.1)
        engine.step()
        method.after_step()
    return method


# one process


def test_two_steps_change_what_trains_and_nothing_else(config):
    method = trained(config, World())
    before, after = state_of(start(config)), state_of(method)
    changed = {name for name in before if not before[name].equal(after[name])}
    frozen = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    if config.method in FROZEN_BACKBONE:
        buffers = {name for name, _ in method.named_buffers()} & before.keys()
        in_backbone = {name for name in buffers if name.startswith("backbone.")}
        assert frozen and changed == before.keys() - frozen - in_backbone
    else:
        assert changed == before.keys() and bool(frozen) == (config.method == "fixmatch")


def test_every_trained_weight_gets_a_gradient(config):
    method = start(config)
    method(global_batch(config, 1), progress_of(method, 1))["loss"].backward()
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


def test_a_restored_method_goes_on_alike(config):
    method, restored = trained(config, World()), start(config, seed=1)
    restored.to(memory_format=torch.channels_last).load_state_dict(method.state_dict())
    batch, progress = global_batch(config, 2), progress_of(method, 2)
    expected, actual = (each.train()(batch, progress) for each in (method, restored))
    assert expected.keys() == actual.keys()
    assert all(value.equal(actual[name]) for name, value in expected.items())


def test_a_step_in_bf16_has_nearly_the_same_loss_in_float32(config):
    method, batch = start(config), global_batch(config, 1)
    progress = progress_of(method, 1)
    exact = start(config)(batch, progress)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = method(batch, progress)
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in outputs.values())
    assert float(outputs["loss"].detach()) == pytest.approx(float(exact["loss"].detach()), rel=0.15)
    outputs["loss"].backward()
    gradients = [parameter.grad for parameter in method.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_evaluation_scores_every_sample_in_bf16_too(config):
    method = start(config).eval()
    split = [make_batch([make_images(size, size, 16)], make_labels(size)) for size in (5, 3)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        metrics = method.evaluate(lambda name: split, "val")
    assert metrics["samples"] == 8 and 0 <= metrics[method.headline] <= 100


def test_balanced_votes_find_a_tail_that_plain_votes_do_not():
    """90 samples against 10 on two directions that three in five of the tail have to themselves:
    among all neighbours, each direction's class is that of the larger share, not number.
    """
    knn, model = KnnConfig(k=200, temperature=0.5), ModelConfig("resnet32_cifar")
    config = Config(method="rotation", knn=knn, model=model)
    method = Rotation(config, Counts.of(torch.tensor([90, 10])))
    method.backbone = Pooled()
    angles = torch.tensor([0.0, torch.pi / 3])  # exp(similarity / temperature) differs e-fold
    colours = torch.stack([angles.cos(), angles.sin(), torch.zeros(2)], 1)

    def batch(head: tuple[int, int], tail: tuple[int, int]) -> Batch:
        """So many images of the first and of the second direction, of each class."""
        directions = torch.tensor([0, 1, 0, 1]).repeat_interleave(torch.tensor([*head, *tail]))
        labels = torch.tensor([0, 1]).repeat_interleave(torch.tensor([sum(head), sum(tail)]))
        return make_batch([colours[directions][..., None, None].expand(-1, -1, 4, 4)], labels)

    splits = {"train": [batch((80, 10), (4, 6))], "val": [batch((8, 1), (4, 6))]}
    metrics = method.evaluate_knn(splits.__getitem__, "val")
    assert metrics["knn_per_class"] == [100, 0]
    assert metrics["knn_cb_per_class"] == [pytest.approx(100 * 8 / 9, abs=1e-3), 60]
    assert (metrics["knn_balanced"], metrics["samples"]) == (50, 19)
    assert metrics["knn_cb_balanced"] == pytest.approx(50 * 8 / 9 + 30, abs=1e-3)


# several ranks


def gradient_of(config: Config, rank: int, size: int) -> torch.Tensor:
    """This rank's part of the mean gradient at step 3, flat."""
    config = complete(config)
    method = make_method(config, PSEUDO_COUNTS)
    batch = share_of(global_batch(config, 3), config, rank, size)
    loss = method(batch, progress_of(method, 3))["loss"]
    (loss * (len(batch) * size / BATCH)).backward()
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    return torch.cat([parameter.grad.flatten() for parameter in trained]) / size


def mean_gradients(world: World) -> dict[str, torch.Tensor]:
    own = {name: gradient_of(config, world.rank, world.size) for name, config in EXACT.items()}
    return {name: all_reduce_(gradient) for name, gradient in own.items()}


def steps_and_gradients(world: World) -> tuple[dict, dict]:
    methods = {name: trained(complete(config), world) for name, config in SETTINGS.items()}
    return {name: state_of(method) for name, method in methods.items()}, mean_gradients(world)


def check_gradients(gradients: dict[str, torch.Tensor]) -> None:
    for name, config in EXACT.items():
        alone = gradient_of(config, 0, 1)
        assert alone.any()
        torch.testing.assert_close(
            gradients[name], alone, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_two_ranks_stay_equal_and_have_the_gradient_of_one():
    """Also that every weight has its part in the loss, else DDP would wait for its gradient for
    ever.
    """
    (first, gradients), (second, _) = run_on_ranks(2, steps_and_gradients)
    for name, config in SETTINGS.items():
        assert all(value.equal(second[name][key]) for key, value in first[name].items()), name
        before = state_of(start(complete(config)))
        assert any(not value.equal(before[key]) for key, value in first[name].items()), name
    check_gradients(gradients)
    # what does not pass through batch norm is that of one process
    alone = state_of(trained(complete(SETTINGS["proco"]), World()))
    assert first["proco"]["feature_counts"].equal(alone["feature_counts"])


@pytest.mark.slow
def test_three_ranks_have_the_gradient_of_one():
    for gradients in run_on_ranks(3, mean_gradients):
        check_gradients(gradients)
