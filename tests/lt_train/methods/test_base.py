"""Every method takes steps: what should train does and nothing else, alone, in bf16, restored, and
on several ranks.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lt_train.config.schema import (
    ClassifierConfig,
    Config,
    DecoupledConfig,
    EngineConfig,
    FixmatchConfig,
    LossConfig,
    ModelConfig,
    ProcoConfig,
    RotationConfig,
    SemiConfig,
    UnlabeledConfig,
    labeled_batch,
)
from lt_train.data.order import batch_slice
from lt_train.distributed import World, all_reduce_
from lt_train.methods import METHODS
from lt_train.methods.base import Method
from lt_train.training.engine import make_engine
from tests.helpers.ranks import one_thread, run_on_ranks  # noqa: F401
from tests.helpers.small_methods import COUNTS, make_images, make_labels, make_method

PSEUDO_COUNTS = torch.tensor([4, 6, 20])
BATCH = 11  # divided by neither 2 nor 3
POOL = UnlabeledConfig("pool", share=0.6)
LABELED_POOL = UnlabeledConfig("pool", share=None, label_column="pseudo_label")
DRW = LossConfig(
    "ldam", class_weights="effective_number", weights_from_epoch=0.1
)  # from the second batch on
SETTINGS = {
    "classifier": Config(
        loss=DRW, classifier=ClassifierConfig("cosine", mixup_alpha=1.0, cutmix_alpha=1.0)
    ),
    "crt": Config(method="decoupled", classifier=ClassifierConfig("cosine")),
    "lws": Config(method="decoupled", decoupled=DecoupledConfig("lws")),
    "experts": Config(method="experts"),
    "proco": Config(method="proco", loss=LossConfig("balanced_softmax"), proco=ProcoConfig(dim=16)),
    "semi": Config(
        method="semi",
        loss=LossConfig(class_weights="inverse"),
        semi=SemiConfig(2.0),
        unlabeled=LABELED_POOL,
    ),
    "fixmatch": Config(method="fixmatch", fixmatch=FixmatchConfig(threshold=0.4), unlabeled=POOL),
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


def new_method(config: Config, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return METHODS[config.method](config, COUNTS, PSEUDO_COUNTS)


def global_batch(config: Config, step: int) -> dict:
    """Labeled samples first, as the loaders have them; FixMatch's others have no label."""
    ids = torch.arange(BATCH)
    other = ids >= labeled_batch(
        replace(config, unlabeled=replace(config.unlabeled, share=config.unlabeled.share or 0.5))
    )
    labels = make_labels(BATCH).roll(step)
    return {
        "views": [
            make_images(BATCH, 10 * step + view, 16)
            for view in range(METHODS[config.method].num_views)
        ],
        "label": labels.where(~other, -1) if config.method == "fixmatch" else labels,
        "sample_id": torch.where(other, ids + int(COUNTS.sum()), ids),
    }


def share_of(batch: dict, config: Config, rank: int, size: int) -> dict:
    """What the rank's loader yields: two loaders' batches one after the other, the second one's
    ranks from the other end.
    """
    labeled = labeled_batch(config)
    rows = np.concatenate(
        [
            batch_slice(0, labeled, rank, size),
            labeled + batch_slice(0, BATCH - labeled, size - 1 - rank, size),
        ]
    )
    return {
        "views": [view[rows] for view in batch["views"]],
        "label": batch["label"][rows],
        "sample_id": batch["sample_id"][rows],
    }


def state_of(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def trained(config: Config, world: World, steps: int = 2) -> Method:
    """After some steps as the loop takes them."""
    method = new_method(config)
    engine = make_engine(config, method, world)
    for step in range(steps):
        batch = share_of(global_batch(config, step), config, world.rank, world.size)
        loss = engine.forward(batch, step)["loss"]
        engine.backward(loss * (len(batch["label"]) * world.size / BATCH))
        engine.step(0.1)
    return method


# one process


def test_two_steps_change_what_trains_and_nothing_else(config):
    method = trained(config, World())
    before, after = state_of(new_method(config)), state_of(method)
    changed = {name for name in before if not before[name].equal(after[name])}
    frozen = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    buffers = {name for name, _ in method.named_buffers()} & before.keys()
    in_backbone = {name for name in buffers if name.startswith("backbone.")}
    assert changed == before.keys() - frozen - (
        in_backbone if config.method == "decoupled" else set()
    )
    assert bool(frozen) == (config.method == "decoupled")


def test_every_trained_weight_gets_a_gradient(config):
    method = new_method(config).train()
    method(global_batch(config, 1), 1)["loss"].backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for parameter in method.parameters()
        if parameter.requires_grad
    )


def test_a_restored_stage_goes_on_alike(config):
    method, restored = trained(config, World()), new_method(config, seed=1)
    restored.to(memory_format=torch.channels_last).load_state_dict(method.state_dict())
    batch = global_batch(config, 2)
    expected, actual = (each.train()(batch, 2) for each in (method, restored))
    assert expected.keys() == actual.keys() and all(
        value.equal(actual[name]) for name, value in expected.items()
    )


def test_a_step_in_bf16_has_nearly_the_same_loss_in_float32(config):
    exact = new_method(config).train()(global_batch(config, 1), 1)
    method = new_method(config).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = method(global_batch(config, 1), 1)
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in outputs.values())
    assert float(outputs["loss"].detach()) == pytest.approx(float(exact["loss"].detach()), rel=0.15)
    outputs["loss"].backward()
    assert all(
        parameter.grad.isfinite().all()
        for parameter in method.parameters()
        if parameter.grad is not None
    )


def test_evaluation_scores_every_sample_in_bf16_too(config):
    method = new_method(config).eval()
    split = [
        {"views": [make_images(size, size, 16)], "label": make_labels(size)} for size in (5, 3)
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        metrics = method.evaluate(lambda name: split, "val")
    assert metrics["samples"] == 8 and 0 <= metrics[method.headline] <= 100


# several ranks


def gradient_of(config: Config, rank: int, size: int) -> torch.Tensor:
    """This rank's part of the mean gradient at step 3, flat."""
    method = make_method(complete(config), PSEUDO_COUNTS)
    batch = share_of(global_batch(config, 3), complete(config), rank, size)
    (method(batch, 3)["loss"] * (len(batch["label"]) * size / BATCH)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in method.parameters()]) / size


def mean_gradients(world: World) -> dict[str, torch.Tensor]:
    return {
        name: all_reduce_(gradient_of(config, world.rank, world.size))
        for name, config in EXACT.items()
    }


def steps_and_gradients(world: World) -> tuple[dict, dict]:
    return {
        name: state_of(trained(complete(config), world)) for name, config in SETTINGS.items()
    }, mean_gradients(world)


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
        start = state_of(new_method(complete(config)))
        assert any(not value.equal(start[key]) for key, value in first[name].items()), name
    check_gradients(gradients)
    # what does not pass through batch norm is that of one process
    alone = state_of(trained(complete(SETTINGS["proco"]), World()))
    assert first["proco"]["feature_counts"].equal(alone["feature_counts"])


@pytest.mark.slow
def test_three_ranks_have_the_gradient_of_one():
    for gradients in run_on_ranks(3, mean_gradients):
        check_gradients(gradients)
