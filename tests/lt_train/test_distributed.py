"""The group of ranks: however early a command is through, it leaves the group."""

import pytest

from lt_train import distributed


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What of the group was called, in order."""
    made: list[str] = []
    for name in ("start", "stop"):
        monkeypatch.setattr(distributed, name, lambda *_, name=name: made.append(name))
    return made


def test_the_group_is_left_by_a_command_that_returns_early(calls):
    def command(done: bool) -> None:
        with distributed.joined():
            if done:
                return
            calls.append("work")

    command(done=True)
    command(done=False)
    assert calls == ["start", "stop", "start", "work", "stop"]


def test_after_an_error_nobody_is_waited_for(calls):
    with pytest.raises(ValueError), distributed.joined():
        raise ValueError
    assert calls == ["start"]
