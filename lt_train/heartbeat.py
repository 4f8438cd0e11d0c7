"""Signs of life: which rank has stopped, and at which step, while the others wait for it.

A thread of every rank says now and then, in the store by which ranks have met, that it is there.
Rank 0's reads that of all and writes down who is missing, and the others read that alone: a rank
sends and gets 100 bytes every ten seconds, and of 1,024 ranks 200 messages a second come to the
store. A step costs nothing.

Silence is counted in rounds of the rank that listens, not by a clock: who was stopped together with
all the others, as by `scontrol suspend`, has missed nothing meanwhile.
"""

import json
import logging
import os
import socket
import threading
from dataclasses import asdict, dataclass

import torch.distributed as dist

from lt_train.errors import LostPeer, leave

EVERY = 10.0  # seconds of a round at most
LEAST = 5.0  # seconds that a silence may take at least
ROUNDS = 6  # in it, at least
NAMED = 2  # rounds of silence after which a rank is named if something else ends the run
LEFT = "left"  # the last sign of a rank that is done
WORD = "word"  # the key of rank 0's word; those of signs are the ranks' numbers
log = logging.getLogger(__name__)


@dataclass
class Sign:
    """A rank's last sign of life, and the rounds since then, and since its last step."""

    text: str = ""
    step: int = -1  # before training there is none
    node: str = ""
    missed: int = 0
    stood: int = 0

    def hear(self, text: str) -> None:
        """A round, in which the rank's key holds ``text``."""
        if text == LEFT:
            self.missed = 0
        elif text == self.text:
            self.missed, self.stood = self.missed + 1, self.stood + 1
        else:
            _, step, self.node = text.split(" ", 2)
            self.missed, self.stood = 0, self.stood + 1 if int(step) == self.step else 0
            self.step = int(step)
        self.text = text


@dataclass(frozen=True)
class Word:
    """What rank 0 writes in a round."""

    round: int = 0  # -1: its last one
    missed: int = 0  # rounds of the longest silence
    words: str = ""  # who is missing, a sentence
    step: int = -1  # its own
    node: str = ""


class Roll:
    """What rank 0 knows of every rank; ``every``: seconds of a round."""

    def __init__(self, size: int, every: float):
        self.signs, self.every = [Sign() for _ in range(size)], every

    def hear(self, texts: list[str]) -> None:
        """A round, in which the ranks' keys hold ``texts``."""
        for sign, text in zip(self.signs, texts):
            sign.hear(text)

    @property
    def missed(self) -> int:
        """Rounds of the longest silence."""
        return max(sign.missed for sign in self.signs)

    def silent(self, rounds: int) -> str:
        """Who has missed so many rounds, as a sentence; empty if nobody has."""
        found = {rank: sign for rank, sign in enumerate(self.signs) if sign.missed >= rounds}
        return without_sign(found, self.missed * self.every) if found else ""

    def behind(self, rounds: int) -> str:
        """Who is at the lowest step, as a sentence, if for so many rounds no rank has gone on, and
        they are not at the same one; else empty.
        """
        here = {rank: sign for rank, sign in enumerate(self.signs) if sign.text != LEFT}
        steps = [sign.step for sign in here.values()]
        stood = min((sign.stood for sign in here.values()), default=0)
        if stood < rounds or min(steps) == max(steps):
            return ""
        last = {rank: sign for rank, sign in here.items() if sign.step == min(steps)}
        seconds = f"{stood * self.every:,.0f} s"
        return f"{_names(last)} not gone on for {seconds}, others are at step {max(steps):,}"


def without_sign(found: dict[int, Sign], seconds: float) -> str:
    """The sentence about ranks that are silent."""
    return f"{_names(found)} given no sign of life for {seconds:,.0f} s"


def _names(found: dict[int, Sign]) -> str:
    """The first of these ranks, with "has" or "have"."""
    rank, sign = next(iter(found.items()))
    node = f" on {sign.node}" if sign.node else ""
    step = f" (last seen at step {sign.step:,})" if sign.step >= 0 else ""
    verb = f" and {len(found) - 1:,} more have" if len(found) > 1 else " has"
    return f"rank {rank}{node}{step}{verb}"


