"""What launch prints: results on stdout, and what it does, marked as its own, on stderr."""

from rich.console import Console

from lt_train import console as common

results = Console(soft_wrap=True)


def show(line: str) -> None:
    """Write a line of results as it is."""
    results.print(line, highlight=False, markup=False)


def say(line: str) -> None:
    """Tell what launch does; job.py says so in the batch script's log."""
    common.say(f"launch: {line}")
