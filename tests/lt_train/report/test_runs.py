"""Runs as they are read: unfinished ones, old ones and damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lt_train.commands.report import main
from lt_train.errors import exit_status
from lt_train.report.runs import read_runs
from tests.helpers.finished_runs import predicted, report, split_metrics, table_of, write_run


def test_unfinished_runs_and_losses_that_were_not_finite_are_told(tmp_path):
    write_run(tmp_path / "done")
    (tmp_path / "done" / "nonfinite.json").write_text('{"step": 7, "sample_ids": [1]}')
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "metrics.jsonl").write_text(
        '{"step": 120, "loss": 1.5, "last_step": 500}\n{"step": 130, "lo'
    )
    (tmp_path / "waiting").mkdir()
    (tmp_path / "waiting" / "config.yaml").write_text("method: classifier\n")
    markdown, page = report(tmp_path)
    assert "**done**: its loss was not finite at step 7" in markdown
    assert "**killed**: unfinished, step 120 of 500; not in the table" in markdown
    assert "killed" in page
    assert "**waiting**: unfinished, nothing logged yet; not in the table" in markdown
    assert set(table_of(markdown)) == {"done"}


def test_old_results_and_knn_metrics(tmp_path):
    """Results from before balanced, ece, confusion, seed, reference_error and selected_on; balanced
    follows from the classes.
    """
    old = {
        key: value
        for key, value in split_metrics(prefix="knn_").items()
        if not key.endswith(("balanced", "ece", "confusion"))
    }
    metrics = {"test": {**old, "knn_per_class": [90.0, 80.0, None, 40.0]}}
    result = write_run(tmp_path / "moco", metrics, headline="knn_top1", method="moco")
    for key in ("seed", "reference_error", "selected_on"):
        result.pop(key)
    (tmp_path / "moco" / "result.json").write_text(json.dumps(result))
    markdown, page = report(tmp_path)
    row = table_of(markdown)["moco (k-NN)"]
    shown = [row[column] for column in ("top-1", "balanced", "many", "few")]
    assert shown == ["70.0", "70.0", "85.0", "40.0"]
    assert "ECE" not in row and "Confusion" not in page and "Accuracy by class" in page


def damage(content: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        write_run(folder / "ce")
        (folder / "ce" / "result.json").write_text(content)

    return prepare


def changed(**changes) -> Callable[[Path], dict]:
    return lambda folder: write_run(folder / "ce", **changes)


def with_posthoc(content: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        write_run(folder / "ce")
        (folder / "ce" / "posthoc.json").write_text(content)

    return prepare


def only_unfinished(folder: Path) -> None:
    (folder / "ce").mkdir(parents=True)
    (folder / "ce" / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0, "last_step": 9}\n')


ERRORS = {
    "missing": (lambda folder: None, "not a folder"),
    "empty": (lambda folder: folder.mkdir(), "there is no run in"),
    "unfinished": (only_unfinished, "ce: unfinished, step 5 of 9"),
    "cut short": (damage('{"method": "cla'), "ce/result.json is damaged"),
    "not text": (damage("\x00\x00"), "ce/result.json is damaged"),
    "a list": (damage("[]"), "ce/result.json is damaged: it does not hold an object"),
    "no metrics": (
        damage('{"method": "classifier", "headline": "top1"}'),
        "ce/result.json is damaged: it has no 'metrics'",
    ),
    "wrong type": (changed(steps="many"), "'steps' cannot be \"many\""),
    "bad accuracy": (
        changed(metrics={"test": split_metrics(top1="high")}),
        "ce/result.json is damaged",
    ),
    "bad split": (changed(metrics={"test": 3}), "ce/result.json is damaged"),
    "ragged confusion": (
        changed(metrics={"test": split_metrics(confusion=[[1, 2], [3]])}),
        "ce/result.json is damaged",
    ),
    "null": (damage("null"), "ce/result.json is damaged: it does not hold an object"),
    "deep": (damage("[" * 10**5), "ce/result.json is damaged: it is nested too deeply"),
    "a split of numbers": (changed(metrics={"test": [3]}), "ce/result.json is damaged"),
    "no end of steps": (changed(steps=10**400), "'steps' cannot be 1000"),
    "no end of seconds": (changed(seconds=float("inf")), "'seconds' cannot be Infinity"),
    "infinite accuracy": (
        changed(metrics={"test": split_metrics(top1=float("inf"))}),
        "its top1 is no percentage",
    ),
    "a huge accuracy": (changed(metrics={"test": split_metrics(top1=10**400)}), "is damaged"),
    "bad counts": (changed(class_counts=["x"]), "'class_counts' cannot be [\"x\"]"),
    "nested counts": (
        changed(class_counts=[[1, 2], [3, 4]]),
        "'class_counts' cannot be [[1, 2]",
    ),
    "huge counts": (changed(class_counts=[1, 10**30]), "'class_counts' cannot be [1, 1000"),
    "fractions of counts": (changed(class_counts=[1, 2.5]), "'class_counts' cannot be [1, 2.5]"),
    "samples of other classes": (
        changed(metrics={"test": split_metrics(class_samples=[10, 10])}),
        "its numbers of images a class are none",
    ),
    "an accuracy of no images": (
        changed(metrics={"test": split_metrics(class_samples=[10, 10, 10, 0])}),
        "its accuracies are of other classes than its images",
    ),
    "bad classifiers": (
        with_posthoc('{"classifiers": [{}]}'),
        "ce/posthoc.json is damaged: it has no 'name'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_error_is_one_line_that_names_what_is_wrong(case, tmp_path, capsys):
    prepare, words = ERRORS[case]
    prepare(tmp_path / "runs")
    assert exit_status("lt_train", lambda: main([str(tmp_path / "runs")])) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and str(tmp_path / "runs") in said.err


def test_a_result_of_an_earlier_version_is_read(tmp_path):
    result = write_run(tmp_path / "old")
    result["stage"] = result.pop("method")
    (tmp_path / "old" / "result.json").write_text(json.dumps(result))
    (run,), _ = read_runs([tmp_path])
    assert run.result["method"] == "classifier"


def test_odd_lines_of_a_log_are_left_out_and_counted(tmp_path):
    write_run(tmp_path / "ce")
    log = tmp_path / "ce" / "metrics.jsonl"
    good = log.read_bytes()
    odd = [b"[]", b"5", b"\xff", b'{"loss": 1.0}', b'{"step": 3, "split": [1]}', b"[" * 10**5]
    log.write_bytes(b"\n".join([*odd, good]))
    ((run,), _) = read_runs([tmp_path])
    assert len(run.log) == good.count(b"\n")
    assert run.warnings == ("6 unreadable line(s) in its metrics.jsonl are left out",)
    report(tmp_path)


def test_predictions_are_read_as_written_or_left_out_with_a_word(tmp_path):
    rows = predicted()
    for name in ("whole", "damaged", "missing"):
        write_run(tmp_path / name, predictions={"val": rows[:3], "test": rows})
    file = tmp_path / "damaged" / "predictions.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (tmp_path / "missing" / "predictions.npz").unlink()
    runs = {run.name: run for run in read_runs([tmp_path])[0]}
    assert (runs["whole"].predictions == rows).all() and not runs["whole"].warnings
    for name, words in (("damaged", "not what was written"), ("missing", "No such file")):
        assert runs[name].predictions is None
        (warning,) = runs[name].warnings
        assert "predictions.npz is left out" in warning and words in warning
