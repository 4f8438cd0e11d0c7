"""The collectives that methods, metrics and commands use; of a single process they do nothing.

A collective fails after a while (LT_TRAIN_TIMEOUT_MINUTES), so none may wait for work of unknown
length: a copy, a checksum, a lock that another run holds. Such work goes through :func:`on_main`,
:func:`from_main` or :func:`on_every_rank`, which wait for however long it takes.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from lt_train.console import working
from lt_train.errors import UserError

Result = TypeVar("Result")
ROUND = 1.0  # seconds in which ranks that work tell the others that they still do


def all_reduce_(tensor: torch.Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> torch.Tensor:
    """Reduce in place over all ranks."""
    if _many():
        dist.all_reduce(tensor, op)
    return tensor


def broadcast_(tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
    """Rank ``source``'s values in place on every rank, whose tensors lie alike in memory."""
    if _many():
        dist.broadcast(tensor.detach(), source)
    return tensor


def all_reduce_named(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over all ranks of tensors of any shapes on one device, in one collective.

    Returned as float64 on the CPU.
    """
    flat = all_reduce_(torch.cat([value.double().flatten() for value in values.values()])).cpu()
    parts = flat.split([value.numel() for value in values.values()])
    return {name: part.view(values[name].shape) for name, part in zip(values, parts)}


@dataclass(frozen=True)
class Coming:
    """What a collective that is under way will bring; :meth:`wait` for it once."""

    _result: Callable[[], torch.Tensor]
    _work: dist.Work | None = None
    _sent: torch.Tensor | None = None  # which must live until then

    def wait(self) -> torch.Tensor:
        """On a GPU it is the stream that waits, not the host."""
        if self._work is not None:
            self._work.wait()
        return self._result()


def all_gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Every rank's (counts[rank], ...) tensor, in rank order. No gradient flows through."""
    return start_all_gather_rows(rows, counts).wait()


def start_all_gather_rows(rows: torch.Tensor, counts: list[int]) -> Coming:
    """Begin :func:`all_gather_rows`; other work may run beside it."""
    if not _many():
        return Coming(lambda: rows)
    largest = max(counts)
    if len(rows) < largest:
        rows = torch.cat([rows, rows.new_zeros((largest - len(rows), *rows.shape[1:]))])
    whole = rows.new_empty((len(counts) * largest, *rows.shape[1:]))
    rows = rows.contiguous()
    work = dist.all_gather_into_tensor(whole, rows, async_op=True)

    def result() -> torch.Tensor:
        if min(counts) == largest:
            return whole
        parts = zip(whole.split(largest), counts)
        return torch.cat([part[:count] for part, count in parts])

    return Coming(result, work, rows)


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor | None:
    """Every rank's (counts[rank], ...) CPU tensor, in rank order, on rank 0; None on the others.

    Nothing is held but what is returned.
    """
    if not _many():
        return rows
    if dist.get_rank() > 0:
        dist.send(rows, 0)
        return None
    whole = rows.new_empty((sum(counts), *rows.shape[1:]))
    first, *others = whole.split(counts)
    first.copy_(rows)
    for rank, part in enumerate(others, 1):
        dist.recv(part, rank)
    return whole


def all_to_all_rows(
    rows: torch.Tensor, send_counts: list[int], receive_counts: list[int]
) -> torch.Tensor:
    """Send ``send_counts[r]`` consecutive rows to each rank r; what arrives, in rank order.

    No gradient flows through.
    """
    return start_all_to_all_rows(rows, send_counts, receive_counts).wait()


def start_all_to_all_rows(
    rows: torch.Tensor, send_counts: list[int], receive_counts: list[int]
) -> Coming:
    """Begin :func:`all_to_all_rows`; other work may run beside it."""
    if not _many():
        return Coming(lambda: rows)
    rows = rows.contiguous()
    received = rows.new_empty((sum(receive_counts), *rows.shape[1:]))
    work = dist.all_to_all_single(received, rows, receive_counts, send_counts, async_op=True)
    return Coming(lambda: received, work, rows)


def gather_counts(count: int, device: torch.device) -> list[int]:
    """Every rank's ``count``."""
    if not _many():
        return [count]
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = count
    return all_reduce_(counts).tolist()


def broadcast_object(value, source: int = 0):
    """Rank ``source``'s (picklable) value on every rank."""
    if not _many():
        return value
    box = [value]
    dist.broadcast_object_list(box, source, device=torch.device("cpu"))
    return box[0]


def on_main(work: Callable[[], Result]) -> Result | None:
    """What ``work``, called on rank 0 alone, returns there; None on the others. Collective.

    However long it takes. Its :class:`UserError` is raised on every rank.
    """
    is_main = rank_and_size()[0] == 0
    result, mistake = _awaited(lambda: _tried(work) if is_main else (None, None))
    mistake = broadcast_object(mistake)
    if mistake is not None:
        raise mistake
    return result


def from_main(work: Callable[[], Result]) -> Result:
    """What ``work``, called on rank 0 alone, returns (picklable), on every rank. Collective.

    However long it takes. Its :class:`UserError` is raised on every rank.
    """
    return broadcast_object(on_main(work))


def on_every_rank(work: Callable[[], Result]) -> Result:
    """What ``work`` returns on this rank, once it has ended well on all of them. Collective.

    However long it takes. Else every rank raises the :class:`UserError` of the first one that met
    any.
    """
    result, mistake = _awaited(lambda: _tried(work))
    for met in gather_objects(mistake):
        if met is not None:
            raise met
    return result


def _tried(work: Callable[[], Result]) -> tuple[Result | None, UserError | None]:
    try:
        return work(), None
    except UserError as error:
        return None, error


def _awaited(work: Callable[[], Result]) -> Result:
    """What ``work``, which has no collectives in it, returns, once all ranks are through with
    theirs. Collective.
    """
    if not _many():
        return work()
    rounds = _Rounds()
    rounds.start()
    try:
        result = work()
        rounds.is_through.set()
        with working(rounds.told):
            rounds.has_ended.wait()  # a signal is heard meanwhile, as in no collective
    except BaseException:
        rounds.leave()
        raise
    if rounds.error is not None:
        raise rounds.error
    return result


class _Rounds(threading.Thread):
    """Sums up, over and over, how many ranks still work, until none does.

    No single collective waits for longer than :data:`ROUND`, and a rank that is gone ends it. Those
    that still work set the pace. A thread, since the work belongs to the main one, which hears
    signals and has torch's modes.
    """

    def __init__(self) -> None:
        super().__init__(name="rounds", daemon=True)
        # not join(), which takes a thread for ended once a signal has interrupted it
        self.is_through, self.has_ended = threading.Event(), threading.Event()
        self._leaves = False
        self.error: Exception | None = None
        self._working = 0  # ranks, in the last round

    def run(self) -> None:
        try:
            while not self._is_last():
                pass
        except Exception as error:  # torch's, of a rank that is lost
            self.error = error
        finally:
            self.has_ended.set()

    def _is_last(self) -> bool:
        works = not self.is_through.wait(ROUND)
        sums = all_reduce_(torch.tensor([int(works), int(self._leaves)]))
        self._working, leaving = sums.tolist()
        if leaving and not self._leaves:
            raise dist.DistNetworkError("another rank leaves")
        return bool(leaving) or not self._working

    def told(self) -> str:
        """What a rank that is through waits for."""
        return f"waiting for {self._working} other rank(s)" if self._working else ""

    def leave(self) -> None:
        """Tell the others, in a last round, that this rank ends."""
        self._leaves = True
        self.is_through.set()
        self.has_ended.wait(5 * ROUND)  # a process that ends with a thread in a collective aborts


def gather_objects(value) -> list:
    """Every rank's (picklable) value, in rank order, on every rank."""
    if not _many():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if _many() else (0, 1)


def _many() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
