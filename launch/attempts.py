"""What is known of a job's attempts: files that its ranks leave, and what follows from them.

ATTEMPTS/RESTART/rank-N holds the rank's node and, once it has ended, its status and when that was.
ATTEMPTS/RESTART/failed holds the run's newest checkpoint step at the end of an attempt that failed.
"""

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from lt_train.errors import EXIT_LOST_PEER, EXIT_MISTAKE, EXIT_PREEMPTED

LEAVE = (signal.SIGTERM, signal.SIGUSR2)  # preemption, and Slurm's --signal before the time limit
# statuses of ranks that had no time, or no words, for an exit status of their own
KILLED, ERROR = "killed", "error"
# of ranks that are done, or that another rank's end has ended
CONSEQUENCES = ("0", str(EXIT_LOST_PEER))
ASKED, MISTAKE = str(EXIT_PREEMPTED), str(EXIT_MISTAKE)
EXCLUDE_AFTER = 2  # failures of a node
CHECKPOINT = re.compile(r"step-\d{8,}")


@dataclass(frozen=True)
class Ending:
    """How a rank ended; ``status`` "": it has left no word, and ``time`` (seconds) is 0."""

    rank: int
    node: str
    status: str = ""
    time: float = 0.0

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.node}"
        if self.status == ASKED:
            return "asked to leave"
        if self.status == KILLED:
            return f"{who} was killed"
        if self.status == ERROR:
            return f"{who} ended with an error, see above"
        return f"{who} ended with status {self.status}"


class Mark:
    """A rank's own file in the folder of its attempt.

    A child process stays beside the rank and ends the file for one that is killed. Where Slurm
    kills a whole step, it goes too: only who dies alone is told to have been killed.
    """

    _DONE = b"\0"  # no signal has this number

    def __init__(self, attempt: Path, rank: int, node: str):
        self._file = attempt / f"rank-{rank}"
        self._file.write_text(node)
        reads, self._pipe = os.pipe()
        self._child = os.fork()
        if not self._child:
            _stand_by(reads, self._pipe, self._file)
        os.close(reads)
        # whoever handles a signal in this process, the child is told of it
        os.set_blocking(self._pipe, False)
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)

    def end(self, status: int | str) -> None:
        """Note how the rank ends. The first call counts: what comes later follows from it, and so
        does a failure of a rank that was asked to leave before.
        """
        child, self._child = self._child, 0
        if not child:
            return
        # whoever is asked to leave right now would end it half-way, and once more
        signal.pthread_sigmask(signal.SIG_BLOCK, LEAVE)
        if threading.current_thread() is threading.main_thread():  # no other one may
            signal.set_wakeup_fd(-1)
        with contextlib.suppress(OSError):  # a full pipe, or the child was killed
            os.write(self._pipe, self._DONE)
        os.close(self._pipe)
        _, left = os.waitpid(child, 0)
        asked = os.waitstatus_to_exitcode(left) == EXIT_PREEMPTED
        fails = str(status) not in (*CONSEQUENCES, MISTAKE)
        _write(self._file, ASKED if asked and fails else status, time.time())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEAVE)


