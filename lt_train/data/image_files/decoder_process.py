"""Images judged by their decoders in a process of its own, which may die of one without harm."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

from lt_train.data.image_files.verdict import Outcome, Suspect, Verdict, all_by_both, by_pillow
from lt_train.errors import UserError

IMAGES_AT_ONCE = 64


class DecoderProcess(threading.local):
    """Starts when it is first asked, again after an image has killed it, and once more in a process
    that is forked from its own; ends with it. Each thread that asks has one of its own.
    """

    def __init__(self, module: str = __name__):
        self._module = module
        self._child: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._owner = os.getpid()

    def judge(self, suspects: Sequence[Suspect]) -> list[Verdict]:
        """What both decoders say of each image; up to IMAGES_AT_ONCE of them."""
        if not suspects:
            return []
        answer = self._ask(suspects, True)
        if isinstance(answer, list):
            return answer
        if len(suspects) > 1:
            middle = len(suspects) // 2
            return [*self.judge(suspects[:middle]), *self.judge(suspects[middle:])]
        again = self._ask(suspects, True)  # what has ended the process may have been something else
        return again if isinstance(again, list) else self._without_dali(suspects, again)

    def _without_dali(self, suspects: Sequence[Suspect], end: str) -> list[Verdict]:
        alone = self._ask(suspects, False)
        if not isinstance(alone, list):
            return [Verdict(Outcome.DAMAGED, f"it kills the decoder ({alone})")]
        if alone[0].outcome is Outcome.DAMAGED:
            return alone
        return [Verdict(Outcome.DIFFERENT, f"it kills DALI ({end})")]

    def _ask(self, suspects: Sequence[Suspect], with_dali: bool) -> list[Verdict] | str | None:
        """Verdicts; None if one of several does not decode; or what ended the process."""
        if self._child is None or self._owner != os.getpid():
            self._start()
        try:
            self._connection.send((suspects, with_dali))
            answer = self._connection.recv()
        except (EOFError, OSError):
            return self._ended()
        if isinstance(answer, str):
            raise UserError(answer)
        return answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        paths = [path for path in sys.path if path]
        command = [sys.executable, "-m", self._module, str(theirs.fileno())]
        with theirs:
            try:
                self._child = subprocess.Popen(
                    command,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # decoders write to it as they like
                )
            except OSError as error:
                raise UserError(
                    f"cannot start the process that decodes: {error.strerror or error}; try fewer"
                    " --workers"
                ) from error
        self._connection, self._owner = Connection(ours.detach()), os.getpid()

    def _ended(self) -> str:
        """By which signal, or with which status; the next question goes to another process."""
        status = self._child.wait()
        self._connection.close()
        self._child = self._connection = None
        if status == -signal.SIGKILL:
            raise UserError(
                "the process that decodes was killed (out of memory?); the same command again goes"
                " on from there, perhaps with fewer --workers"
            )
        return f"signal {-status}" if status < 0 else f"exit status {status}"


def _answer(connection: Connection) -> None:
    """Answer until whoever asks is gone."""
    decoder = None
    while True:
        try:
            suspects, with_dali = connection.recv()
        except (EOFError, OSError):
            return
        if with_dali and decoder is None:
            try:
                from lt_train.data.decoder import Decoder

                decoder = Decoder(IMAGES_AT_ONCE)
            except Exception as error:  # a broken installation can raise anything
                connection.send(
                    f"DALI, by which images are checked, cannot be imported: {error}; mend it, or"
                    " trust the images with --no-decode-check"
                )
                continue
        both = all_by_both(decoder, suspects) if with_dali else list(map(by_pillow, suspects))
        connection.send(both)


def serve() -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches whoever asks
    _answer(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    serve()
