"""Every method's step on a GPU that is not there: all of it stays on the device, and the host waits
for nothing. Left out are the backward pass and fused optimizers, for which torch asks the driver.
"""

from dataclasses import replace

import pytest
import torch

from lt_train.config.schema import METHODS, Config, LossConfig, MocoConfig, OptimConfig
from lt_train.data.batch import Batch
from lt_train.methods.base import Method, Progress
from lt_train.methods.metrics import Accuracy
from lt_train.training.optim import make_optimizer
from tests.helpers.dispatched import Dispatched
from tests.helpers.fake_gpu import GPU, batch_on_gpu, fake_gpu, method_on_gpu
from tests.helpers.small_methods import COUNTS, progress_of
from tests.lt_train.methods.test_base import POOL, SETTINGS, complete, global_batch, start

ALL = SETTINGS | {
    "moco": Config(method="moco", moco=MocoConfig(queue_size=16)),
    "sourcing": Config(method="sourcing", unlabeled=POOL),
    "label-aware smoothing": Config(loss=LossConfig(label_aware_smoothing=(0.3, 0.1))),
    "focal": Config(loss=LossConfig("focal", class_weights="inverse")),
    "logit adjustment": Config(loss=LossConfig("logit_adjustment")),
}


def parts(config: Config) -> tuple[Method, Batch, list[Progress]]:
    """A method, a batch for it and where it is in its steps, all still on the CPU."""
    config = complete(config)
    method = start(config).to(memory_format=torch.channels_last)
    # the second step begins an epoch
    progresses = [replace(progress_of(method, step), starts_epoch=step == 1) for step in (0, 1)]
    batch = global_batch(config, 0)
    views = [view.contiguous(memory_format=torch.channels_last) for view in batch.views]
    return method, replace(batch, views=views), progresses


def test_every_method_is_tried():
    assert {config.method for config in ALL.values()} == METHODS.keys()


@pytest.mark.parametrize("name", ALL)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(name, monkeypatch):
    method, batch, progresses = parts(ALL[name])
    with fake_gpu(monkeypatch) as mode, Dispatched() as dispatched:
        method, batch = method_on_gpu(mode, method), batch_on_gpu(mode, batch)
        for progress in progresses:
            outputs = method(batch, progress)
            method.after_step()
            assert {value.device for value in outputs.values()} == {GPU}
        assert not dispatched.waits


@pytest.mark.parametrize("name", ["classifier", "experts", "fixmatch", "sourcing"])
def test_an_evaluation_stays_on_the_gpu_until_its_end(name, monkeypatch):
    method, batch, _ = parts(ALL[name])
    with fake_gpu(monkeypatch) as mode, Dispatched() as dispatched, torch.no_grad():
        method, batch = method_on_gpu(mode, method).eval(), batch_on_gpu(mode, batch)
        accuracy = Accuracy(COUNTS, GPU)
        accuracy.update(method.predict(batch.views[0]), batch.label)
        assert not dispatched.waits


def test_lars_waits_for_nothing(monkeypatch):
    method, _, _ = parts(Config())
    with fake_gpu(monkeypatch) as mode, Dispatched() as dispatched:
        method = method_on_gpu(mode, method)
        optimizer = make_optimizer(OptimConfig("lars"), method)
        for _ in range(2):
            for parameter in method.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        assert not dispatched.waits


MISTAKES = {
    "a CPU tensor among a GPU's": (lambda images: images + torch.ones(4), "at least two devices"),
    "as many as the GPU says": (lambda images: images[images > 0], "nonzero"),
    "a number for the host": (lambda images: images * float(images.mean()), "_local_scalar_dense"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_mixes_devices_or_waits_is_found(name, monkeypatch):
    mistake, message = MISTAKES[name]
    with fake_gpu(monkeypatch):
        images = torch.zeros(2, 3, 4, 4, device=GPU)
        with pytest.raises(Exception, match=message):
            mistake(images)


def test_copies_that_wait_are_counted(monkeypatch):
    with fake_gpu(monkeypatch), Dispatched() as dispatched:
        here, there = torch.ones(2), torch.ones(2, device=GPU)
        here.to(GPU, non_blocking=True)
        there.copy_(here, non_blocking=True)
        assert not dispatched.waits
        here.to(GPU)
        there.cpu()
        here.copy_(there)
        torch.tensor([1.0], device=GPU)
        assert len(dispatched.waits) == 4
