"""DDP and DeepSpeed train alike: the same losses, gradients, batch-norm statistics and resumption,
on two CPU ranks.
"""

import dataclasses
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lt_train.config.load import load_config
from lt_train.config.schema import (
    METHODS,
    Config,
    EngineConfig,
    LossConfig,
    MocoConfig,
    ModelConfig,
    OptimConfig,
    ViewConfig,
    code_of,
)
from lt_train.data.batch import Batch
from lt_train.distributed import World, rank_share
from lt_train.errors import UserError
from lt_train.methods.base import Counts, Method
from lt_train.models.trainable import restrict
from lt_train.training.engine import NORMS, Engine, make_engine
from lt_train.training.loop import training_steps
from lt_train.training.optim import Schedule
from tests.helpers.batches import make_batch, rows_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.trials import trials

pytestmark = pytest.mark.slow

STEPS = 5
RESUME_AT = 3
SAMPLES = 100  # of an epoch
CLASS_COUNTS = torch.tensor([30, 10, 5])
ENGINES = {
    "ddp": EngineConfig("ddp", precision="fp32"),
    **{f"ZeRO {stage}": EngineConfig("deepspeed", stage, "fp32") for stage in (0, 1, 2)},
}
# a rate at which five steps change the losses and rounding does not
OPTIM = OptimConfig(lr=0.0001, scale_lr=False, schedule="constant", weight_decay=1e-3)
CLIPPED = dataclasses.replace(OPTIM, lr=0.01, clip_grad_norm=0.1)
PLAIN = OptimConfig(lr=1.0, scale_lr=False, schedule="constant", momentum=0.0, weight_decay=0.0)
ADAMW = OptimConfig("adamw", lr=1e-4, head_lr_factor=3, scale_lr=False, schedule="constant")
RUNS = {
    "classifier": ("classifier", OPTIM),
    "clipped": ("classifier", CLIPPED),
    "moco": ("moco", OPTIM),
    "lora": ("classifier", ADAMW),  # two groups of parameters, beside frozen ones
}
ACCUMULATED = {"lora": ADAMW, "all": OPTIM}
RESUMED = ("classifier", "lora")  # loaded and saved again by pairs of engines
# each goes on with what the one before it has saved; or every pair
PAIRS = list(itertools.product(ENGINES, ENGINES))
if trials(len(ENGINES)) < len(PAIRS):
    PAIRS = list(itertools.pairwise([*ENGINES, "ddp"]))
LIMIT = 400  # seconds on a busy machine, for many engines in a row


@dataclass(frozen=True)
class Record:
    """What one rank saw in STEPS steps."""

    losses: list[float]
    statistics: list[torch.Tensor]  # batch norm's running statistics after each step
    alone: list[torch.Tensor]  # those that this rank would have had without the others
    zero_stage: int | None  # of the DeepSpeedEngine; None when the model is not one
    # losses from RESUME_AT on, of a new engine that loaded what was saved there
    resumed: list[float]


def make_config(method: str, engine: str, optim: OptimConfig, global_batch_size: int) -> Config:
    trainable = "lora" if optim is ADAMW else "all"
    return Config(
        method=method,
        global_batch_size=global_batch_size,
        model=ModelConfig("resnet32_cifar", init_from="a finished run", trainable=trainable),
        optim=optim,
        engine=ENGINES[engine],
        view=ViewConfig(size=16),
        moco=MocoConfig(dim=8, queue_size=20, ema_momentum=0.9),
    )


def make_method(config: Config, seed: int = 0) -> Method:
    torch.manual_seed(0 if config.model.trainable == "lora" else seed)  # frozen ones are the same
    method = code_of(METHODS, config.method)(config, Counts.of(CLASS_COUNTS))
    torch.manual_seed(seed)
    restrict(method.encoders(), config)
    method.prepare()
    return method.train()


def global_batch(config: Config, step: int) -> Batch:
    """As many views as the method takes; of one, the first of two."""
    generator, size = torch.Generator().manual_seed(step), config.global_batch_size
    views = [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(2)]
    label = torch.randint(0, 3, (size,), generator=generator)
    return make_batch(views[: METHODS[config.method].num_views], label)


def local_batch(config: Config, world: World, step: int) -> Batch:
    share = rank_share(config.global_batch_size, world.rank, world.size)
    return rows_of(global_batch(config, step), share)


def statistics_of(method: Method) -> torch.Tensor:
    return torch.cat([buffer for name, buffer in method.named_buffers() if "running" in name])


def train(engine: Engine, steps: range):
    batches = (local_batch(engine.config, engine.world, step) for step in steps)
    each = Schedule(engine.config, SAMPLES), steps.start, lambda step: True
    return training_steps(engine, batches, *each)


# on the ranks


