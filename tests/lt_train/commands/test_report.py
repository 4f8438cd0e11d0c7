"""The command report: where its files go."""

import sys

from lt_train.commands.report import main
from lt_train.errors import exit_status
from tests.helpers.finished_runs import table_of, write_run


def test_one_run_and_where_the_report_goes(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "ce")
    write_run(tmp_path / "other")
    monkeypatch.setattr(sys, "argv", ["lt_train report", str(tmp_path / "ce")])
    assert main() == 0
    assert set(table_of((tmp_path / "ce" / "report.md").read_text())) == {"ce"}
    monkeypatch.chdir(tmp_path)
    assert main(["ce", "other"]) == 0
    assert set(table_of((tmp_path / "reports" / "report.md").read_text())) == {"ce", "other"}
    assert "reports/report.html" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "ce")
    (tmp_path / "file").write_text("")
    words = [str(tmp_path / "ce"), "--out", str(tmp_path / "file" / "out")]
    assert exit_status("lt_train", lambda: main(words)) == 2
    said = capsys.readouterr().err
    assert "cannot write the report to" in said and "--out" in said and said.count("\n") == 1
