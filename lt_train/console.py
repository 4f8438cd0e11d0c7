"""What commands say to a person: lines on stderr, and never nothing for long; results on stdout."""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 240  # characters of a table where there is no terminal
PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal
log = logging.getLogger(__name__)


class LastingConsole(Console):
    """Ends no run because its reader has left (`2>&1 | tee`, a terminal that hangs up)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = LastingConsole(stderr=True, soft_wrap=True)


def say(line: str) -> None:
    """Write a line as it is, on whatever rank."""
    with suppress(OSError):  # a terminal that has hung up
        console.print(line, highlight=False, markup=False)
    pulse.said = time.monotonic()


def show(table: Table) -> None:
    """Print a result on stdout, whole where that is a file or a pipe."""
    output = LastingConsole()
    if not output.is_terminal:
        output.width = PLAIN_WIDTH
    output.print(table)


class Every:
    """Tells when it is time for the next line where there is no terminal to show progress on."""

    def __init__(self, seconds: float = PLAIN_EVERY):
        self.seconds, self.last = seconds, time.monotonic()

    def due(self, at_once: bool = False) -> bool:
        """Whether ``seconds`` have passed since it last said so (or since the start)."""
        if time.monotonic() - self.last <= self.seconds and not at_once:
            return False
        self.last = time.monotonic()
        return True


@dataclass(eq=False)
class Work:
    """Something that is being done: how it is called, and since when."""

    what: Callable[[], str]
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """Empty where there is nothing to say."""
        what = self.what()
        return what and f"{what} ({time.monotonic() - self.started:.0f} s)"


class Pulse:
    """Says what is being done, the innermost, when nothing was said for a while.

    By a thread of its own, so that whoever works has nothing to do for it; as a log line, so that
    rank 0 alone speaks.
    """

    silence = 8.0  # seconds; with those between two looks never more than ten
    least = 2.0  # seconds; what is through so soon is not worth a line

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.said = time.monotonic()
        self._thread: threading.Thread | None = None

    def begin(self, work: Work) -> None:
        self.works.append(work)
        if self._thread is None or not self._thread.is_alive():  # as in a forked process
            self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
            self._thread.start()

    def end(self, work: Work) -> None:
        self.works.remove(work)

    def look(self) -> None:
        """Say what is being done, if it is time."""
        now = time.monotonic()
        for work in self.works[-1:]:
            if now - self.said < self.silence or now - work.started < self.least:
                return
            self.said = now
            if line := work.line():
                log.info("%s", line)

    def _watch(self) -> None:
        while True:
            time.sleep(self.silence / 8)
            self.look()


pulse = Pulse()


@contextmanager
def working(what: str | Callable[[], str]) -> Iterator[None]:
    """Around what may take long: says so, and again, for as long as it takes.

    ``what``, or what it returns then: the present state in a few words.
    """
    work = Work(what if callable(what) else lambda: what)
    pulse.begin(work)
    try:
        yield
    finally:
        pulse.end(work)


class ConsoleHandler(logging.Handler):
    """Log lines beside the progress bar, never wrapped."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{time.strftime('%X')} {record.getMessage()}")


def setup_logging(is_main: bool) -> None:
    """Log to the console; ranks other than 0 speak up only to warn."""
    logging.basicConfig(level=logging.WARNING, handlers=[ConsoleHandler()], force=True)
    logging.getLogger("lt_train").setLevel(logging.INFO if is_main else logging.WARNING)
    # accelerate 1.15 passes the only name that torch 2.11 knows; torch 2.14 prefers another
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    # the same: torch 2.11 has no other name for it
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.* is deprecated")