def train_everywhere(world: World, folder: Path) -> dict[tuple[str, str], Record]:
    records = {}
    for run, (method, optim) in RUNS.items():
        for engine in ENGINES:
            config = make_config(method, engine, optim, 8)
            records[run, engine] = record(config, world, folder / f"{run} {engine}")
    return records


def record(config: Config, world: World, folder: Path) -> Record:
    folder.mkdir(exist_ok=True)
    engine = make_engine(config, make_method(config), world)
    losses, statistics, alone = [], [], []
    for step in range(STEPS):
        if step == RESUME_AT:
            engine.save(folder)
        lonely = make_method(config)
        lonely.load_state_dict(engine.method.state_dict())
        lonely(local_batch(config, world, step), Schedule(config, SAMPLES).progress(step))
        alone.append(statistics_of(lonely))
        losses += [float(outputs["loss"]) for _, outputs in train(engine, range(step, step + 1))]
        statistics.append(statistics_of(engine.method).clone())
    world.barrier()
    other = make_engine(config, make_method(config, seed=1), world)
    other.load(folder)
    resumed = [float(outputs["loss"]) for _, outputs in train(other, range(RESUME_AT, STEPS))]
    return Record(losses, statistics, alone, zero_stage_of(engine), resumed)


def zero_stage_of(engine: Engine) -> int | None:
    import deepspeed

    is_deepspeed = isinstance(engine.wrapped, deepspeed.DeepSpeedEngine)
    return engine.wrapped.zero_optimization_stage() if is_deepspeed else None


