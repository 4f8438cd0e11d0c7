"""Worker processes that share the shards of a plan, and leave nothing behind however a run ends."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from data_prep.writing.plan import Plan, ShardPlan
from lt_train.errors import UserError

PR_SET_PDEATHSIG = 1  # prctl.h


def in_workers(
    work: Callable[[Plan, ShardPlan], Any], plan: Plan, shards: list[ShardPlan], workers: int
) -> Iterator[Any]:
    """``work(plan, shard)`` of every shard, as they are done; in processes of their own if more
    than one may work.
    """
    if workers <= 1 or len(shards) <= 1:
        yield from (work(plan, shard) for shard in shards)
        return
    # so that a worker has the plan, and is this process's child
    fork = multiprocessing.get_context("fork")
    given = (partial(work, plan), shards, os.getpid())
    pool = ProcessPoolExecutor(min(workers, len(shards)), fork, _start_worker, given)
    started = []
    try:
        with _interrupts_held():
            futures = [pool.submit(_work_on, number) for number in range(len(shards))]
            started = multiprocessing.active_children()
        for done in as_completed(futures):
            yield done.result()
    except BaseException as error:
        with _interrupts_held():
            for worker in multiprocessing.active_children():
                worker.kill()
            pool.shutdown()
            _remove_temporary(plan, shards, started)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a worker process was killed (out of memory?); the same command again goes on from"
                " there, perhaps with fewer --workers"
            ) from error
        raise
    with _interrupts_held():
        pool.shutdown()


def _remove_temporary(
    plan: Plan, shards: list[ShardPlan], workers: list[multiprocessing.Process]
) -> None:
    """What killed workers left half-written; a worker on another machine may have the same process
    id, but it has other shards.
    """
    names = tuple(shard.name for shard in shards)
    for worker in workers:
        for path in plan.partial.glob(f"*.{worker.pid}.tmp"):
            if path.name.lstrip(".").startswith(names):
                path.unlink()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C counts at the end of the block only; processes forked in it print nothing of one."""
    held = []
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


_work: Callable[[ShardPlan], Any] | None = None  # of a worker process
_shards: list[ShardPlan] = []


def _start_worker(work: Callable[[ShardPlan], Any], shards: list[ShardPlan], parent: int) -> None:
    global _work, _shards
    _work, _shards = work, shards
    # Ctrl-C reaches the parent, which ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # a worker must not outlive a killed parent: it would keep the folder's lock
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work_on(number: int) -> Any:
    return _work(_shards[number])
