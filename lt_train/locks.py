"""Who may write to a folder: locks of the kernel, and a run's lock, which others can read.

Locks are flock's: on Linux NFS and Lustre make them hold on all nodes, they vanish with their
process or its node, and reading the file through another descriptor does not lose them, as it would
lose fcntl's.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from lt_train.console import say
from lt_train.errors import UserError
from lt_train.files import parse_object, process_exists, temporary_of

WAIT = "LT_TRAIN_WAIT"  # set by launchers: a run waits for another one in its folder
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of file systems without locks
GRACE = 5.0  # seconds that a killed process may take to be gone
BEAT = 10.0  # seconds between a holder's signs of life
LOST_AFTER = 60.0  # seconds without one: the holder is gone
LONG_AGO = 3600.0  # seconds by the clocks of two machines, which may be wrong by less
POLL = 0.5  # seconds


def lock_file(descriptor: int, kind: int) -> bool:
    """Lock an open file as ``fcntl.flock`` does; false where the file system has no locks.

    A :class:`BlockingIOError` with ``LOCK_NB`` if another process holds it.
    """
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def locked(path: Path, kind: int, busy: str) -> Iterator[None]:
    """Hold the lock of a file, which is made and stays.

    With ``LOCK_NB`` in ``kind``, a :class:`UserError` says ``busy`` if another process holds it.
    """
    with open(path, "w+") as file:  # NFS wants a shared lock's file to be readable
        try:
            lock_file(file.fileno(), kind)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, and hold it; the file is there only meanwhile."""
    while True:
        with open(path, "a+") as file:
            lock_file(file.fileno(), fcntl.LOCK_EX)
            if not _is_in_place(path, file.fileno()):
                continue  # who held it before has removed it, and the next one has made it anew
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the lock of a file if nobody else does; tell whether. It is there only meanwhile."""
    with open(path, "a+") as file:
        try:
            lock_file(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_mine = _is_in_place(path, file.fileno())
        except BlockingIOError:
            is_mine = False
        try:
            yield is_mine
        finally:
            if is_mine:
                path.unlink(missing_ok=True)


class SharedLock:
    """The lock of a file, which is made with its folder, held for as long as this object lives.

    Others may hold it too, but nobody to whom it is :func:`unused`. Its time says when it was last
    taken.
    """

    def __init__(self, path: Path):
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                lock_file(descriptor, fcntl.LOCK_SH)
                if _is_in_place(path, descriptor):
                    os.utime(descriptor)
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # of a file that was removed meanwhile
        _held.add(descriptor)
        weakref.finalize(self, _let_go, descriptor)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Keep others from taking a :class:`SharedLock`; tell whether nobody holds it.

    False where that cannot be known: it is another user's, or its file system has no locks.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "r+"))
            has_locks = lock_file(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_unused = has_locks and _is_in_place(path, file.fileno())
        except (BlockingIOError, FileNotFoundError, PermissionError):
            is_unused = False
        yield is_unused


def _is_in_place(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Holder:
    """Who writes to a folder: the content of its lock's file.

    ``machine`` tells kernels, and worlds of process ids, apart. ``job`` and ``restart`` are
    Slurm's, "" and 0 without it. A later holder has a higher ``token``.
    """

    token: int
    user: str
    pid: int
    host: str
    machine: str
    job: str
    restart: int
    since: str
    command: str

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"pid {self.pid} on {self.host} ({self.user}{job}), since {self.since}"

    def follows(self, other: "Holder") -> bool:
        """Whether this is a later attempt of the same Slurm job, whose ``other`` is to end."""
        return bool(self.job) and self.job == other.job and self.restart > other.restart


def this_process(token: int) -> Holder:
    """This process as a holder from now on."""
    return Holder(
        token=token,
        user=os.environ.get("USER") or f"uid {os.getuid()}",
        pid=os.getpid(),
        host=socket.gethostname(),
        machine=_machine(),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        since=time.strftime("%F %T %Z"),
        command=shlex.join(sys.argv),
    )


@cache
def _machine() -> str:
    """Equal in two processes only if a kernel and its process ids are the same for both."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def read_holder(content: bytes) -> Holder | None:
    """The holder in a lock's file; None if it names none."""
    try:
        found = parse_object(content)
        kinds = Holder.__annotations__
        if all(type(found[name]) is kind for name, kind in kinds.items()):
            return Holder(**{name: found[name] for name in kinds})
    except (ValueError, KeyError):
        pass  # nobody has written it yet, or whoever held it was no lt_train
    return None


@dataclass(frozen=True)
class Busy:
    """Who has a folder, in words; not certain if it is on another machine and may be gone."""

    who: str
    is_certain: bool


