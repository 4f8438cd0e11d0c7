"""Captured steps: what can be shown of them without a GPU, with operations that a CPU records."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from lt_train.config.schema import (
    ClassifierConfig,
    Config,
    EngineConfig,
    FixmatchConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ProcoConfig,
    RotationConfig,
    SemiConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.data.batch import Batch
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.methods.base import Counts, Progress
from lt_train.methods.classifier import Classifier
from lt_train.models.split_batch_norm import batch_norms
from lt_train.training import loop
from lt_train.training.engine import Engine, make_engine
from lt_train.training.optim import Schedule, hold_lr_on
from lt_train.training.step_graphs import EAGER, CapturedSteps, captures_steps
from tests.helpers.batches import make_batch
from tests.helpers.recorded_steps import WAITING, Recorder, record
from tests.helpers.small_methods import COUNTS, make_images, new_method, state_of

STEPS, BATCH, SAMPLES = 14, 8, 56  # two epochs
# rates that are the same in float32; a half from the second epoch on
OPTIM = OptimConfig(
    lr=0.125, scale_lr=False, schedule="step", step_epochs=(1.0,), step_factors=(0.5,)
)
DRW = LossConfig("ldam", class_weights="effective_number", weights_from_epoch=1.0)
POOL = UnlabeledConfig("pool", share=0.5)
# and how many phases two epochs have
CAPTURED = {
    "classifier": (Config(), 1),
    "classifier, deferred weights": (Config(loss=DRW, optim=replace(OPTIM, nesterov=True)), 2),
    "AdamW, clipped": (Config(optim=replace(OPTIM, name="adamw", clip_grad_norm=0.5)), 1),
    "in parts": (Config(engine=EngineConfig(accumulate=2)), 1),
    "crt": (Config(method="crt"), 1),
    "lws": (Config(method="lws"), 1),
    "experts": (Config(method="experts"), 1),
    "sourcing": (Config(method="sourcing", unlabeled=POOL), 1),
    "rotation": (Config(method="rotation", rotation=RotationConfig(all_four=True)), 1),
    "fixmatch": (
        Config(method="fixmatch", fixmatch=FixmatchConfig(threshold=0.4), unlabeled=POOL),
        1,
    ),
    "proco": (Config(method="proco", proco=ProcoConfig(dim=16)), 1),
}


def complete(config: Config) -> Config:
    optim = OPTIM if config.optim == OptimConfig() else config.optim
    return replace(
        config,
        global_batch_size=BATCH,
        model=ModelConfig("resnet32_cifar", init_from="a finished run"),
        engine=replace(config.engine, precision="fp32"),
        optim=optim,
        view=ViewConfig(size=16),
    )


def batch_of(config: Config, step: int) -> Batch:
    """Of as many views as any method takes; a second half of another set where there is one."""
    views = [make_images(BATCH, 10 * step + view, 16) for view in range(3)]
    count = {"proco": 3, "fixmatch": 2}.get(config.method, 1)
    labels = torch.arange(BATCH).roll(step) % 3
    if config.unlabeled.root:
        labels[BATCH // 2 :] = -1
    return make_batch(views[:count], labels)


def trained(config: Config) -> tuple[Engine, list[dict[str, float]]]:
    """After two epochs, and what every step has put out."""
    engine = make_engine(config, new_method(config), World())
    return engine, taken(engine)


def taken(engine: Engine) -> list[dict[str, float]]:
    config = engine.config
    batches = (batch_of(config, step) for step in range(STEPS))
    each = Schedule(config, SAMPLES), 0, lambda step: True
    steps = list(loop.training_steps(engine, batches, *each))
    return [{name: float(value) for name, value in outputs.items()} for _, outputs in steps]


class WithOtherForward(Classifier):
    """Of a user, who has not heard of phases."""

    def forward(self, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        return super().forward(batch, replace(progress, epoch=progress.step % 2))


@pytest.fixture
def captured(monkeypatch):
    """Function: the same with steps captured, and how often."""

    def run(config: Config) -> tuple[Engine, list[dict[str, float]], int]:
        captures = []

        def counted(function):
            captures.append(function)
            return record(function)

        monkeypatch.setattr(loop, "CapturedSteps", partial(CapturedSteps, capture=counted))
        engine = make_engine(config, new_method(config), World())
        engine.captures_steps = True
        hold_lr_on(engine.optimizer, torch.device("cpu"))
        return engine, taken(engine), len(captures)

    return run


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_steps_are_those_of_the_loop(name, captured):
    """Losses and weights bit for bit, over a change of the rate and of phases."""
    config, phases = complete(CAPTURED[name][0]), CAPTURED[name][1]
    plain, expected = trained(config)
    engine, found, captures = captured(config)
    assert captures == phases and phases * (EAGER + 1) < STEPS
    assert found == expected
    state = state_of(engine.method)
    assert [
        key for key, value in state_of(plain.method).items() if not value.equal(state[key])
    ] == []


def test_a_replay_runs_none_of_the_methods_code(captured, monkeypatch):
    config, calls = complete(Config()), []
    method_class = type(new_method(config))
    forward = method_class.forward
    monkeypatch.setattr(
        method_class, "forward", lambda self, *a: calls.append(1) or forward(self, *a)
    )
    captured(config)
    assert len(calls) == EAGER + 1  # and once to record


def test_what_is_captured_outlasts_a_round_of_the_loop(captured, monkeypatch):
    engine, _, _ = captured(complete(Config()))
    before = engine.captured
    monkeypatch.setattr(type(engine), "forward", None)
    taken(engine)
    assert engine.captured is before


@pytest.mark.parametrize(
    "config",
    [
        Config(method="moco"),
        Config(method="rotation"),
        Config(classifier=ClassifierConfig(mixup_alpha=0.5)),
        Config(classifier=ClassifierConfig(cutmix_alpha=0.5)),
        Config(method="semi", semi=SemiConfig(0.5), unlabeled=POOL),
    ],
)
def test_steps_that_the_host_draws_for_have_no_phase(config):
    assert new_method(complete(config)).phase(Progress(0, 0.0)) is None


@pytest.mark.parametrize("name", CAPTURED)
def test_no_step_waits_for_the_device(name):
    config = complete(CAPTURED[name][0])
    engine = make_engine(config, new_method(config), World())
    steps = loop.training_steps(
        engine, (batch_of(config, step) for step in range(2)), Schedule(config, SAMPLES), 0
    )
    with Recorder() as recorder:
        list(steps)
    assert len(recorder.calls) > 50 and not WAITING & set(recorder.names)


def test_batch_norms_count_their_steps_in_one_operation():
    config = complete(Config())
    engine = make_engine(config, new_method(config), World())
    batches = [batch_of(config, step) for step in range(2)]
    with Recorder() as recorder:
        list(loop.training_steps(engine, batches, Schedule(config, SAMPLES), 0))
    norms = batch_norms(engine.method).values()
    assert len(norms) == 31 and {int(norm.num_batches_tracked) for norm in norms} == {2}
    counted = {id(norm.num_batches_tracked) for norm in norms}
    calls = [args for _, args, _, _ in recorder.calls if id(args[0]) in counted]
    assert not calls and recorder.names.count("_foreach_add_") == 2


def test_where_steps_are_captured(monkeypatch):
    gpu = World(device=torch.device("cuda", 0))

    def is_captured(config: Config, world: World = gpu, **engine) -> bool:
        config = replace(complete(config), engine=EngineConfig(precision="fp32", **engine))
        return captures_steps(config, new_method(config), world)

    assert is_captured(Config()) and is_captured(Config(), cuda_graph="true")
    assert not is_captured(Config(), World()) and not is_captured(Config(), cuda_graph="false")
    assert not is_captured(Config(method="moco"))
    assert not is_captured(Config(), replace(gpu, size=2)) and not is_captured(
        Config(), compile=True
    )
    assert not captures_steps(
        complete(Config()), WithOtherForward(complete(Config()), Counts.of(COUNTS)), gpu
    )
    large = replace(complete(Config()), view=ViewConfig(size=224))
    assert not captures_steps(large, new_method(large), gpu)
    for config, world, engine, reason in (
        (Config(), World(), {}, "there is no GPU"),
        (Config(), replace(gpu, size=2), {}, "2 ranks exchange gradients"),
        (Config(), gpu, {"compile": True}, "without compile"),
        (Config(optim=OptimConfig("lars")), gpu, {}, "optim.name=lars"),
        (Config(method="moco"), gpu, {}, "method moco need numbers that the host draws"),
    ):
        with pytest.raises(UserError, match=f"engine.cuda_graph=true: .*{reason}"):
            is_captured(config, world, cuda_graph="true", **engine)