def _stand_by(reads: int, writes: int, file: Path) -> None:
    """The child's life: read signals until the rank is done or gone. Its exit status tells the rank
    whether there was one to leave; of a rank that is gone it says so itself.
    """
    asked = 0.0
    try:
        for number in (*LEAVE, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.close(writes)
        told = b"-"
        while told and Mark._DONE not in told:
            told = os.read(reads, 64)
            if not asked and set(told) & set(LEAVE):
                asked = time.time()
        if not told:
            _write(file, ASKED if asked else KILLED, asked or time.time())
    finally:
        os._exit(EXIT_PREEMPTED if asked else 0)


def _write(file: Path, status: int | str, when: float) -> None:
    """Behind the node, in the block that the file has already: a full disk takes it too."""
    with contextlib.suppress(OSError), open(file, "a") as opened:
        opened.write(f" {status} {when:.3f}")


def _read(file: Path) -> str:
    """A file's text; nothing where it cannot be read: the job goes on with what is known."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def endings(attempt: Path) -> list[Ending]:
    """How the ranks of an attempt ended, as far as they have said."""
    found = []
    for path in attempt.glob("rank-*"):
        node, *how = _read(path).split() or [""]
        rank = path.name.removeprefix("rank-")
        if node and rank.isdecimal():
            status, when = how if len(how) == 2 else ("", "0")
            found.append(Ending(int(rank), node, status, float(when)))
    return sorted(found, key=lambda ending: ending.rank)


def first_to_end(ranks: list[Ending]) -> Ending | None:
    """The rank that ended an attempt: the first to fail, by its own clock, of those that had not
    been asked to leave; for where one fails, srun asks the others.

    If none has failed, but all that have said something lost contact with another, and those that
    have said nothing were on one node, it is one of these. None if nobody can tell: all ranks may
    have been killed.
    """
    told = sorted((rank for rank in ranks if rank.status), key=lambda rank: rank.time)
    own = [rank for rank in told if rank.status not in CONSEQUENCES]
    failed = [rank for rank in own if rank.status != ASKED]
    if own:
        return (failed or own)[0]
    silent = [rank for rank in ranks if not rank.status]
    lost = any(rank.status == str(EXIT_LOST_PEER) for rank in ranks)
    if lost and len({rank.node for rank in silent}) == 1:
        return replace(silent[0], status=KILLED)
    return None


def is_mistake(ranks: list[Ending]) -> bool:
    """Whether an attempt ended with a mistake that only the user can mend.

    Rank 0 meets it, or ranks of several nodes do: what one node alone calls a mistake, such as a
    data set that is not there, may be the node's fault.
    """
    first = first_to_end(ranks)
    if first is None or first.status != MISTAKE:
        return False
    told = [rank for rank in ranks if rank.status == MISTAKE]
    return told[0].rank == 0 or len({rank.node for rank in told}) > 1


def blamed(ranks: list[Ending]) -> str | None:
    """The node that ended an attempt.

    None where ranks were asked to leave, by a time limit or for another job, or met the user's
    mistake; nor where ranks of several nodes were killed: Slurm asks before it kills, so these did
    it themselves, as NCCL's watchdogs do where all hang.
    """
    first = first_to_end(ranks)
    killed = {rank.node for rank in ranks if rank.status == KILLED}
    if first is None or first.status == ASKED or len(killed) > 1 or is_mistake(ranks):
        return None
    return first.node


def bad_nodes(attempts: Path, before: int) -> list[str]:
    """Nodes that ended at least two attempts with numbers below ``before``, the worst first."""
    ended = [blamed(endings(attempts / str(restart))) for restart in range(before)]
    failures = Counter(node for node in ended if node is not None)
    return [node for node, count in failures.most_common() if count >= EXCLUDE_AFTER]


def progress(run_dir: Path) -> int:
    """A number that grows with what is done: the step of a run's newest checkpoint, 0 without any;
    of what is no training, such as a set that is being prepared, the number of its files.
    """
    if not (run_dir / "config.yaml").exists():
        return sum(path.is_file() for path in run_dir.rglob("*"))
    newest = newest_checkpoint(run_dir)
    return int(newest.name.removeprefix("step-")) if newest else 0


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The folder of a run's newest checkpoint, intact or not; None without any."""
    paths = (run_dir / "checkpoints").glob("step-*")
    named = [path for path in paths if CHECKPOINT.fullmatch(path.name)]
    return max(named, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def note_failure(attempt: Path, step: int) -> None:
    """Note that an attempt failed while the newest checkpoint was of ``step``."""
    with contextlib.suppress(OSError):  # it starts again all the same
        (attempt / "failed").write_text(str(step))


def forget(attempt: Path) -> None:
    """Take an attempt as if it had not been: nobody is blamed for its end, nor does it count."""
    with contextlib.suppress(OSError):  # of a disk that is read-only
        for path in attempt.iterdir():
            path.unlink()


def fruitless_restarts(attempts: Path, step: int) -> int:
    """Restarts that failed since the checkpoint of ``step`` was written: all noted failures at it
    but the first, whose attempt has written it, or was the first of all.
    """
    noted = [_read(path) for path in attempts.glob("*/failed")]
    return max(0, sum(text.isdecimal() and int(text) >= step for text in noted) - 1)
