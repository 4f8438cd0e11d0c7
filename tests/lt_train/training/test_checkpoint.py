"""Checkpoints that survive damage, the learning-rate schedule and the optimizer."""

import errno
import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from lt_train.config.schema import Config, ModelConfig, OptimConfig
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.methods import METHODS
from lt_train.training.checkpoint import CheckpointStore
from lt_train.training.optim import Schedule, make_optimizer


def write_state(step: int):
    """A writer of two files, one of them in a folder, as DeepSpeed has them."""

    def write(folder: Path) -> None:
        torch.save({"step": step, "weights": torch.full((50,), float(step))}, folder / "state.pt")
        (folder / "parts").mkdir()
        (folder / "parts" / "rank_0").write_bytes(bytes([step]) * 100)

    return write


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    """Holds steps 1, 2 and 3."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=3, world=World())
    for step in (1, 2, 3):
        store.save(step, {"seconds": 10.0 * step}, write_state(step))
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path, how: str) -> None:
    state, part, meta = path / "state.pt", path / "parts" / "rank_0", path / "meta.json"
    if how == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif how == "one bit flipped":
        content = bytearray(part.read_bytes())
        content[50] ^= 1
        part.write_bytes(content)
    elif how == "state missing":
        state.unlink()
    elif how == "meta.json missing":
        meta.unlink()
    elif how == "meta.json truncated":
        os.truncate(meta, meta.stat().st_size // 2)
    elif how == "meta.json empty":
        os.truncate(meta, 0)
    elif how == "meta.json with a digit of the step flipped":
        step = json.loads(meta.read_text())["step"]
        meta.write_text(meta.read_text().replace(f'"step": {step}', f'"step": {step ^ 1}'))


DAMAGES = [
    "truncated",
    "one bit flipped",
    "state missing",
    "meta.json missing",
    "meta.json truncated",
    "meta.json empty",
    "meta.json with a digit of the step flipped",
]


# checkpoints


def test_newest_is_what_was_saved_last(store):
    newest = store.newest()
    assert (newest.step, newest.meta["seconds"]) == (3, 30.0)
    state = torch.load(newest.path / "state.pt", weights_only=True)
    assert state["step"] == 3 and state["weights"].eq(3).all()


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_one_before(store, caplog, how):
    damage(store.folder / "step-00000003", how)
    with caplog.at_level(logging.WARNING):
        assert store.newest().step == 2
    assert "step-00000003 is damaged" in caplog.text


def test_nothing_valid_is_nothing(store, tmp_path, caplog):
    assert CheckpointStore(tmp_path / "never written", 2, World()).newest() is None
    for path in store.folder.iterdir():
        damage(path, "truncated")
    assert store.newest() is None
    assert caplog.text.count("is damaged") == 3


def test_half_written_checkpoint_is_never_taken(store):
    """What SIGKILL in the middle of saving leaves."""
    (store.folder / ".step-00000004.partial").mkdir()
    write_state(4)(store.folder / ".step-00000004.partial")
    assert store.newest().step == 3
    store.save(4, {}, write_state(4))
    assert store.newest().step == 4
    assert names(store.folder) == [f"step-{step:08d}" for step in (2, 3, 4)]


def test_step_is_saved_again_over_a_damaged_one(store):
    damage(store.folder / "step-00000003", "truncated")
    store.save(3, {"seconds": 31.0}, write_state(3))
    assert (store.newest().step, store.newest().meta["seconds"]) == (3, 31.0)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_prune_keeps_the_newest(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep, World())
    steps = [5, 10, 100, 999, 12345]
    for step in steps:
        store.save(step, {}, lambda folder: (folder / "state").write_bytes(b"x"))
    assert names(tmp_path) == [f"step-{step:08d}" for step in steps[-keep:]]


def test_saving_an_earlier_step_drops_the_abandoned_later_ones(store):
    """A run started anew in the same folder must not be pruned in favour of the old one, nor resume
    from it.
    """
    (store.folder / ".step-00000009.partial").mkdir()
    store.save(2, {}, write_state(20))
    assert names(store.folder) == ["step-00000001", "step-00000002"]
    assert store.newest().step == 2


def no_space(folder: Path) -> None:
    write_state(4)(folder)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_save_to_full_device(folder: Path) -> None:
    torch.save({"weights": torch.zeros(10**6)}, Path("/dev/full"))


@pytest.mark.parametrize(
    "write", [no_space, torch_save_to_full_device], ids=["OSError", "torch.save"]
)
def test_full_disk_leaves_the_older_checkpoint(store, write):
    with pytest.raises(UserError, match="cannot write the checkpoint .*step-00000004"):
        store.save(4, {}, write)
    assert store.newest().step == 3


# schedule


def make_schedule(epochs: float = 10, **optim) -> Schedule:
    """30 steps an epoch."""
    return Schedule(
        Config(
            epochs=epochs,
            global_batch_size=64,
            optim=OptimConfig(**{"lr": 0.4, "scale_lr": False, **optim}),
        ),
        1920,
    )


def torch_rates(make_scheduler, steps: int) -> list[float]:
    optimizer = SGD([torch.zeros(1)], lr=0.4)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_equals_torch():
    schedule = make_schedule()
    assert schedule.total_steps == 300
    expected = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 300), 300)
    assert [schedule.lr(step) for step in range(300)] == pytest.approx(expected, rel=1e-6)
    assert schedule.lr(150) == pytest.approx(0.2)
    assert schedule.lr(300) == pytest.approx(0.0)


def test_steps_equal_torch():
    schedule = make_schedule(schedule="step", step_epochs=(4, 8), step_factors=(0.1, 0.01))
    expected = torch_rates(
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [120, 240], 0.1), 300
    )
    assert [schedule.lr(step) for step in range(300)] == pytest.approx(expected, rel=1e-6)


def test_constant_stays():
    assert {make_schedule(schedule="constant").lr(step) for step in range(300)} == {0.4}


@pytest.mark.parametrize("name", ["cosine", "constant"])
def test_warm_up_is_linear_and_then_the_schedule_goes_on(name):
    """After 2 of 10 epochs the other 8 follow a schedule of their own length, from the full rate."""
    warm, rest = (
        make_schedule(schedule=name, warmup_epochs=2),
        make_schedule(schedule=name, epochs=8),
    )
    assert [warm.lr(step) for step in range(60)] == pytest.approx(
        [0.4 * (step + 1) / 61 for step in range(60)]
    )
    assert [warm.lr(step) for step in range(60, 300)] == pytest.approx(
        [rest.lr(step) for step in range(240)]
    )


@pytest.mark.parametrize(("batch_size", "expected"), [(256, 0.1), (64, 0.025), (1024, 0.4)])
def test_rate_scales_linearly_with_the_batch(batch_size, expected):
    config = Config(
        global_batch_size=batch_size,
        optim=OptimConfig(lr=0.1, lr_batch_size=256, schedule="constant"),
    )
    assert Schedule(config, 10_000).lr(0) == pytest.approx(expected)


def test_epochs_need_not_be_whole_batches():
    schedule = Schedule(Config(epochs=3, global_batch_size=64), 100)
    assert schedule.total_steps == round(300 / 64)
    assert schedule.epoch(25) == pytest.approx(16.0)


# optimizer


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("classifier", ("backbone", "classifier")),
        ("decoupled", ("classifier",)),
        ("moco", ("query_encoder",)),
    ],
)
def test_optimizer_covers_exactly_the_trained_parameters(method, trained):
    module = METHODS[method](
        Config(method=method, model=ModelConfig("resnet32_cifar", "a run")), torch.tensor([3, 2])
    )
    groups = make_optimizer(OptimConfig(), module).param_groups
    covered = [id(parameter) for group in groups for parameter in group["params"]]
    expected = [
        id(parameter)
        for name, parameter in module.named_parameters()
        if name.split(".")[0] in trained
    ]
    assert covered == expected


@pytest.mark.parametrize("nesterov", [False, True])
def test_step_is_sgd_with_momentum_and_weight_decay(nesterov):
    """Written out: d = g + wd * w; v = m * v + d; w -= lr * (d + m * v if Nesterov else v)."""
    layer = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(
        OptimConfig(lr=0.3, momentum=0.8, weight_decay=0.05, nesterov=nesterov), layer
    )
    expected, velocity = layer.weight.detach().clone(), torch.zeros(2, 3)
    for step in range(4):
        gradient = torch.full((2, 3), math.sin(step + 1))
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(2)
        optimizer.step()
        direction = gradient + 0.05 * expected
        velocity = 0.8 * velocity + direction
        expected = expected - 0.3 * (direction + 0.8 * velocity if nesterov else velocity)
    torch.testing.assert_close(layer.weight.detach(), expected)
