"""Many files, asked about many at a time."""

import os
import threading
import time

import pytest

from data_prep.reading.many_files import AT_ONCE, ask
from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from lt_train.errors import UserError


@pytest.mark.parametrize("size", [0, 1, 31, 100, 3 * AT_ONCE + 7])
def test_answers_come_in_the_order_of_the_files(size):
    assert list(ask(lambda part: [2 * file for file in part], range(size))) == [
        2 * file for file in range(size)
    ]


def test_a_slow_file_system_is_asked_many_things_at_once():
    """As many as there are threads: each waits for all the others."""
    together = threading.Barrier(16)

    def wait(part: range) -> list[int]:
        together.wait(timeout=20)
        return list(part)

    assert list(ask(wait, range(16))) == list(range(16))


def test_every_source_file_is_looked_at_and_a_missing_one_is_named(tmp_path, monkeypatch):
    """With a wait for each answer, as network file systems have it; one by one it took 2 s."""
    files = [tmp_path / f"{number}.jpg" for number in range(400)]
    for file in files:
        file.write_bytes(b"1234")
    stat, asked = os.stat, []

    def slow(path, *arguments, **named):
        if path in files:
            asked.append(path)
            time.sleep(0.005)
        return stat(path, *arguments, **named)

    source = Source("set", [], {"train": SourceSplit(None, ["a"], None)}, files)
    monkeypatch.setattr(os, "stat", slow)
    started = time.monotonic()
    before = make_plan(source, tmp_path / "out", 0, 10)
    assert sorted(asked) == sorted(files) and time.monotonic() - started < 1
    os.utime(files[217], ns=(5, 5))
    after = make_plan(source, tmp_path / "out", 0, 10)
    assert after.stamp != before.stamp and after.fingerprint == before.fingerprint
    files[399].unlink()
    with pytest.raises(UserError, match="cannot read '.*399.jpg': No such file"):
        make_plan(source, tmp_path / "out", 0, 10)
