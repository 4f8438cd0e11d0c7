"""Parts of a step, and what is counted of a profiler's events."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from lt_train.benchmark import step_parts
from lt_train.benchmark.step_parts import LOOP, STEPS, Clock, counted


def test_a_part_stops_while_another_lies_within_it():
    clock = Clock(torch.device("cpu"))
    with clock.part(LOOP), clock.part("forward"), clock.part("moving average"):
        pass
    names = [name for name, _ in clock.marks]
    clock.marks = list(zip(names, [0, 1, 3, 7, 8, 20]))
    assert dict(clock.seconds()) == {LOOP: 1 + 12, "forward": 2 + 1, "moving average": 4}


def test_a_part_that_fails_is_left():
    clock = Clock(torch.device("cpu"))
    with pytest.raises(ValueError), clock.part("forward"):
        raise ValueError
    assert [name for name, _ in clock.marks] == ["forward", LOOP]


class Engine:
    def forward(self) -> str:
        return "forward"


class Wrapped(Engine):
    pass


@pytest.mark.parametrize("owner", [Engine, Wrapped, Wrapped()])
def test_a_timed_method_is_as_before_in_the_end(owner):
    clock, before = Clock(torch.device("cpu")), dict(vars(owner))
    engine = Wrapped()
    with step_parts._replaced(owner, "forward", clock.timing("forward")):
        assert (engine if isinstance(owner, type) else owner).forward() == "forward"
    assert [name for name, _ in clock.marks] == ["forward", LOOP]
    assert dict(vars(owner)) == before


def event(name: str, device: DeviceType = DeviceType.CPU, **more) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, **more)


def test_launches_kernels_and_waits_of_a_step():
    on_gpu = DeviceType.CUDA
    events = [
        event("aten::add"),
        event("cudaLaunchKernel"),
        event("cudaGraphLaunch"),
        event("cudaMemcpyAsync"),
        event("cudaStreamSynchronize"),
        event("cudaDeviceSynchronize"),  # the profiler's own
        event("void add_kernel<float>()", on_gpu),
        event("sm90_gemm", on_gpu, is_user_annotation=False),
        event("Memcpy HtoD (Pageable -> Device)", on_gpu),
        event("Optimizer.step#SGD.step", on_gpu, is_user_annotation=True),
    ]
    found = counted(events * STEPS)
    assert found == {"launches": 3, "kernels": 2, "waits": 1}
