"""What a report says of how runs were made."""

from lt_train.report.rows import make_rows
from lt_train.report.runs import read_runs
from lt_train.report.settings import settings
from tests.helpers.finished_runs import report, table_of, write_run

CONFIG = {
    "epochs": 2.0,
    "compressed_by": 1.0,
    "max_steps": None,
    "data": {"root": "data/own"},
    "unlabeled": {"root": "data/pool"},
    "model": {"backbone": "resnet10", "init_from": "runs/moco"},
    "optim": {"lr": 0.1, "scale_lr": True, "lr_batch_size": 256, "schedule": "cosine"},
}


def test_a_run_says_what_it_was_made_of_and_by_which_command(tmp_path):
    made_by = {
        "command": "python -m lt_train mine 'run.dir=a `b`' seed=1",
        "commit": "0123456789abcdef0123 with changes",
    }
    write_run(tmp_path / "new", config=CONFIG, **made_by)
    write_run(tmp_path / "old")
    (tmp_path / "old" / "config.yaml").write_text("optim: {lr: 0.3, scale_lr: false}\n")
    markdown, page = report(tmp_path)
    rows = table_of(markdown, "learning rate")
    assert rows["new"] == {
        "run": "new",
        "method": "classifier",
        "data set": "data/own and data/pool",
        "network": "resnet10, from runs/moco",
        "learning rate": "0.003125, cosine",  # of a batch of 8, not 256
        "batch": "8",
        "epochs": "2",
        "steps": "200",
        "seed": "0",
        "commit": "0123456789 with changes",
    }
    assert (rows["old"]["learning rate"], rows["old"]["network"]) == ("0.3", "-")
    assert f"`` {made_by['command']} ``" in markdown and "Command: <code>python" in page
    assert "[new](new)" in markdown and 'href="old"' in page


def test_shortened_trainings_are_trials_everywhere(tmp_path, capsys):
    cases = {
        "whole": {},
        "compressed": {"compressed_by": 20.0},
        "cut": {"epochs": 90.0, "max_steps": 200},
        "uncut": {"max_steps": 1000},
    }
    for name, changes in cases.items():
        write_run(tmp_path / name, config={**CONFIG, **changes})
    markdown, page = report(tmp_path)
    shown = {"whole", "compressed (trial)", "cut (trial)", "uncut"}
    assert set(table_of(markdown)) == set(table_of(markdown, "over")) == shown
    for text in (markdown, page, capsys.readouterr().out):
        assert "a trial: its numbers of epochs were divided by 20" in text
        assert "a trial: it was cut after 2 of 90 epochs" in text


def test_damaged_configs_of_old_runs_are_no_hindrance(tmp_path):
    write_run(tmp_path / "old")
    (tmp_path / "old" / "config.yaml").write_bytes(b"optim: {lr: \xff\n")
    (run,), _ = read_runs([tmp_path])
    assert run.config == {} and "learning rate" not in settings(make_rows([run]))[0]
