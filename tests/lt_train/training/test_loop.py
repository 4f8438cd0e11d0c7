"""What the loop's window makes of the steps of all ranks."""

from dataclasses import replace

import pytest
import torch

from lt_train.config.schema import Config, EngineConfig, ModelConfig, OptimConfig
from lt_train.distributed import World
from lt_train.training import loop
from lt_train.training.engine import NORMS, make_engine
from lt_train.training.loop import Timed, Window
from lt_train.training.optim import Schedule
from tests.helpers.ranks import one_thread, run_on_ranks  # noqa: F401
from tests.helpers.small_methods import new_method, progress_of, random_batch

CONFIG = Config(
    global_batch_size=6, model=ModelConfig("resnet32_cifar"), engine=EngineConfig(precision="fp32")
)


def outputs(loss: float, top1: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "top1": torch.tensor(top1)}


def test_a_window_has_every_loss_and_the_means_of_the_rest():
    window = Window(World(), global_batch_size=8, batch_share=1.0)
    for step in ((1.0, 50.0), (2.0, 70.0), (4.5, 60.0)):
        window.add(outputs(*step))
    window.started -= 2.0  # as if it had been opened two seconds ago
    summary = window.close(waited=0.5, bad_samples=0, save=False)
    assert summary.losses == [1.0, 2.0, 4.5] and summary.loss == 2.5
    assert summary.means == {"top1": 60.0}
    assert summary.images_per_s == pytest.approx(3 * 8 / 2.0, rel=0.05)
    assert summary.data_wait == pytest.approx(0.25, rel=0.05)
    assert not summary.bad_samples and not summary.save


def test_norms_are_those_of_the_last_step():
    """Of the others they are not known, unless steps are captured."""
    window = Window(World(), global_batch_size=8, batch_share=1.0)
    window.add({**outputs(1.0, 50.0), "grad_norm": torch.tensor(9.0)})
    window.add(outputs(1.0, 70.0))
    window.add({**outputs(1.0, 60.0), "grad_norm": torch.tensor(3.0)})
    assert window.close(0.0, 0, False).means == {"top1": 60.0, "grad_norm": 3.0}
    window.add(outputs(1.0, 60.0))
    assert window.close(0.0, 0, False).means == {"top1": 60.0}


def test_norms_are_taken_at_the_steps_that_are_measured_and_before_clipping():
    config = replace(CONFIG, optim=OptimConfig(lr=0.0, clip_grad_norm=0.01))
    engine = make_engine(config, new_method(config), World())
    steps = loop.training_steps(
        engine, [random_batch(0)] * 3, Schedule(config, 90), 0, lambda step: step == 2
    )
    found = [outputs for _, outputs in steps]
    assert [outputs.keys() & {*NORMS} for outputs in found] == [set(), {*NORMS}, set()]
    method = new_method(config)
    method(random_batch(0), progress_of(method, 0))["loss"].backward()
    for name, tensors in (
        ("grad_norm", [parameter.grad for parameter in method.parameters()]),
        ("weight_norm", [parameter.detach() for parameter in method.parameters()]),
    ):
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        assert float(found[1][name]) == pytest.approx(float(flat.norm()), rel=1e-4)
    assert float(found[1]["grad_norm"]) > 0.1


def test_the_next_window_begins_empty_when_it_is_opened():
    """What lies between two windows, an evaluation or a save, is in neither."""
    window = Window(World(), global_batch_size=8, batch_share=1.0)
    window.add(outputs(1.0, 50.0))
    window.close(waited=3.0, bad_samples=1, save=True)
    window.started -= 1000.0  # an evaluation
    window.open(waited=3.0)
    window.started -= 2.0  # a step
    window.add(outputs(7.0, 10.0))
    summary = window.close(waited=3.0, bad_samples=0, save=False)
    assert (summary.losses, summary.means, summary.data_wait) == ([7.0], {"top1": 10.0}, 0.0)
    assert summary.images_per_s == pytest.approx(8 / 2.0, rel=0.05)


def test_a_loss_that_is_not_finite_stays_in_its_place():
    window = Window(World(), global_batch_size=8, batch_share=1.0)
    for loss in (1.0, float("nan"), 3.0):
        window.add({"loss": torch.tensor(loss)})
    losses = window.close(0.0, 0, False).losses
    assert losses[::2] == [1.0, 3.0] and losses[1] != losses[1]


def closed(world: World) -> tuple:
    """A batch of 5: the last of three ranks has one sample, the others two."""
    samples = [2, 2, 1][world.rank]
    window = Window(world, global_batch_size=5, batch_share=samples * 3 / 5)
    window.add(outputs(float(world.rank), 10.0 * world.rank))
    summary = window.close(0.0, bad_samples=world.rank == 1, save=world.rank == 2)
    return summary.loss, summary.means["top1"], summary.bad_samples, summary.save


@pytest.mark.slow
def test_ranks_count_by_their_samples_and_one_of_them_is_enough_to_save():
    expected = (2 * 0 + 2 * 1 + 1 * 2) / 5
    for loss, top1, bad, leave in run_on_ranks(3, closed):
        assert loss == pytest.approx(expected) and top1 == pytest.approx(10 * expected)
        assert bad and leave


def test_timed_yields_the_same_batches_and_counts_the_waiting():
    batches = Timed([1, 2, 3])
    assert list(batches) == [1, 2, 3]
    assert 0 <= batches.waited < 1
