"""Exit statuses: what a user must mend is told apart from a disk or a network that failed."""

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from data_prep.reading.lists import read_list
from lt_train.commands.results import write_metrics
from lt_train.config.load import load_config
from lt_train.data.dataset import read_dataset
from lt_train.errors import (
    EXIT_LOST_PEER,
    EXIT_MACHINE,
    EXIT_MISTAKE,
    exit_status,
    report_error,
    unreadable,
    unwritable,
)
from lt_train.files import write_atomically
from lt_train.models.tensor_files import read_tensors
from lt_train.run_files import read_result

STATUSES = {
    errno.ENOENT: EXIT_MISTAKE,
    errno.EACCES: EXIT_MISTAKE,
    errno.EISDIR: EXIT_MISTAKE,
    errno.EEXIST: EXIT_MISTAKE,
    errno.ENAMETOOLONG: EXIT_MISTAKE,
    errno.EIO: EXIT_MACHINE,
    errno.ESTALE: EXIT_MACHINE,
    errno.ETIMEDOUT: EXIT_MACHINE,
    errno.EREMOTEIO: EXIT_MACHINE,
    errno.ENOSPC: EXIT_MACHINE,
    errno.EROFS: EXIT_MACHINE,
    errno.EDQUOT: EXIT_MACHINE,
    errno.EMFILE: EXIT_MACHINE,
}


def os_error(number: int, path: object = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize("number", STATUSES, ids=errno.errorcode.get)
def test_each_errno_has_its_status(number):
    for wrapped in (unreadable, unwritable):
        assert wrapped(os_error(number), "cannot").status == STATUSES[number]


def test_an_error_without_an_errno_is_about_content_where_one_reads_and_the_disk_where_one_writes():
    assert unreadable(ValueError("odd"), "cannot").status == EXIT_MISTAKE
    assert unwritable(RuntimeError("unexpected pos 64 vs 0"), "cannot").status == EXIT_MACHINE


def test_a_failing_disk_is_one_line_wherever_it_is_met(capsys):
    def main() -> int:
        raise os_error(errno.EIO, "/data/x")

    assert exit_status("lt_train", main) == EXIT_MACHINE
    assert capsys.readouterr().err == (
        "lt_train: error: /data/x: Input/output error; the machine failed, try again\n"
    )


def test_the_status_is_the_same_where_the_line_cannot_be_written(monkeypatch):
    """As the log of a job on the disk that is full."""

    def main() -> int:
        raise os_error(errno.ENOSPC, "run")

    class FullDisk(io.StringIO):
        def flush(self) -> None:
            raise os_error(errno.ENOSPC)

    monkeypatch.setattr(sys, "stderr", FullDisk())
    assert exit_status("lt_train", main) == EXIT_MACHINE


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a data set": ("dataset.json", lambda path: read_dataset(path.parent)),
    "a result": ("result.json", lambda path: read_result(path.parent)),
    "a config": ("mine.yaml", lambda path: load_config(str(path), [])),
    "weights": ("backbone.safetensors", read_tensors),
    "a checkpoint of torch": ("backbone.pth", read_tensors),
    "a list": ("train.txt", read_list),
    "metrics": (".all.json", lambda path: write_metrics(path.with_name("all.json"), {})),
}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOSPC])
@pytest.mark.parametrize("case", READERS)
def test_every_reader_and_writer_tells_them_apart(case, number, tmp_path, monkeypatch, capsys):
    name, act = READERS[case]
    write_atomically(tmp_path / name, b"{}")
    opened = builtins.open

    def fail(path, *arguments, **named):
        if str(path).startswith(str(tmp_path / name)):
            raise os_error(number, str(path))
        return opened(path, *arguments, **named)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", fail)
    status = exit_status("lt_train", lambda: act(tmp_path / name))
    said = capsys.readouterr().err
    assert status == STATUSES[number], said
    assert said.count("\n") == 1 and os.strerror(number) in said and str(tmp_path) in said


def test_the_last_word_of_torchrun_s_report_is_ours(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    report_error("lt_train", "no such\nset")
    report = str(ChildFailedError("lt_train", {0: ProcessFailure(0, 1, EXIT_MISTAKE, str(file))}))
    *_, last, border = report.splitlines()
    assert last == "  traceback : lt_train: error: no such set" and set(border) == {"="}
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no" / "folder"))
    report_error("lt_train", "it is said all the same")


def test_to_torchrun_a_rank_that_was_killed_is_the_cause_not_those_that_lost_it(
    tmp_path, monkeypatch
):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    report_error("lt_train", "lost contact", EXIT_LOST_PEER)
    killed = ProcessFailure(1, 1, -9, "none")
    lost = ProcessFailure(0, 1, EXIT_LOST_PEER, str(file))
    assert ChildFailedError("lt_train", {1: killed, 0: lost}).get_first_failure() == (1, killed)
