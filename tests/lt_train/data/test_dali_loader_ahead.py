"""Batches that threads prepare before DALI asks for them."""

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path

import pytest

from lt_train.config.schema import ViewConfig
from lt_train.data import dali_loader
from lt_train.data.batch_plan import TrainPlan, read_batch
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.errors import MachineFault
from tests.helpers.loading import ALONE, assert_same_batches, configure, train

VIEW = ViewConfig(size=24)
STEPS = 12


@pytest.fixture
def config(small):
    return configure(small.root, "dali", VIEW)


@pytest.fixture(autouse=True)
def nobody_else():
    """Loaders that tests of other files have left to the garbage have threads until it is taken."""
    gc.collect()
    assert_readers_end()


@pytest.fixture
def source(config):
    plan = TrainPlan(config, Manifest(config.data.root, "train"), ALONE, 0, STEPS)
    source = dali_loader._Source(plan, whole=True)
    yield source
    source.close()


def readers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(dali_loader.READER)]


def assert_readers_end() -> None:
    deadline = time.monotonic() + 30
    while readers():
        assert time.monotonic() < deadline, readers()
        time.sleep(0.01)


def test_batches_do_not_depend_on_how_many_are_prepared(config, monkeypatch):
    ahead = train(config, last=STEPS)
    monkeypatch.setattr(dali_loader, "AHEAD", 1)
    assert_same_batches(ahead, train(config, last=STEPS))


def test_only_so_many_are_prepared_and_in_order(source, monkeypatch):
    started = []

    def noted(plan, index, failed):
        started.append(index)
        return read_batch(plan, index, failed)

    monkeypatch.setattr(dali_loader, "read_batch", noted)
    for taken in range(1, STEPS + 1):
        source(None)
        wait(source.ahead)
        assert len(started) == min(taken + dali_loader.AHEAD - 1, STEPS)
    assert [planned.index for planned in source.planned] == list(range(STEPS))
    with pytest.raises(StopIteration):
        source(None)


def test_going_back_prepares_anew_what_was_prepared(source):
    for done in range(5):
        source(None)
        if done < 2:
            source.planned.popleft()
    before = [planned.encoded.sample_ids.tolist() for planned in source.planned]
    wait(source.ahead)
    source.count_failed(3, 0, before[1][0])
    source.go_back()
    assert not source.planned
    for _ in range(2, STEPS):
        source(None)
    assert [planned.index for planned in source.planned] == list(range(2, STEPS))
    after = [planned.encoded.sample_ids.tolist() for planned in source.planned]
    assert after[0] == before[0] and after[2] == before[2]
    assert after[1][1:] == before[1][1:] and after[1][0] != before[1][0]


def test_an_error_comes_up_as_it_is_when_its_batch_is_due(source, monkeypatch):
    later = threading.Event()

    def broken(plan, index, failed):
        if index == 2:
            assert later.wait(30), "batches are read side by side"
            raise MachineFault("the disk failed at batch 2")
        if index == 3:
            later.set()
            raise MemoryError("for batch 3")
        return read_batch(plan, index, failed)

    monkeypatch.setattr(dali_loader, "read_batch", broken)
    for _ in range(2):
        source(None)
    with pytest.raises(MachineFault, match="at batch 2"):
        source(None)


def test_what_reading_raises_ends_the_loop_and_its_threads(config, monkeypatch):
    def broken(plan, index, failed):
        if index == 5:
            raise MachineFault("the disk failed")
        return read_batch(plan, index, failed)

    monkeypatch.setattr(dali_loader, "read_batch", broken)
    with pytest.raises(MachineFault, match="the disk failed") as error:
        train(config, last=STEPS)
    assert_readers_end()
    assert error.tb, "it still holds the loader"


@pytest.mark.parametrize("end", ["break", "error", "last"])
def test_no_thread_is_left_however_a_loop_ends(config, end):
    def loop() -> None:
        for step, _ in enumerate(RunData(config, ALONE).train(0, STEPS)):
            assert step or readers()
            if step == 1 and end == "break":
                break
            if step == 1 and end == "error":
                raise ValueError

    with suppress(ValueError):
        loop()
    gc.collect()
    assert_readers_end()


LEFT_OPEN = """
import sys
from lt_train.config.schema import ViewConfig
from lt_train.data.run_data import RunData
from tests.helpers.loading import ALONE, configure
batches = iter(RunData(configure(sys.argv[1], "dali", ViewConfig(size=24)), ALONE).train(0, 1000))
next(batches)
"""


@pytest.mark.slow
def test_a_loop_that_is_not_ended_holds_up_no_interpreter(small):
    command = [sys.executable, "-c", LEFT_OPEN, str(small.root)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
