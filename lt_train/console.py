"""What commands say to a person: lines on stderr."""

import logging
import time
import warnings

from rich.console import Console

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal
console = Console(stderr=True, soft_wrap=True)


def say(line: str) -> None:
    """Write a line as it is, on whatever rank."""
    console.print(line, highlight=False, markup=False)


class Every:
    """Tells when it is time for the next line where there is no terminal to show progress on."""

    def __init__(self, seconds: float = PLAIN_EVERY, at_once: bool = False):
        self.seconds = seconds
        self.last = -seconds if at_once else time.monotonic()

    def due(self) -> bool:
        """Whether ``seconds`` have passed since it last said so (or since the start)."""
        if time.monotonic() - self.last <= self.seconds:
            return False
        self.last = time.monotonic()
        return True


class ConsoleHandler(logging.Handler):
    """Log lines beside the progress bar, never wrapped."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(f"{time.strftime('%X')} {record.getMessage()}", markup=False, highlight=False)


def setup_logging(is_main: bool) -> None:
    """Log to the console; ranks other than 0 speak up only to warn."""
    logging.basicConfig(level=logging.WARNING, handlers=[ConsoleHandler()], force=True)
    logging.getLogger("lt_train").setLevel(logging.INFO if is_main else logging.WARNING)
    # accelerate 1.15 passes the only name that torch 2.11 knows; torch 2.14 prefers another
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
