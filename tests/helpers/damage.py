"""What disks, networks, programs and hands do to a file's content; each time it is another then."""

import random
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]
LONGEST = 4096  # bytes, of a block


def flip(content: bytes, draw: random.Random) -> bytes:
    """One bit, or three."""
    damaged = bytearray(content)
    for bit in draw.sample(range(8 * len(content)), draw.choice((1, 1, 3))):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut(content: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def zero(content: bytes, draw: random.Random) -> bytes:
    """A block was never written, as a crash leaves it."""
    start = draw.choice([place for place in range(len(content)) if content[place]])
    size = min(draw.randrange(1, LONGEST), len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def insert(content: bytes, draw: random.Random) -> bytes:
    """A part of it stands there twice."""
    start, place = draw.randrange(len(content)), draw.randrange(len(content))
    return content[:place] + content[start : start + draw.randrange(1, 80)] + content[place:]


def repeat_line(content: bytes, draw: random.Random) -> bytes:
    """A line stands there twice, somewhere."""
    lines = content.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"".join(lines)


def lose(content: bytes, draw: random.Random) -> bytes:
    """A part is missing."""
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randrange(1, 80) :]


DAMAGES: tuple[Damage, ...] = (flip, flip, cut, zero, insert, repeat_line, lose)
