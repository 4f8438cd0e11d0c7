"""What the commands give to people and to scripts: results on stdout, words on stderr."""

import json
from functools import partial

import pytest

from lt_train.__main__ import main
from lt_train.errors import exit_status
from tests.helpers.commands import read, refused, run, words


@pytest.mark.parametrize(
    ("command", "name"), [("evaluate", "evaluation.json"), ("posthoc", "posthoc.json")]
)
def test_a_script_gets_on_stdout_what_the_file_holds(command, name, copied, capsys):
    run(command, copied, "--json")
    printed = json.loads(capsys.readouterr().out)
    written = read(copied, name)
    assert len(written.pop("sha256")) == 64 and printed == written


def test_a_person_gets_the_table_on_stdout_and_words_on_stderr(copied, capsys):
    run("evaluate", copied)
    said = capsys.readouterr()
    for split in ("val", "test"):
        assert f"{read(copied)['metrics'][split]['top1']:.2f}" in said.out
    assert "by class, and confusion" in said.err and "top1" not in said.err
    assert "by class" not in said.out


@pytest.mark.parametrize("command", ["evaluate", "posthoc"])
def test_what_was_measured_is_printed_even_where_it_cannot_be_written(command, copied, capsys):
    out = copied / "result.json" / "x.json"  # no folder
    status = exit_status("lt_train", partial(main, [command, str(copied), "--out", str(out)]))
    said = capsys.readouterr()
    assert status == 2 and "choose another file with --out" in said.err
    assert "test" in said.out and "│" in said.out


def test_training_ends_with_what_came_of_it_and_what_comes_next(tinted, tmp_path, capsys):
    folder = tmp_path / "run"
    run(*words("classifier_cifar10_lt", tinted, folder, "max_steps=2"))
    *_, done, following = capsys.readouterr().err.splitlines()
    metrics = read(folder)["metrics"]
    numbers = ", ".join(f"top1 {metrics[split]['top1']:.2f} on {split}" for split in metrics)
    assert done == f"done: {numbers}; weights and result.json in {folder}"
    assert f"python -m lt_train COMMAND {folder}" in following and "predict" in following


def test_pre_training_ends_with_how_a_classifier_starts_from_it(tinted, tmp_path, capsys):
    folder = tmp_path / "run"
    run(*words("rotation_cifar10_lt", tinted, folder, "max_steps=2"))
    *_, done, start, following = capsys.readouterr().err.splitlines()
    assert "knn_top1" in done and f"model.init_from={folder}" in start
    assert "predict" not in following
    assert "no classifier" in refused(capsys, "posthoc", folder)
