"""The group of ranks: collectives between real processes, and that it is left however early a
command is through.
"""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from lt_train import distributed
from lt_train.collectives import from_main, gather_rows, on_every_rank
from lt_train.distributed import World
from lt_train.errors import MachineFault, UserError
from tests.helpers.ranks import run_on_ranks

COUNTS = [2, 0, 3]


def gather(world: World) -> list | None:
    rows = torch.full((COUNTS[world.rank], 2), float(world.rank))
    whole = gather_rows(rows, COUNTS)
    return None if whole is None else whole.tolist()


def test_rows_of_all_ranks_come_to_rank_0_alone():
    first, *others = run_on_ranks(3, gather)
    assert first == [[0.0, 0.0]] * 2 + [[2.0, 2.0]] * 3
    assert others == [None, None]


def fail_on(world: World, rank: int) -> tuple[str, int]:
    def work() -> str:
        if world.rank == rank:
            raise MachineFault(f"the disk of rank {rank} failed")
        return "done"

    assert on_every_rank(lambda: "done") == "done"
    try:
        return on_every_rank(work), 0
    except UserError as error:
        return str(error), error.status


def test_what_one_rank_meets_all_raise_with_its_exit_status():
    assert run_on_ranks(2, fail_on, 1) == [("the disk of rank 1 failed", 74)] * 2


TIMEOUT, LONG = 3, 4  # seconds: of a collective, and what takes longer


def wait_for_long_work(world: World) -> list:
    """With collectives of a short time-out; set only now, since ranks may be late to start."""
    gloo = dist.group.WORLD._get_backend(torch.device("cpu"))
    gloo._set_default_timeout(timedelta(seconds=TIMEOUT))

    def work() -> int:
        time.sleep(LONG)
        return world.rank

    return [on_every_rank(lambda: work() if world.rank == 1 else 7), from_main(work)]


@pytest.mark.slow
def test_work_may_take_longer_than_a_collective():
    assert run_on_ranks(2, wait_for_long_work) == [[7, 0], [1, 0]]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What of the group was called, in order."""
    made: list[str] = []
    for name in ("start", "stop"):
        monkeypatch.setattr(distributed, name, lambda *_, name=name: made.append(name))
    return made


def test_the_group_is_left_by_a_command_that_returns_early(calls):
    def command(done: bool) -> None:
        with distributed.joined():
            if done:
                return
            calls.append("work")

    command(done=True)
    command(done=False)
    assert calls == ["start", "stop", "start", "work", "stop"]


def test_after_an_error_nobody_is_waited_for(calls):
    with pytest.raises(ValueError), distributed.joined():
        raise ValueError
    assert calls == ["start"]
