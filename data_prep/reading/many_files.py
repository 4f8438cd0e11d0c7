"""Questions about many files, asked many at a time: a network file system takes a millisecond or
more to answer each.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

AT_ONCE = 1024  # files of a thread's turn
THREADS = 32


def ask(question: Callable[[Sequence[Any]], Sequence[Any]], files: Sequence[Any]) -> Iterator[Any]:
    """The answers of ``question(part)`` for parts of ``files``, in the order of the files."""
    size = max(1, min(AT_ONCE, -(-len(files) // THREADS)))
    parts = (files[start : start + size] for start in range(0, len(files), size))
    with ThreadPoolExecutor(THREADS) as pool:
        yield from chain.from_iterable(pool.map(question, parts))
