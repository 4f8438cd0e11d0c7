"""Where a prepared set is copied from: a folder, or a URL.

URLs are read through fsspec, which torch brings, with the driver of their kind, which the user
installs and configures: s3fs, gcsfs, aiohttp and others.
"""

import errno
import logging
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lt_train.console import working
from lt_train.errors import MachineFault, UserError
from lt_train.files import is_url

Result = TypeVar("Result")
WAITS = (1.0, 4.0, 16.0)  # seconds before another try of a file; drivers try again by themselves
STALLED = 60.0  # seconds without a byte of a file over HTTP
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
BUSY = {408, 425, 429}  # HTTP statuses from 400 to 499 that pass
OURS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of the disk that is copied to
log = logging.getLogger(__name__)


class Damaged(Exception):
    """What was fetched is not what it must be; the message says why."""


class Origin(Protocol):
    """A folder with the files of a set."""

    def fetch(self, name: str, target: Path, check: Callable[[], None]) -> None:
        """Write a file to ``target`` until ``check`` raises no :class:`Damaged`."""


def origin_of(root: str) -> Origin:
    """The folder, or what is behind the URL."""
    return RemoteFolder(root) if is_url(root) else LocalFolder(Path(root))


class LocalFolder:
    """A folder that the system has mounted. Its errors are the system's."""

    def __init__(self, root: Path):
        self.root = root

    def fetch(self, name: str, target: Path, check: Callable[[], None]) -> None:
        shutil.copyfile(self.root / name, target)
        try:
            check()
        except Damaged as error:
            raise UserError(
                f"{self.root / name} {error}; python -m data_prep verify {self.root}"
            ) from error


class RemoteFolder:
    """What is behind a URL. A server that fails is asked again, with growing waits, each time for
    the whole file; if it goes on failing, that is a :class:`MachineFault`, and a
    :class:`UserError` what asking again does not mend.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._system, self._path = _open(self.url)

    def read(self, name: str) -> bytes:
        """All that is in a file."""
        with working(f"reading {self.url}/{name}"):
            return self._persistently(name, self._system.cat_file)

    def fetch(self, name: str, target: Path, check: Callable[[], None]) -> None:
        def work(path: str) -> None:
            self._system.get_file(path, str(target))
            check()

        self._persistently(name, work)

    def _persistently(self, name: str, work: Callable[[str], Result]) -> Result:
        url = f"{self.url}/{name}"
        waits = iter(WAITS)
        while True:
            try:
                return work(f"{self._path}/{name}")
            except Exception as error:
                wait = next(waits, None)
                if isinstance(error, OSError) and error.errno in OURS or _ends():
                    raise
                if _is_mistake(error) or wait is None:
                    raise self._told(error, url) from error
                wait *= random.uniform(0.5, 1.5)  # many ranks ask
                log.info("%s: %s; again in %.1f s", url, _reason(error), wait)
                time.sleep(wait)

    def _told(self, error: Exception, url: str) -> UserError:
        if isinstance(error, NOT_THERE):
            return UserError(
                f"there is no {url}: is {self.url} the name of a prepared data set, with all of "
                "its files?"
            )
        if isinstance(error, Damaged):
            return UserError(f"{url} {error}; copy the set to {self.url} again")
        if _is_mistake(error):
            return UserError(
                f"cannot read {url}: {_reason(error)}; its driver must be given the right to read "
                "it (docs/data.md)"
            )
        tries = len(WAITS) + 1
        return MachineFault(f"cannot read {url}: {_reason(error)}; it was tried {tries} times")


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and how the URL is called there."""
    try:
        import fsspec  # only here: most runs have no URL

        kind = url.partition("://")[0].lower()
        fsspec.get_filesystem_class(kind)  # says best what is to be installed
        return fsspec.core.url_to_fs(url, **_options(kind))
    except (ImportError, ValueError) as error:  # no driver; a kind of URL that there is not
        raise UserError(f"cannot read {url}: {_reason(error)}") from error


def _options(kind: str) -> dict[str, Any]:
    """What a driver is told; what the user's environment and files tell it goes before."""
    from fsspec.config import conf

    if kind in ("s3", "s3a"):  # several files are read at once; one would be held in memory
        return {"max_concurrency": 1, **conf.get("s3", {}), **conf.get(kind, {})}
    if kind in ("http", "https"):
        import aiohttp  # the driver

        # else a file that takes more than five minutes is ended, and one that stalls waited for
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        theirs = {**conf.get("http", {}), **conf.get("https", {})}
        return {"client_kwargs": {"timeout": timeout, **theirs.get("client_kwargs", {})}}
    return {}


def _ends() -> bool:
    """Whether the process is ending, and its threads with it, whose connections are closed."""
    return not threading.main_thread().is_alive()


def _is_mistake(error: Exception) -> bool:
    """Whether asking again does not help: what is not there, or not permitted.

    Drivers have errors of their own: HTTP's have a status, and those of clouds are called after
    credentials.
    """
    if isinstance(error, (*NOT_THERE, PermissionError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.EINVAL:  # s3fs's word for HTTP's 400
        return True
    status = str(getattr(error, "status", None) or getattr(error, "code", None))
    if status.isdecimal() and 400 <= int(status) < 500:
        return int(status) not in BUSY
    return "Credential" in type(error).__name__


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
