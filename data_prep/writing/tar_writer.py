"""Tars with nothing in them but names and bytes, so that the same samples always give the same
file.
"""

import hashlib
import tarfile
from typing import BinaryIO

BLOCK = 512  # bytes; members start at multiples of it
WRITE_AT_ONCE = 4 << 20  # bytes; few large writes cost less than many small ones
PLAIN_NAME = 100  # characters, what a header holds without an extension


class TarWriter:
    """Appends members to an unbuffered file.

    ``offset``: bytes so far; ``sha256()``: of all of them, after :meth:`close`.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.offset, self._digest = file, 0, hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a member; returns the offset of its first byte."""
        self._put(_header(name, len(content)))
        start = self.offset
        self._put(content)
        padding = -len(content) % BLOCK
        if padding:
            self._put(bytes(padding))
        if self._waiting_bytes > WRITE_AT_ONCE:
            self._flush()
        return start

    def close(self) -> None:
        """Write the end mark and all that waits; the file stays open."""
        self._put(bytes(2 * BLOCK))
        self._flush()

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _put(self, content: bytes) -> None:
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        self.offset += len(content)

    def _flush(self) -> None:
        together = memoryview(b"".join(self._waiting))
        self._digest.update(together)
        while together:  # an unbuffered file may take a part only
            together = together[self.file.write(together) :]
        self._waiting, self._waiting_bytes = [], 0


def _header(name: str, size: int) -> bytes:
    """What tarfile writes for a regular file of mode 644 and no owner or time; plain names by hand,
    in a tenth of the time.
    """
    if len(name) <= PLAIN_NAME and name.isascii() and size < 8**11:
        head = name.encode().ljust(PLAIN_NAME, b"\0") + _BEFORE_SIZE + b"%011o\0" % size
        return head + _TIME + b"%06o\0" % (sum(head) + _REST_SUM) + _AFTER_SUM
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    # DALI's reader passes over PAX headers, and takes one such name for another
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8")


_BEFORE_SIZE = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"%011o\0" % 0
# checksum's end, type, link, magic; no owner, no device
_AFTER_SUM = (b" 0".ljust(102, b"\0") + b"ustar\x0000").ljust(BLOCK - 155, b"\0")
_REST_SUM = sum(_TIME) + 7 * ord(" ") + sum(_AFTER_SUM)  # the checksum's own place counts as spaces
