"""Nothing is silent for long: what is being done is said, by a thread that nobody waits for."""

import logging
import os
import subprocess
import sys
import time

import pytest

from lt_train import console
from lt_train.console import Every, Pulse, Work, pulse, say, setup_logging, working


@pytest.fixture
def quick(monkeypatch) -> None:
    """A pulse that speaks after a tenth of a second."""
    monkeypatch.setattr(console, "pulse", Pulse())
    monkeypatch.setattr(Pulse, "silence", 0.1)
    monkeypatch.setattr(Pulse, "least", 0.0)


@pytest.fixture
def at(monkeypatch):
    """Function that sets the time."""

    def set_time(seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: seconds)

    return set_time


def wait_for(caplog: pytest.LogCaptureFixture, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(caplog.messages) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_what_takes_long_is_said_again_and_again_with_its_present_state(quick, caplog):
    done = 0
    level = caplog.at_level(logging.INFO, "lt_train.console")
    with level, working(lambda: f"reading {done} of 9"):
        wait_for(caplog, 1)
        done = 5
        wait_for(caplog, 3)
    first, *_, last = caplog.messages
    assert first == "reading 0 of 9 (0 s)" and last == "reading 5 of 9 (0 s)"


def test_the_innermost_work_is_said_and_nothing_after_its_end(quick, caplog):
    with caplog.at_level(logging.INFO, "lt_train.console"):
        with working("outside"):
            with working("inside"):
                wait_for(caplog, 1)
            said = len(caplog.messages)
            wait_for(caplog, said + 1)
        over = len(caplog.messages)
        time.sleep(0.3)
    inside, outside = caplog.messages[:said], caplog.messages[said:]
    assert {*inside} == {"inside (0 s)"} and {*outside} == {"outside (0 s)"}
    assert len(caplog.messages) == over


def test_whoever_has_just_spoken_or_begun_is_not_interrupted(at, caplog):
    at(100.0)
    told, work = Pulse(), Work(lambda: "reading", started=100.0)
    told.works.append(work)
    with caplog.at_level(logging.INFO, "lt_train.console"):
        for seconds, lines in ((107, 0), (108.5, 1), (112, 1), (117, 2)):
            at(seconds)
            told.look()
            assert len(caplog.messages) == lines
        told.works.append(Work(lambda: "new", started=117.0))
        at(118)
        told.said = 0.0
        told.look()
    assert caplog.messages == ["reading (8 s)", "reading (17 s)"]


def test_nothing_is_said_where_a_bar_shows_it(at, caplog):
    at(100.0)
    told = Pulse()
    told.works.append(Work(lambda: "", started=100.0))
    at(200.0)
    with caplog.at_level(logging.INFO, "lt_train.console"):
        told.look()
    assert caplog.messages == []


def test_an_error_ends_the_work_too():
    before = list(pulse.works)
    with pytest.raises(ValueError), working("failing"):
        raise ValueError
    assert pulse.works == before


def test_lines_and_log_lines_count_as_said(monkeypatch, capsys):
    setup_logging(True)
    for speak in (say, logging.getLogger("lt_train").info):
        monkeypatch.setattr(pulse, "said", 0.0)
        speak("a line")
        assert pulse.said > 0
    setup_logging(False)
    monkeypatch.setattr(pulse, "said", 0.0)
    logging.getLogger("lt_train").info("of another rank")
    assert pulse.said == 0 and "another rank" not in capsys.readouterr().err


def test_the_next_line_is_due_after_a_while_or_at_once(at):
    at(100.0)
    every = Every(10)
    at(105.0)
    assert not every.due() and every.due(at_once=True) and not every.due()
    at(116.0)
    assert every.due() and not every.due()


def test_a_reader_that_leaves_ends_nobody():
    """As `2>&1 | tee` does, which hears the same Ctrl-C."""
    code = "from lt_train.console import say\nfor _ in range(3): say('nobody reads this')\nprint(3)"
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writes)
    os.close(writes)
    assert (done.returncode, done.stdout) == (0, b"3\n")
