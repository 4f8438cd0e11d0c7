"""What metrics.jsonl holds after a run was cut off and goes on."""

import io
import json
import shutil
import threading
from pathlib import Path

import pytest
from rich.console import Console

from lt_train.run_files import parse_log, write_record
from lt_train.training import monitor as module
from lt_train.training.monitor import Monitor

VALUES = {"loss": 1.5, "images_per_s": 10.0, "seconds_left": 3.0}


def rows(folder: Path) -> list[tuple[int, str | None]]:
    """Step and split of each row."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record.get("split")) for record in records]


def train(folder: Path, steps: range, first_step: int) -> None:
    """Record ``steps``, with an evaluation at every even one."""
    with Monitor(folder, first_step, 9, enabled=True) as monitor:
        for step in steps:
            monitor.record(step, VALUES)
            if step % 2 == 0:
                monitor.evaluated(step, "val", {"top1": 50.0, "per_class": [1.0]})


@pytest.mark.parametrize("checkpoint", [0, 2, 3, 4])
def test_after_a_kill_each_step_and_split_stands_once(tmp_path, checkpoint):
    train(tmp_path, range(1, 5), 0)
    train(tmp_path, range(checkpoint + 1, 7), checkpoint)
    assert rows(tmp_path).count((4, "val")) == 1
    assert len(rows(tmp_path)) == len(set(rows(tmp_path))) == 9


def test_a_kill_while_the_end_is_evaluated_doubles_nothing(tmp_path):
    """The last step is saved before it is evaluated: a restart evaluates it again."""
    train(tmp_path, range(1, 5), 0)
    with Monitor(tmp_path, 4, 4, enabled=True) as monitor:
        for split in ("val", "test", "val"):  # selected weights are evaluated twice
            monitor.evaluated(4, split, {"top1": 50.0})
    assert rows(tmp_path)[-2:] == [(4, "val"), (4, "test")] and len(rows(tmp_path)) == 7


@pytest.mark.parametrize(
    "odd",
    [
        b"[]",
        b"5",
        b"null",
        b"\xff\xfe",
        b"",
        b'{"loss": 1.0}',
        b'{"step": "3"}',
        b'{"step": true}',
        b'{"step": 2, "loss": "low"}',
        b'{"step": 2, "split": ["val"]}',
        b'{"step": 1' + b"0" * 40 + b"}",
        b"[" * 10**5,
        write_record({"step": 2, "loss": 1.5}).replace(b"1.5", b"1.4").rstrip(),
    ],
    ids=lambda odd: odd[:24].decode("latin-1"),
)
def test_odd_lines_are_dropped_with_one_warning(tmp_path, caplog, odd):
    train(tmp_path, range(1, 4), 0)
    good = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(odd + b"\n" + good + odd + b"\n" + b'{"step": 3, "l')
    train(tmp_path, range(0), 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == good
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/metrics.jsonl: 3 unreadable line(s) are dropped"
    ]


def test_the_first_record_is_said_at_once_and_between_records_where_training_is(tmp_path, capsys):
    """Records may be far apart: the present step is known all the time."""
    with Monitor(tmp_path / "run", 3, 9, enabled=True) as monitor:
        assert monitor.present() == "run: the first step of 6 is under way"
        monitor.passed(4)
        assert monitor.present() == "run: at step 4/9"
        capsys.readouterr()
        for step in (5, 6):
            monitor.record(step, VALUES)
    assert capsys.readouterr().err.splitlines() == [
        "run: step 5/9, 10 images/s, loss 1.500, 3 s left"
    ]


def test_what_cannot_be_written_is_raised_once(tmp_path, capfd, monkeypatch):
    """TensorBoard's thread writes, and ends with the error that the next flush raises."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's
    with pytest.raises(OSError), Monitor(tmp_path, 0, 9, enabled=True) as monitor:
        monitor.record(1, VALUES)
        shutil.rmtree(tmp_path / "tensorboard")
        (tmp_path / "tensorboard").touch()
        monitor.record(2, VALUES)
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook == threading.__excepthook__


def test_other_ranks_say_nothing(tmp_path):
    with Monitor(tmp_path, 0, 9, enabled=False) as monitor:
        monitor.passed(1)
        assert monitor.present() == ""


def test_a_log_of_an_earlier_version_is_gone_on_with_and_gets_checksums(tmp_path):
    """After that, a line that has lost its own is told."""
    early = b"".join(json.dumps({"step": step, "loss": 1.0}).encode() + b"\n" for step in (1, 2))
    (tmp_path / "metrics.jsonl").write_bytes(early)
    train(tmp_path, range(3, 4), 2)
    content = (tmp_path / "metrics.jsonl").read_bytes()
    records, odd = parse_log(content)
    assert [record["step"] for record in records] == [1, 2, 3] and not odd
    first, rest = content.split(b"\n", 1)
    lost = first.partition(b', "crc32"')[0] + b"}\n"
    assert parse_log(lost + rest) == (records[1:], [lost])


def test_a_bar_of_80_columns_shows_rate_time_loss_and_the_last_checkpoint(tmp_path, monkeypatch):
    shown = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(module, "console", shown)
    folder = tmp_path / "classifier_cifar10_lt"
    folder.mkdir()

    def last_bar() -> str:
        return shown.file.getvalue().rstrip().rpartition("\r")[2]

    with Monitor(folder, 1000, 3877, enabled=True) as monitor:
        assert "saved 1000" in last_bar(), "which the run goes on from"
        monitor.record(1040, {"loss": 1.115, "images_per_s": 574.2, "seconds_left": 630.0})
        monitor.saved(1140)
        monitor.record(1200, {"loss": 1.025, "images_per_s": 574.2, "seconds_left": 600.0})
    whole = ("1200/3877", "574 images/s", "left", "loss 1.025", "saved 1140")
    assert [text for text in whole if text not in last_bar()] == []
