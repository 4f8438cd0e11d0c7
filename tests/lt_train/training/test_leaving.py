"""Leaving when asked: at once where nothing is lost, else when all ranks agree on a step."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from lt_train.distributed import World
from lt_train.training.leaving import Leaving, Preempted
from tests.helpers.ranks import run_on_ranks

STATUSES = {signal.SIGTERM: 75, signal.SIGUSR2: 75, signal.SIGHUP: 75, signal.SIGINT: 130}


@pytest.fixture(autouse=True)
def hangup_is_heard():
    """Also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STATUSES)
def test_before_training_the_signal_itself_ends_the_run(number):
    with pytest.raises(Preempted, match="before the first step") as caught, Leaving(World()):
        signal.raise_signal(number)
    assert caught.value.status == STATUSES[number]


@pytest.mark.parametrize("number", STATUSES)
def test_in_training_it_waits_for_the_end_of_a_step(number, capfd):
    with Leaving(World()) as leaving:
        leaving.begin_training()
        assert not leaving.agreed(1)
        leaving.check()
        signal.raise_signal(number)
        signal.raise_signal(number)  # the launcher's, of the same Ctrl-C
        assert leaving.agreed(2)
        with pytest.raises(Preempted) as caught:
            leaving.check()
    assert caught.value.status == STATUSES[number]
    assert ("once more to end at once" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_ends_the_process_at_once():
    code = """
        import signal, time
        from lt_train.distributed import World
        from lt_train.training.leaving import Leaving
        with Leaving(World()) as leaving:
            leaving.begin_training()
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.2)
            signal.raise_signal(signal.SIGINT)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
    assert done.returncode == 130 and b"Traceback" not in done.stderr


def test_what_is_ignored_stays_so_and_handlers_are_given_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        own = signal.getsignal(signal.SIGTERM)
        with Leaving(World()):
            signal.raise_signal(signal.SIGHUP)  # as under nohup
            assert signal.getsignal(signal.SIGTERM) != own
        assert signal.getsignal(signal.SIGTERM) == own
    finally:
        signal.signal(signal.SIGHUP, before)


def vote(world: World) -> list[int]:
    """The steps at which this rank finds that one was asked: the last one, at step 4."""
    found = []
    with Leaving(world) as leaving:
        leaving.begin_training()
        for step in range(1, 21):
            if step == 4 and world.rank == world.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if leaving.agreed(step):
                found.append(step)
            if step == 9:
                leaving.pace(0.25)  # from now on at every fourth
    return found


@pytest.mark.slow
def test_ranks_agree_at_the_same_steps_and_no_rank_is_waited_for():
    votes = run_on_ranks(3, vote)
    assert votes == [[5, 6, 7, 8, 9, 12, 16, 20]] * 3