class Heartbeat:
    """This rank's signs of life, and what it knows of the others'."""

    def __init__(self) -> None:
        self.step = -1  # which the training loop writes here
        self.every = EVERY
        self._word, self._unheard = Word(), 0  # rank 0's last, and the rounds without another
        self._threads: list[threading.Thread] = []
        self._over, self._is_done = threading.Event(), False

    def begin(self, store: dist.Store, rank: int, size: int, bearable: float) -> None:
        """Give signs of life from now on. Once a rank has given none for ``bearable`` seconds, and
        this one has done no step meanwhile, this process ends; see :func:`lt_train.errors.leave`.

        ``store``: that by which the ranks have met.
        """
        bearable = max(LEAST, bearable)
        self.every = min(EVERY, bearable / ROUNDS)
        self._bearable = round(bearable / self.every)
        self._rank, self._size, self.step = rank, size, -1
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._roll = Roll(size, self.every)
        self._word, self._unheard = Word(), 0
        self._talks = 0  # rounds in which the store has answered
        # torchrun serves the store itself, which tells nothing of rank 0 while it does not answer
        self._beside = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._over, self._is_done = threading.Event(), False
        self._threads = [
            threading.Thread(target=self._talk, args=(store,), name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="heartbeat's watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """This rank is done, and not to be missed."""
        self._is_done = True
        self.give_up()
        for thread in self._threads:
            thread.join(timeout=LEAST)  # a store that does not answer is no concern of it now
        self._threads = []

    def give_up(self) -> None:
        """After an error: say nothing more, to a store that may be gone. :meth:`missing` stays."""
        self._over.set()

    def missing(self) -> str:
        """Who gives no sign of life, or is behind the others, as a sentence; empty if that is not
        known.
        """
        return self._longest()[1]

    def _longest(self) -> tuple[int, str]:
        """The longest silence, in rounds, and whose."""
        word, unheard = self._word, self._unheard
        if unheard < NAMED:
            return word.missed, word.words
        zero = Sign(step=word.step, node=word.node)
        return unheard, without_sign({0: zero}, unheard * self.every)

    def _watch(self) -> None:
        """The thread that counts rounds, whether the store answers or not."""
        word, talks, step, stood = None, 0, None, 0
        while not self._over.wait(self.every):
            if self._word != word or self._rank == 0:
                self._unheard = 0
            elif self._talks > talks or not self._beside:
                self._unheard += 1
            stood = stood + 1 if self.step == step else 0
            word, talks, step = self._word, self._talks, self.step
            missed, words = self._longest()
            if min(missed, stood) >= self._bearable:
                leave("lt_train", lost_peer(self._rank, words))

    def _talk(self, store: dist.Store) -> None:
        """The thread that talks with the store. It waits for as long as that does not answer."""
        keys = [str(rank) for rank in range(self._size)]
        try:
            # a connection of its own: others who use the store may wait in theirs for long
            store = dist.PrefixStore("heartbeat", store.clone())
            if self._rank == 0:
                for key in keys:  # reading would wait for one that is not there
                    store.compare_set(key, "", "")
            while not self._over.wait(self.every if self._talks else 0):
                store.set(str(self._rank), f"{self._talks} {self.step} {self._node}")
                if self._rank == 0:
                    store.set(WORD, self._call([text.decode() for text in store.multi_get(keys)]))
                self._word = Word(**json.loads(store.get(WORD)))
                self._talks += 1
                if self._word.round < 0:  # nobody listens any more
                    self.give_up()
            if self._is_done:
                store.set(str(self._rank), LEFT)
            if self._is_done and self._rank == 0:
                store.set(WORD, json.dumps(asdict(Word(-1))))
        except RuntimeError:  # it went with rank 0 or a launcher, of which others tell
            self.give_up()

    def _call(self, signs: list[str]) -> str:
        """Rank 0's word in a round, once it has read all signs."""
        roll = self._roll
        roll.hear(signs)
        words = roll.silent(NAMED)
        if not words:
            words = roll.behind(NAMED)
            if roll.behind(self._bearable) and not roll.behind(self._bearable + 1):
                log.warning("%s", words)  # once; it may yet go on, or time out
        return json.dumps(asdict(Word(self._talks, roll.missed, words, self.step, self._node)))


def lost_peer(rank: int, words: str) -> LostPeer:
    """What ``rank`` says when it is left alone; ``words``: of :meth:`Heartbeat.missing`."""
    reason = f": {words}" if words else ", whose own message says why"
    return LostPeer(f"rank {rank} lost contact with another rank{reason}")


heartbeat = Heartbeat()
