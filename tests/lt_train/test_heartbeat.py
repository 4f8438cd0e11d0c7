"""Who is missing: what rank 0 finds in the signs of all, and what each rank does of it."""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from lt_train import heartbeat as room
from lt_train.errors import EXIT_LOST_PEER
from lt_train.heartbeat import LEFT, Heartbeat, Roll, lost_peer

LIMIT = 60.0  # seconds that a test waits for what comes at once
BORNE = 1.0  # seconds of silence


def roll_after(*rounds: list[str]) -> Roll:
    """Rank 0's, of rounds of ten seconds."""
    roll = Roll(len(rounds[0]), 10.0)
    for signs in rounds:
        roll.hear(signs)
    return roll


def signs(number: int, *steps: int) -> list[str]:
    """Those of a round, of ranks at these steps."""
    return [f"{number} {step} n{rank}" for rank, step in enumerate(steps)]


def test_a_rank_that_is_silent_is_named_with_its_node_and_step():
    first, second = signs(1, 1234, 1234), signs(2, 1235, 1235)
    roll = roll_after(first, second, *[[f"{n} 1236 n0", second[1]] for n in range(3, 12)])
    assert roll.missed == 9 and roll.silent(10) == ""
    assert roll.silent(9) == (
        "rank 1 on n1 (last seen at step 1,235) has given no sign of life for 90 s"
    )
    roll.hear(signs(12, 1237, 1236))
    assert roll.missed == 0 and roll.silent(1) == ""


def test_of_many_silent_ranks_one_is_named_and_the_others_counted():
    first = signs(1, -1, -1, -1)
    roll = roll_after(first, *[[f"{n} -1 n0", *first[1:]] for n in range(2, 6)])
    assert roll.silent(2) == "rank 1 on n1 and 1 more have given no sign of life for 40 s"


def test_a_rank_that_has_never_given_a_sign_is_silent_too():
    assert roll_after(*[[f"{n} 5 n0", ""] for n in range(4)]).silent(2) == (
        "rank 1 has given no sign of life for 40 s"
    )


def test_a_rank_that_is_done_is_not_missed():
    roll = roll_after(signs(1, 7, 7), *[[f"{n} 7 n0", LEFT] for n in range(9)])
    assert roll.silent(1) == roll.behind(1) == ""


def test_who_is_alive_but_behind_is_named_once_nobody_goes_on():
    roll = roll_after(*[signs(n, 101, 100, 101) for n in range(10)])
    assert roll.silent(1) == "" and roll.behind(10) == ""
    assert roll.behind(9) == (
        "rank 1 on n1 (last seen at step 100) has not gone on for 90 s, others are at step 101"
    )
    roll.hear(signs(10, 101, 101, 101))
    assert roll.behind(1) == ""


def test_ranks_that_wait_at_one_step_are_not_behind():
    """As in an evaluation, or while rank 0 writes."""
    assert roll_after(*[signs(n, 100, 100) for n in range(100)]).behind(2) == ""


def test_without_a_word_of_a_rank_that_is_missing_the_others_are_pointed_to():
    error = lost_peer(3, "")
    assert error.status == EXIT_LOST_PEER
    assert str(error) == "rank 3 lost contact with another rank, whose own message says why"


@pytest.fixture
def begin(monkeypatch) -> Iterator[Callable[..., dict[int, Heartbeat]]]:
    """Function: begin the heartbeats of some ranks of three, which bear a second of silence.

    What they would end with comes into its ``said``.
    """
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LIMIT)
    )
    begun: dict[int, Heartbeat] = {}
    said: dict[str, int] = {}
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(room, "LEAST", BORNE)
    monkeypatch.setattr(room, "leave", lambda _, error: said.update({str(error): error.status}))

    def start(*ranks: int) -> dict[int, Heartbeat]:
        for rank in ranks:
            begun[rank] = Heartbeat()
            begun[rank].begin(store, rank, 3, BORNE)
        return begun

    start.said = said
    yield start
    if 0 not in begun:  # for whose word the others wait
        start(0)
    for rank in sorted(begun, reverse=True):
        begun[rank].stop()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_ranks_end_for_the_one_that_gives_no_sign(begin):
    begin(0, 1)
    wait_until(lambda: {line.split()[1] for line in begin.said} == {"0", "1"})
    for line, status in begin.said.items():
        assert "another rank: rank 2 has given no sign of life for" in line
        assert status == EXIT_LOST_PEER


def test_rank_0_is_missed_by_the_others(begin):
    begin(1, 2)
    wait_until(lambda: {line.split()[1] for line in begin.said} == {"1", "2"})
    assert all("rank: rank 0 has given no sign of life" in line for line in begin.said)


def test_a_store_beside_the_ranks_that_does_not_answer_tells_nothing_of_rank_0(begin, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    begin(1)
    time.sleep(2 * BORNE)
    assert not begin.said


def test_a_rank_that_goes_on_bears_the_silence_of_another(begin):
    """Whoever takes part in its steps is there, whatever keeps its thread back."""
    ranks = begin(0)
    borne_until = time.monotonic() + 2 * BORNE
    while time.monotonic() < borne_until or not ranks[0].missing():
        ranks[0].step += 1
        time.sleep(0.01)
    assert ranks[0].missing().startswith("rank 1 and 1 more have given no sign") and not begin.said
    wait_until(lambda: begin.said)


def test_ranks_that_leave_are_not_missed(begin):
    ranks = begin(0, 1, 2)
    wait_until(lambda: all(sign.node for sign in ranks[0]._roll.signs))
    for rank in (2, 1):
        ranks[rank].stop()
    wait_until(lambda: [sign.text for sign in ranks[0]._roll.signs[1:]] == [LEFT, LEFT])
    time.sleep(2 * BORNE)
    assert not begin.said and ranks[0].missing() == ""


def test_rank_0_warns_of_a_rank_that_is_behind(begin, caplog):
    with caplog.at_level(logging.WARNING):
        ranks = begin(0, 1, 2)
        for rank, heart in ranks.items():
            heart.step = 8 - (rank == 1)
        wait_until(lambda: caplog.messages)
    assert "(last seen at step 7) has not gone on for" in caplog.text
    assert "others are at step 8" in caplog.text and not begin.said
    wait_until(lambda: "step 7" in ranks[2].missing())