def uneven_gradients(world: World) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients of the classifier on a frozen backbone, seen in one step of plain gradient descent
    at rate 1; and the norms that it puts out.
    """
    gradients = {}
    for name in ENGINES:
        config = make_config("crt", name, PLAIN, 7)
        engine = make_engine(config, make_method(config), world)
        before = copied_weights(engine)
        ((_, outputs),) = train(engine, range(1))
        after = engine.method.classifier.named_parameters()
        gradients[name] = {key: before[key] - value.detach() for key, value in after}
        gradients[name] |= {norm: outputs[norm] for norm in NORMS}
    return gradients


def copied_weights(engine: Engine) -> dict[str, torch.Tensor]:
    named = engine.method.classifier.named_parameters()
    return {key: value.detach().clone() for key, value in named}


def accumulated(world: World) -> dict[tuple[str, str, int], tuple[list[float], torch.Tensor]]:
    """Losses of two steps of seven samples, whose classes have weights, in one part and in three;
    then all that is trained, or batch norm's statistics where they follow.
    """
    found = {}
    for (run, optim), name, parts in itertools.product(ACCUMULATED.items(), ENGINES, (1, 3)):
        config = make_config("classifier", name, optim, 7)
        config = dataclasses.replace(
            config,
            engine=dataclasses.replace(config.engine, accumulate=parts),
            loss=LossConfig(class_weights="inverse"),
        )
        engine = make_engine(config, make_method(config), world)
        losses = [float(outputs["loss"]) for _, outputs in train(engine, range(2))]
        state = torch.cat([weight.detach().flatten() for weight in engine.trained])
        if run == "all":
            state = statistics_of(engine.method)
        found[run, name, parts] = losses, state
    return found


def kinds_in_bf16(world: World) -> dict[str, set[torch.dtype]]:
    """By engine that computes in bf16, of what type all is that it keeps.

    In a process of its own, since accelerate has one precision a process.
    """
    kinds = {}
    for name in ENGINES:
        config = make_config("classifier", name, ADAMW, 8)
        bf16 = dataclasses.replace(config.engine, precision="bf16")
        engine = make_engine(dataclasses.replace(config, engine=bf16), make_method(config), world)
        for _ in train(engine, range(1)):
            pass
        kept = [*engine.method.state_dict().values(), *engine.trained]
        for values in engine._optimizer_state().values():
            kept += values.values()
        kinds[name] = {value.dtype for value in kept if value.is_floating_point()}
    return kinds


def everything(world: World, folder: Path) -> tuple[dict, ...]:
    records = train_everywhere(world, folder)
    return records, uneven_gradients(world), accumulated(world)


def go_on(world: World, folder: Path) -> dict[tuple[str, str], list[float]]:
    """Losses of an engine from RESUME_AT on, with what another has saved there."""
    losses = {}
    for saver, goer in PAIRS:
        engine = make_engine(*untrained(goer), world)
        engine.load(folder / f"classifier {saver}")
        outputs = [outputs for _, outputs in train(engine, range(RESUME_AT, STEPS))]
        losses[saver, goer] = [float(output["loss"]) for output in outputs]
    return losses


def save_again(world: World, folder: Path, target: Path) -> None:
    """What two ranks saved with one engine, saved by another one on this number of ranks."""
    for run, (saver, goer) in itertools.product(RESUMED, PAIRS):
        engine = make_engine(*untrained(goer, run), world)
        engine.load(folder / f"{run} {saver}")
        again = target / f"{world.size} {run} {saver} {goer}"
        again.mkdir(exist_ok=True, parents=True)
        engine.save(again)


def untrained(engine: str, run: str = "classifier") -> tuple[Config, Method]:
    config = make_config(RUNS[run][0], engine, RUNS[run][1], 8)
    return config, make_method(config, seed=1)


def refusals(world: World, folder: Path) -> dict[str, str]:
    """By engine, why it does not go on with the files in ``folder``."""
    found = {}
    for name in ENGINES:
        engine = make_engine(*untrained(name), world)
        for file in folder.iterdir():
            with pytest.raises(UserError) as caught:
                engine.load(file)
            found[file.name, name] = str(caught.value)
    return found


# here


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def on_ranks(folder) -> list[tuple[dict, ...]]:
    return run_on_ranks(2, everything, folder, timeout=LIMIT)


@pytest.fixture
def records(on_ranks, run, engine) -> list[Record]:
    return [recorded[run, engine] for recorded, *_ in on_ranks]


every_run = pytest.mark.parametrize("run", RUNS)
every_engine = pytest.mark.parametrize("engine", ENGINES)


@every_run
@every_engine
def test_losses_are_those_of_ddp(on_ranks, records, run, engine):
    for (recorded, *_), record in zip(on_ranks, records):
        assert record.losses == pytest.approx(recorded[run, "ddp"].losses, rel=1e-5)
        assert len(set(record.losses)) == STEPS


@every_run
@every_engine
def test_model_is_wrapped_by_the_engine_that_was_asked_for(records, engine):
    zero_stage = None if engine == "ddp" else ENGINES[engine].zero_stage
    assert [record.zero_stage for record in records] == [zero_stage] * 2


@pytest.mark.parametrize("run", [run for run in RUNS if run != "lora"])
@every_engine
def test_statistics_are_the_mean_over_ranks_after_every_step(records):
    first, second = records
    for step in range(STEPS):
        assert first.statistics[step].equal(second.statistics[step])
        assert not first.alone[step].allclose(second.alone[step])
        mean = (first.alone[step] + second.alone[step]) / 2
        torch.testing.assert_close(first.statistics[step], mean)


@pytest.mark.parametrize("run", ["lora"])
@every_engine
def test_frozen_statistics_are_those_of_the_start(records):
    start = statistics_of(untrained("ddp", "lora")[1])
    assert all(seen.equal(start) for record in records for seen in record.statistics)


@every_run
@every_engine
def test_resumed_engine_repeats_the_losses(records):
    for record in records:
        assert record.resumed == record.losses[RESUME_AT:]


@every_engine
def test_uneven_batches_give_the_gradient_of_the_global_batch(on_ranks, engine):
    """Seven samples on two ranks, three and four."""
    config = make_config("crt", "ddp", PLAIN, 7)
    method, batch = make_method(config), global_batch(config, 0)
    with torch.no_grad():
        features = method.backbone(batch.views[0])
    errors = torch.softmax(method.classifier(features), 1) - F.one_hot(batch.label, 3)
    expected = {"weight": errors.T @ features / 7, "bias": errors.mean(0)}
    weights = [getattr(method.classifier, name) - gradient for name, gradient in expected.items()]
    for name, tensors in zip(NORMS, ([*expected.values()], weights)):
        expected[name] = torch.cat([tensor.flatten() for tensor in tensors]).norm()
    for _, gradients, *_ in on_ranks:
        for name, gradient in gradients[engine].items():
            torch.testing.assert_close(gradient, expected[name].detach(), rtol=1e-5, atol=1e-6)


@every_engine
def test_parts_of_a_batch_add_up_to_it(on_ranks, engine):
    for *_, found in on_ranks:
        whole, weights = found["lora", "ddp", 1]
        losses, trained = found["lora", engine, 3]
        assert losses == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(trained, weights, rtol=1e-4, atol=1e-6)


@every_engine
def test_statistics_of_parts_are_shared_too(on_ranks, engine):
    first, second = (found for *_, found in on_ranks)
    of_parts, of_whole = (first["all", engine, parts][1] for parts in (3, 1))
    assert of_parts.equal(second["all", engine, 3][1])
    assert not of_parts.allclose(of_whole)  # which followed once a step, not three times


def test_what_is_kept_in_bf16_is_float32():
    (kinds,) = run_on_ranks(1, kinds_in_bf16)
    assert kinds == dict.fromkeys(ENGINES, {torch.float32})


def test_an_engine_goes_on_with_what_another_saved(on_ranks, folder):
    for (recorded, *_), losses in zip(on_ranks, run_on_ranks(2, go_on, folder, timeout=LIMIT)):
        expected = recorded["classifier", "ddp"].losses[RESUME_AT:]
        for pair in losses:
            assert losses[pair] == pytest.approx(expected, rel=1e-5), pair


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_is_the_same_on_any_number_of_ranks(on_ranks, folder, tmp_path, ranks):
    run_on_ranks(ranks, save_again, folder, tmp_path, timeout=LIMIT)
    for run, (saver, goer) in itertools.product(RESUMED, PAIRS):
        before = flat_state(folder / f"{run} {saver}")
        after = flat_state(tmp_path / f"{ranks} {run} {saver} {goer}")
        assert before.keys() == after.keys()
        same = [name for name, value in before.items() if after[name].equal(value)]
        assert len(same) == len(before), (run, saver, goer)
        kept = {"classifier": "momentum_buffer", "lora": "exp_avg_sq"}[run]
        assert any(kept in name for name in before)


@pytest.mark.parametrize("run", RESUMED)
@every_engine
def test_engines_save_the_same(on_ranks, folder, run, engine):
    """ZeRO's parts are put together in the order of DDP's parameters."""
    expected = flat_state(folder / f"{run} ddp")
    saved = flat_state(folder / f"{run} {engine}")
    assert saved.keys() == expected.keys()
    for name, value in saved.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def flat_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in a checkpoint, by a name of its own."""
    assert [path.name for path in folder.iterdir()] == ["state.pt"]
    saved = torch.load(folder / "state.pt", weights_only=True)
    flat = dict(saved["method"])
    for number, values in saved["optimizer"]["state"].items():
        flat |= {f"{number} {name}": value for name, value in values.items()}
    return flat


