"""JSON files that were written otherwise, as opposed to damaged: their checksums hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lt_train.files import seal, unseal


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Have ``change`` work on what a file holds, and write that."""
    content = unseal(path.read_bytes())
    change(content)
    path.write_bytes(seal(content))
