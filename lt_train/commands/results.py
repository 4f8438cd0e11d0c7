"""What commands have measured: for a script on stdout, and in a file with its checksum."""

import json
import sys
from contextlib import suppress
from pathlib import Path

from lt_train.errors import unreadable
from lt_train.files import seal, write_atomically

JSON = {"action": "store_true", "help": "print what goes into the file on stdout, not as a table"}


def print_json(content: dict) -> None:
    """Write it on stdout. A reader that has left loses nothing that the file would have."""
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()


def write_metrics(path: Path, content: dict) -> None:
    """Write what a command has measured as JSON with its checksum, whole or not at all."""
    try:
        write_atomically(path, seal(content))
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}; choose another file with --out"
        raise unreadable(error, message) from error