class Command:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_does_not_fit_is_refused_on_every_rank_and_nothing_is_run(tmp_path, ranks):
    config, method = untrained("ddp")
    state, trap = method.state_dict(), tmp_path / "trap"
    momenta = {number: torch.zeros(3) for number, _ in enumerate(method.parameters())}
    contents = {
        "stranger": {"method": Command(f"touch {trap}")},
        "earlier": {"method": state},
        "longer": {"method": state, "optimizer": {"state": {10**6: {}}}},
        "other": {"method": state, "optimizer": {"state": {0: {"momentum_buffer": momenta[0]}}}},
        "list": {"method": state, "optimizer": []},
        "half": {"method": dict(list(state.items())[1:]), "optimizer": {"state": {}}},
    }
    said = {
        "stranger": "is refused: it holds more than tensors",
        "earlier": "was saved with DeepSpeed by an earlier version",
        "longer": "parameters are trained",
        "other": "momentum_buffer of parameter 0 is of (3,)",
        "list": "does not fit this config",
        "half": "does not fit this config",
    }
    for name, content in contents.items():
        (tmp_path / "saved" / name).mkdir(parents=True)
        torch.save(content, tmp_path / "saved" / name / "state.pt")
    for found in run_on_ranks(ranks, refusals, tmp_path / "saved"):
        assert len(found) == len(contents) * len(ENGINES)
        for (name, engine), message in found.items():
            assert said[name] in message and "\n" not in message.split("(")[0], (name, engine)
    assert not trap.exists()


def without_a_launcher(world: World) -> dict[str, list[float]]:
    """Losses of a process that no launcher started, by one engine after the other."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        del os.environ[name]
    losses = {}
    for name in ("ZeRO 1", "ddp"):
        config = make_config("classifier", name, OPTIM, 8)
        engine = make_engine(config, make_method(config), World())
        losses[name] = [outputs["loss"].item() for _, outputs in train(engine, range(2))]
    return losses


def test_a_single_process_needs_no_launcher():
    (losses,) = run_on_ranks(1, without_a_launcher)
    assert losses["ZeRO 1"] == pytest.approx(losses["ddp"], rel=1e-5)


def test_settings_are_the_config_s_after_resuming(tmp_path):
    """As resume.allow_changes promises: a checkpoint brings the momenta, not the momentum."""
    config = make_config("classifier", "ddp", OPTIM, 8)
    engine = make_engine(config, make_method(config), World())
    list(train(engine, range(1)))
    engine.save(tmp_path)
    changed = dataclasses.replace(OPTIM, momentum=0.5, weight_decay=0.25)
    config = make_config("classifier", "ddp", changed, 8)
    other = make_engine(config, make_method(config), World())
    other.load(tmp_path)
    (group,) = other.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)
    assert len(other.optimizer.state) == len(list(other.method.parameters()))


def test_zero_stage_3_is_refused():
    with pytest.raises(UserError, match="zero_stage=3 is not supported"):
        load_config("classifier_demo", ["engine.name=deepspeed", "engine.zero_stage=3"])
