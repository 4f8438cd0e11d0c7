"""What a user is meant to read when something is wrong, and exit statuses."""

import argparse
import atexit
import contextlib
import difflib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

EXIT_MISTAKE = 2  # a UserError
EXIT_MACHINE = 74  # EX_IOERR: a disk or a network failed; the same command may succeed elsewhere
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: asked to leave, not an error; run the same command again
EXIT_LOST_PEER = 76  # another rank is gone, whose own message says why, or hangs
EXIT_INTERRUPTED = 130  # Ctrl-C
SPEAK_AFTER = 3.0  # seconds; ranks other than 0 report what is wrong only then

on_leaving: list[Callable[[int], None]] = []  # called by :func:`leave` with the exit status


class UserError(Exception):
    """Something the user can mend. The message says what is wrong and what to do, in one line."""

    status = EXIT_MISTAKE


class MachineFault(UserError):
    """Nothing that the user did: another attempt may succeed, and Slurm jobs make one."""

    status = EXIT_MACHINE


class DamagedFile(UserError):
    """A file that is there, can be read, and is not as it was written."""


# of an OSError: what is not there, not permitted or not possible stays so until somebody mends the
# command. A disk that is full (ENOSPC, EDQUOT) or has become read-only (EROFS, as after an error of
# its own) is none of them: the same command goes on once that is over
LASTING = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EACCES,
    errno.EPERM,
    errno.EINVAL,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    None,
}


def is_fault(error: Exception) -> bool:
    """Whether the machine has failed, not the user."""
    return isinstance(error, OSError) and error.errno not in LASTING


def unreadable(error: Exception, message: str) -> UserError:
    """What to raise, with this message, for a file that cannot be read, or be written."""
    return MachineFault(message) if is_fault(error) else UserError(message)


def unwritable(error: Exception, message: str) -> UserError:
    """The same where the writer may be torch or safetensors, whose errors keep no errno: what they
    were given can be written, so the disk is full or failed.
    """
    return unreadable(error, message) if isinstance(error, OSError) else MachineFault(message)


class LostPeer(UserError):
    """Another rank is gone."""

    status = EXIT_LOST_PEER


def run_cli(program: str, main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its status; see :func:`exit_status`."""
    try:
        status = exit_status(program, main)
    except Exception:  # a fault of ours has its traceback
        sys.excepthook(*sys.exc_info())
        status = 1
    exit_with(status)


def exit_with(status: int) -> NoReturn:
    """``sys.exit``, and this status is the process's even if daemon threads are within torch.

    One that comes back from a store or a collective while Python takes itself down aborts the
    process (SIGABRT): C++ does not bear how Python ends such threads.
    """
    _exit_status[:] = [status]
    sys.exit(status)


_exit_status: list[int] = []


@atexit.register  # before other modules have registered theirs: it is called after them
def _end_before_daemon_threads() -> None:
    if _exit_status and any(thread.daemon for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(_exit_status[0])


def exit_status(program: str, main: Callable[[], int | None]) -> int:
    """What ``main`` returns; a :class:`UserError` becomes a line on stderr and its exit status."""
    try:
        return main() or 0
    except UserError as error:
        _let_rank_zero_speak_first()
        report_error(program, str(error), error.status)
        return error.status
    except BrokenPipeError:  # the reader of our output left (`... | head`): nothing to report
        return 1
    except OSError as error:
        if not is_fault(error):
            raise
        place = f"{error.filename}: " if error.filename else ""
        report_error(program, f"{place}{error.strerror}; the machine failed, try again")
        return EXIT_MACHINE
    except KeyboardInterrupt:
        report_error(program, "interrupted")
        return EXIT_INTERRUPTED


def leave(program: str, error: UserError) -> NoReturn:
    """End the process from any of its threads, whatever the others wait for, as if the main one had
    raised ``error``. Nothing is unwound.
    """
    try:
        for tell in on_leaving:
            tell(error.status)
        if launched_rank() > 0:
            time.sleep(SPEAK_AFTER)
        report_error(program, str(error), error.status)
    finally:
        os._exit(error.status)


def report_error(program: str, message: str, status: int = EXIT_MISTAKE) -> None:
    """Write the one line that every command gives for a user's mistake."""
    line = " ".join(message.split())
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    _tell_torchrun(f"{program}: error: {shown}", status)
    with contextlib.suppress(OSError):  # a log on a full disk, a terminal that has hung up
        sys.stderr.write(f"{program}: error: {shown}\n")
        sys.stderr.flush()


def _tell_torchrun(line: str, status: int) -> None:
    """Have the line stand at the end of torchrun's report too, of 40 lines, that comes after it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    # the first rank to fail is the cause; one that was lost is no later than who has lost it
    when = int(time.time()) + (status == EXIT_LOST_PEER)
    about = {"message": line, "extraInfo": {"timestamp": when}}
    with contextlib.suppress(OSError):  # whole or not at all, as on a full disk
        with open(f"{file}.new", "w") as report:
            json.dump({"message": about}, report)
        os.replace(f"{file}.new", file)


def nearest(word: str, choices: list[str]) -> str:
    """``, did you mean '...'?`` with the choice most like ``word``, or nothing."""
    name = word.rpartition(".")[2]
    in_other_groups = [choice for choice in choices if choice.rpartition(".")[2] == name]
    close = difflib.get_close_matches(word, in_other_groups, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if not close:  # nearly a right name in the wrong group: compare the last parts alone
        last = {choice.rpartition(".")[2]: choice for choice in choices}
        close = difflib.get_close_matches(name, last, n=1, cutoff=0.6)
        close = [last[match] for match in close]
    return f", did you mean '{close[0]}'?" if close else ""


def parse_task(text: str) -> tuple[int, int]:
    """``I/N``, one of N array jobs, as two numbers; for argparse."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N with I from 0 to N-1")
    return int(index), int(count)


def launched_rank() -> int:
    """This process's rank as its launcher says, before anything is known of the others."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    return int(rank) if rank.isdecimal() else 0


def _let_rank_zero_speak_first() -> None:
    """All ranks tend to see the same mistake.

    Rank 0 reports it and its launcher ends the others while they wait here.
    """
    if launched_rank() > 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SPEAK_AFTER)