class FolderLock:
    """The one writer of a folder, and its token, in ``run.lock``.

    A later attempt of the same Slurm job takes the lock over: the old one may still write, on a
    node that Slurm has lost. So that it stops, a writer calls :meth:`check` before it writes.
    Every holder has a file of its own, locked before it is put in place: who was overtaken keeps
    a lock of a file that is no longer there. On file systems without locks, or with locks that hold
    on one node only, it counts who shows signs of life.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "run.lock"
        self._descriptor: int | None = None
        self._content = b""
        self._stop = threading.Event()
        # of a holder that has no lock: its last sign of life, and when it was first seen
        self._seen: tuple[int, float] | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def take(self, patience: float = GRACE) -> Busy | None:
        """Take the lock; who holds it instead, if it is still held after ``patience`` seconds."""
        started, is_certain = time.monotonic(), False
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                busy = self._take(descriptor)
            finally:
                os.close(descriptor)
            # a sign of life is seen once, at whichever look
            is_certain = is_certain or (busy is not None and busy.is_certain)
            if busy is None or time.monotonic() - started >= patience:
                return busy and replace(busy, is_certain=is_certain)
            time.sleep(POLL)

    def _take(self, descriptor: int) -> Busy | None:
        """Take the lock with the file that was in place, if nobody holds it."""
        try:
            has_locks, is_free = lock_file(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), True
        except BlockingIOError:
            has_locks, is_free = True, False
        other = read_holder(os.pread(descriptor, 1 << 16, 0))
        if not _is_in_place(self.path, descriptor) or (other is None and not is_free):
            return self._busy("another process", True)  # which has come in between
        mine = this_process(other.token + 1 if other else time.time_ns())
        if other is not None and not mine.follows(other):
            if not is_free:
                return self._busy(other, True)
            is_near = other.machine == mine.machine
            may_live, is_certain = self._signs_of_life(os.fstat(descriptor))
            if may_live and not (is_near and (has_locks or not process_exists(other.pid))):
                return self._busy(other, is_certain)
        self._put_in_place(mine, has_locks)
        return None

    def _busy(self, who: Holder | str, is_certain: bool) -> Busy:
        return Busy(f"{self.folder} is in use by {who}", is_certain)

    def _signs_of_life(self, status: os.stat_result) -> tuple[bool, bool]:
        """Whether a holder without a lock may live, and whether it has just shown that it does.

        By what is seen of it with our own clock: two machines' may differ.
        """
        now, last = time.monotonic(), self._seen
        is_new = last is None or last[0] != status.st_mtime_ns
        if is_new:
            self._seen = (status.st_mtime_ns, now)
        long_ago = time.time() - status.st_mtime > LONG_AGO
        may_live = not long_ago and now - self._seen[1] < LOST_AFTER
        return may_live, is_new and last is not None

    def _put_in_place(self, mine: Holder, has_locks: bool) -> None:
        if not has_locks:
            say(f"{self.folder}: its file system has no locks; a token in {self.path.name} counts")
        self._content = (json.dumps(asdict(mine), indent=1) + "\n").encode()
        own = temporary_of(self.path)
        descriptor = os.open(own, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            lock_file(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, self._content)
            os.fsync(descriptor)
            os.replace(own, self.path)
        except BaseException:
            os.close(descriptor)
            own.unlink(missing_ok=True)
            raise
        self._descriptor, self._stop = descriptor, threading.Event()
        _held.add(descriptor)
        beat = (descriptor, self._stop)
        self._life = threading.Thread(target=_show_life, args=beat, name="run.lock", daemon=True)
        self._life.start()

    def check(self) -> None:
        """A :class:`UserError` if another has taken the lock over; nothing where it is not held."""
        if not self.is_held:
            return
        try:
            found = self.path.read_bytes()
        except FileNotFoundError:
            found = b""
        if found != self._content:
            other = read_holder(found)
            by = f"by {other}" if other else "by a run that has ended since, or removed"
            raise UserError(
                f"{self.folder} was taken over {by}; this run (pid {os.getpid()} on "
                f"{socket.gethostname()}) stops and writes nothing more"
            )

    def release(self) -> None:
        """Give the lock back; nothing of it is left. Does nothing where it is not held."""
        if self._descriptor is None:
            return
        self._stop.set()
        self._life.join(timeout=GRACE)  # its descriptor is to be another file's next
        with suppress(UserError, OSError):  # taken over, or the folder is gone
            self.check()
            self.path.unlink()
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None


_held: set[int] = set()  # descriptors of locks


def _forget_in_child() -> None:
    """A lock is its process's own: a forked child that outlives it must not keep it."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_in_child)


def _let_go(descriptor: int) -> None:
    if descriptor in _held:  # not in a forked child, which has closed it
        _held.discard(descriptor)
        os.close(descriptor)


def _show_life(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):  # a server that is away is no reason to end
            os.utime(descriptor)
