"""Leaving when asked to: by Slurm or a launcher (SIGTERM, SIGUSR2, SIGHUP), or by Ctrl-C."""

import contextlib
import os
import signal
import sys
import time
from types import FrameType

import torch
import torch.distributed as dist

from lt_train.distributed import World
from lt_train.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
SECOND_AFTER = 1.0  # seconds; a terminal and a launcher may both pass on the same Ctrl-C
VOTE_EVERY = 1.0  # seconds
SAVING = b"\nCtrl-C: saving at the end of this step; once more to end at once\n"


class Preempted(Exception):
    """The run was asked to leave, and nothing that was done is lost."""

    def __init__(self, message: str, status: int = EXIT_PREEMPTED):
        super().__init__(message)
        self.status = status


class Leaving:
    """What a run has been asked. A context manager, which listens to the signals.

    Before training there is nothing to save, so the signal itself ends the run, by
    :class:`Preempted`. In training ranks agree on a step, see :meth:`agreed`; afterwards, when all
    is saved, :meth:`check` ends whoever was asked. A second Ctrl-C ends the process at once.
    """

    def __init__(self, world: World):
        self.world = world
        self.asked: signal.Signals | None = None
        self._since, self._training = 0.0, False
        self._every = 1  # steps from one vote to the next
        self._vote: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "Leaving":
        # what is ignored, such as SIGHUP by nohup, stays so
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(self, *_exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin_training(self) -> None:
        """From now on there is something to lose."""
        self._training = True

    def agreed(self, step: int) -> bool:
        """Whether any rank has been asked, the same on every rank. To be called after every step.

        Nobody is waited for: what comes back is the vote that was begun about a second ago.
        """
        if self.world.size == 1:
            return self.asked is not None
        if step % self._every:
            return False
        agreed = False
        if self._vote is not None:
            count, work = self._vote
            work.wait()
            agreed = bool(count)
        own = torch.tensor(int(self.asked is not None))
        self._vote = own, dist.all_reduce(own, async_op=True)
        return agreed

    def pace(self, seconds_per_step: float) -> None:
        """Vote about once a second; ranks must give the same number."""
        self._every = max(1, int(VOTE_EVERY / max(seconds_per_step, 1e-6)))

    def check(self) -> None:
        """Leave if this rank was asked to. Only where all is saved."""
        if self.asked is not None:
            raise self.preempted("while evaluating")

    def preempted(self, state: str) -> Preempted:
        """To be raised; ``state`` says where the run is."""
        status = EXIT_INTERRUPTED if self.asked == signal.SIGINT else EXIT_PREEMPTED
        return Preempted(f"stopped {state} as asked; the same command goes on from there", status)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is not None:
            # torchrun sends SIGTERM when it hears a second Ctrl-C
            again = self.asked == signal.SIGINT and number in (signal.SIGINT, signal.SIGTERM)
            if again and now - self._since > SECOND_AFTER:
                os._exit(EXIT_INTERRUPTED)
            return
        self.asked, self._since = signal.Signals(number), now
        if not self._training:
            raise self.preempted("before the first step")
        if number == signal.SIGINT and self.world.is_main:
            with contextlib.suppress(OSError, ValueError):  # its reader has heard Ctrl-C too
                os.write(sys.stderr.fileno(), SAVING)
