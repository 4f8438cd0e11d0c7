"""Reports: the numbers in the table, what is said about them, and an HTML page that needs nothing
else.
"""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lt_train.commands.report import main
from lt_train.errors import exit_status

COUNTS = [500, 120, 60, 10]
NAMES = ["cat", "dog", "fox", "owl"]
CONFUSION = [
    [9, 1, 0, 0],
    [2, 8, 0, 0],
    [3, 0, 7, 0],
    [0, 5, 1, 4],
]  # 90, 80, 70 and 40 % of its classes, 70 % of all


def split_metrics(top1: float = 70.0, prefix: str = "", **changes) -> dict:
    values = {
        "top1": top1,
        "top5": 99.0,
        "balanced": 70.0,
        "many_shot": 85.0,
        "medium_shot": 70.0,
        "few_shot": 40.0,
    }
    values |= {
        "ece": 12.34,
        "per_class": [90.0, 80.0, 70.0, 40.0],
        "confusion": CONFUSION,
        **changes,
    }
    return {"samples": 40, **{prefix + name: value for name, value in values.items()}}


def write_run(folder: Path, metrics: dict | None = None, **changes) -> dict:
    """A finished run as lt_train/train.py leaves it; ``changes`` go into its result.json."""
    result = {
        "method": "classifier",
        "description": "Cross-entropy",
        "headline": "top1",
        "metrics": metrics or {"val": split_metrics(71.5), "test": split_metrics()},
        "steps": 200,
        "epochs": 2.0,
        "train_samples": 690,
        "class_counts": COUNTS,
        "classes": NAMES,
        "seconds": 61.7,
        "ranks": 2,
        "global_batch_size": 8,
        "precision": "bfloat16",
        "device": "cpu",
        "finished": "2026-01-02T03:04:05+00:00",
        "versions": {"lt-train": "0.1.0", "torch": "2.14.1"},
        "seed": 0,
        "reference_error": None,
        "selected_on": "last",
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    records = [
        {"step": step, "epoch": step / 100, "loss": 2 / step, "lr": 0.1, "last_step": 200}
        for step in (50, 100, 150, 200)
    ]
    records += [
        {"step": step, "split": "val", result["headline"]: 50.0 + step / 10} for step in (100, 200)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return result


def report(*words: str | Path) -> tuple[str, str]:
    """Markdown and HTML of a report on these folders, which goes to the first of them."""
    assert main([*map(str, words), "--out", str(words[0])]) == 0
    return (Path(words[0]) / "report.md").read_text(), (Path(words[0]) / "report.html").read_text()


def table_of(markdown: str) -> dict[str, dict[str, str]]:
    """Cells by row and column."""
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in markdown.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: dict(zip(header, row)) for row in rows}


class Page(HTMLParser):
    """Tags, addresses that a browser would fetch or lead to, and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "srcset", "action", "data")
        ]
        self.addresses += [
            address
            for _, value in attributes
            for address in re.findall(r"url\((.*?)\)", value or "")
        ]

    def handle_data(self, text):
        self.texts.append(text.strip())


def test_table_shows_the_test_split_with_error_and_columns_that_have_values(tmp_path, capsys):
    write_run(tmp_path / "scratch")
    write_run(
        tmp_path / "only_val",
        {"val": split_metrics(55.5, few_shot=None)},
        finished="2026-01-02T04:00:00+00:00",
    )
    markdown, page = report(tmp_path)
    rows = table_of(markdown)
    assert rows["scratch"] == {
        "run": "scratch", "split": "test", "top-1": "70.0", "balanced": "70.0", "many": "85.0", "medium": "70.0", "few": "40.0",
        "ECE": "12.3", "error": "30.00", "seconds": "62",
    }  # fmt: skip
    assert (rows["only_val"]["split"], rows["only_val"]["top-1"], rows["only_val"]["few"]) == (
        "val",
        "55.5",
        "-",
    )
    said = capsys.readouterr().out
    assert "scratch" in said and "12.3" in said and str(tmp_path / "report.html") in said
    for text in (
        "30.00",
        "Cross-entropy. 2 epochs, 200 steps of 8 on 690 images; 2 rank(s), cpu, bfloat16",
    ):
        assert text in markdown and text in page


def test_seeds_are_mean_and_sample_standard_deviation(tmp_path):
    """70, 72 and 77 have mean 73 and deviation sqrt((9 + 1 + 16) / 2) = 3.606."""
    for seed, top1 in enumerate((70.0, 72.0, 77.0)):
        write_run(
            tmp_path / f"ce-seed{seed}",
            {"test": split_metrics(top1)},
            seed=seed,
            reference_error=29.5,
            seconds=100.0 * seed,
        )
    write_run(tmp_path / "other-seed0")
    markdown, _ = report(tmp_path)
    rows = table_of(markdown)
    assert set(rows) == {"ce", "other-seed0"}
    assert [rows["ce"][column] for column in ("seeds", "top-1", "error", "diff.", "seconds")] == [
        "3",
        "73.0 ± 3.6",
        "27.00 ± 3.61",
        "-2.50",
        "100",
    ]
    assert rows["other-seed0"]["seeds"] == "-" and "seeds 0, 1, 2;" in markdown


def test_seeds_of_a_pipeline_are_matched_stage_by_stage_and_other_settings_kept_apart(tmp_path):
    for seed, top1 in enumerate((60.0, 62.0)):
        write_run(
            tmp_path / f"demo-seed{seed}" / "scratch", {"test": split_metrics(top1)}, seed=seed
        )
        write_run(
            tmp_path / f"demo-seed{seed}" / "crt",
            {"test": split_metrics(top1 + 10)},
            seed=seed,
            steps=100 + seed,
        )
    markdown, _ = report(tmp_path / "demo-seed0", tmp_path / "demo-seed1")
    rows = table_of(markdown)
    assert rows["demo/scratch"]["top-1"] == "61.0 ± 1.4"
    assert (
        rows["demo-seed0/crt"]["top-1"] == "70.0" and rows["demo-seed1/crt"]["top-1"] == "72.0"
    ), "they had different numbers of steps"
    assert markdown.startswith("# demo\n")


def test_runs_with_one_seed_twice_are_told(tmp_path):
    for number in (0, 1):
        write_run(tmp_path / f"ce-seed{number}", seed=3)
    assert "do not differ in the seed (3, 3)" in report(tmp_path)[0]


def test_reference_and_difference_stand_beside_our_error_only_where_there_is_one(tmp_path):
    write_run(tmp_path / "with", reference_error=29.64)
    write_run(tmp_path / "without")
    write_run(tmp_path / "validated", {"val": split_metrics()}, reference_error=29.64)
    markdown, page = report(tmp_path)
    rows = table_of(markdown)
    assert (rows["with"]["error"], rows["with"]["reference"], rows["with"]["diff."]) == (
        "30.00",
        "29.64",
        "+0.36",
    )
    assert (rows["without"]["reference"], rows["without"]["diff."]) == ("-", "-")
    assert (rows["validated"]["reference"], rows["validated"]["diff."]) == (
        "29.64",
        "-",
    ), "validation error is not comparable"
    assert "Beside the reference" in page and {"29.64", "30.00"} <= set(Page(page).texts)


def test_weights_selected_on_the_test_split_are_marked_and_explained_everywhere(tmp_path, capsys):
    for selected_on in ("test", "val", "last"):
        write_run(tmp_path / f"by_{selected_on}", selected_on=selected_on)
    markdown, page = report(tmp_path)
    remark = "weights were selected on the test split, as the reference does; not a fair estimate"
    for text in (markdown, page, capsys.readouterr().out):
        assert text.count(remark) == 1 and "by_test †" in text and "by_val †" not in text
    assert "**by_val**: weights were selected on the validation split" in markdown
    assert not [line for line in markdown.splitlines() if "by_last" in line and "selected" in line]


def test_heads_are_rows_of_their_own(tmp_path):
    heads = [
        {
            "name": "tau-norm",
            "parameter": "tau 0.7",
            "metrics": {"val": split_metrics(1.0), "test": split_metrics(74.0)},
        },
        {"name": "NCM", "parameter": None, "metrics": {"test": split_metrics(72.0)}},
    ]
    for name, selected_on, weights in (
        ("fair", "val", "last"),
        ("unfair", "test", "last"),
        ("tainted", "val", "test"),
    ):
        write_run(tmp_path / name, selected_on=weights, reference_error=20.0)
        (tmp_path / name / "posthoc.json").write_text(
            json.dumps({"selected_on": selected_on, "heads": heads})
        )
    markdown, _ = report(tmp_path)
    rows = table_of(markdown)
    assert (
        rows["fair: tau-norm (tau 0.7)"]["top-1"] == "74.0" and rows["fair: NCM"]["top-1"] == "72.0"
    )
    assert (rows["fair"]["reference"], rows["fair: NCM"]["reference"]) == ("20.00", "-")
    assert (
        "**fair: tau-norm (tau 0.7)**: its parameter was selected on the validation split"
        in markdown
    )
    assert (
        "**† unfair: tau-norm (tau 0.7)**: its parameter was selected on the test split" in markdown
    )
    assert "unfair: NCM" in rows and "tainted: NCM †" in rows, (
        "a head without a parameter is as fair as the weights below it"
    )


def test_heads_of_several_seeds_share_a_row_that_names_all_parameters(tmp_path):
    for seed, (tau, top1) in enumerate((("tau 0.6", 70.0), ("tau 0.8", 74.0))):
        write_run(tmp_path / f"ce-seed{seed}", seed=seed)
        heads = [{"name": "tau-norm", "parameter": tau, "metrics": {"test": split_metrics(top1)}}]
        (tmp_path / f"ce-seed{seed}" / "posthoc.json").write_text(
            json.dumps({"selected_on": "val", "heads": heads})
        )
    assert table_of(report(tmp_path)[0])["ce: tau-norm (tau 0.6, tau 0.8)"]["top-1"] == "72.0 ± 2.8"


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
    assert (
        "**killed**: unfinished, step 120 of 500; not in the table" in markdown and "killed" in page
    )
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
    result = write_run(
        tmp_path / "moco",
        {"test": {**old, "knn_per_class": [90.0, 80.0, None, 40.0]}},
        headline="knn_top1",
        method="moco",
    )
    for key in ("seed", "reference_error", "selected_on"):
        result.pop(key)
    (tmp_path / "moco" / "result.json").write_text(json.dumps(result))
    markdown, page = report(tmp_path)
    row = table_of(markdown)["moco (k-NN)"]
    assert (row["top-1"], row["balanced"], row["many"], row["few"]) == (
        "70.0",
        "70.0",
        "85.0",
        "40.0",
    )
    assert "ECE" not in row and "Confusion" not in page and "Accuracy by class" in page


def test_names_and_descriptions_are_text_whatever_they_hold(tmp_path):
    nasty = ["<script>alert(1)</script>", "$\\frac{$", "a|b & <b>", "_x [y](http://z.example)"]
    description = (
        "| *x* <script>alert(2)</script> [link](http://z.example) ![i](http://z.example/i.png)"
    )
    write_run(tmp_path / "run <b>", classes=nasty, description=description)
    markdown, page = report(tmp_path)
    parsed = Page(page)
    assert not {"script", "b", "a", "img", "em"} & set(parsed.tags)
    texts = " ".join(parsed.texts)
    assert "<script>alert(2)</script> [link](http://z.example)" in texts and "run <b>" in texts
    assert "$\\frac{$" in texts and "a|b & <b>" in texts, "class names on the axes"
    assert (
        "<script" not in markdown.replace("\\<script", "")
        and table_of(markdown)["run \\<b\\>"]["top-1"] == "70.0"
    )


def test_page_needs_nothing_else(tmp_path):
    write_run(tmp_path / "ce", reference_error=29.64)
    _, page = report(tmp_path)
    parsed = Page(page)
    assert parsed.tags.count("svg") == 5, "reference, groups, classes, training, confusion"
    assert parsed.addresses and all(
        address.startswith(("#", "data:image/png;base64,")) for address in parsed.addresses
    )
    assert not re.findall(r"https?:", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert "prefers-color-scheme: dark" in page and "currentColor" in page and "#010203" not in page
    ids = re.findall(r'\bid="(.*?)"', page)
    assert len(ids) == len(set(ids))


def test_the_same_results_give_the_same_bytes(tmp_path):
    write_run(tmp_path / "ce", reference_error=29.64)
    assert report(tmp_path) == report(tmp_path)


def test_confusion_is_in_percent_of_each_true_class_over_all_seeds(tmp_path):
    for seed, row in enumerate(([9, 1, 0, 0], [4, 6, 0, 0])):
        write_run(
            tmp_path / f"ce-seed{seed}",
            {"test": split_metrics(confusion=[row, *CONFUSION[1:]])},
            seed=seed,
        )
    svg = report(tmp_path)[1].rpartition("<h2>Confusion</h2>")[2].partition("</svg>")[0]
    cells = [text for text in Page(svg).texts if text.isdecimal()]
    assert cells[:8] == ["65", "35", "0", "0", "20", "80", "0", "0"]


def test_classes_are_ordered_by_their_training_images(tmp_path):
    write_run(
        tmp_path / "ce", {"test": split_metrics(confusion=None)}, class_counts=[60, 500, 10, 120]
    )
    svg = report(tmp_path)[1].partition("<h2>Accuracy by class</h2>")[2].partition("</svg>")[0]
    assert [text for text in Page(svg).texts if text in NAMES] == ["dog", "owl", "cat", "fox"]


@pytest.mark.parametrize("classes", [1000, 8142])
def test_many_classes_stay_small_and_without_names(classes, tmp_path):
    counts = np.geomspace(1280, 2, classes).astype(int).tolist()
    for number in range(3):
        accuracies = np.random.default_rng(number).uniform(0, 100, classes).tolist()
        metrics = {"test": split_metrics(per_class=accuracies, confusion=None)}
        write_run(
            tmp_path / f"run{number}",
            metrics,
            class_counts=counts,
            classes=[f"Genus species{index}" for index in range(classes)],
        )
    _, page = report(tmp_path)
    assert "Accuracy by class" in page and f"of {classes:,}" in page
    assert len(page.encode()) < 1_000_000 and "Genus" not in page


def test_one_run_and_where_the_report_goes(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "ce")
    write_run(tmp_path / "other")
    monkeypatch.setattr(sys, "argv", ["lt_train.report", str(tmp_path / "ce")])
    assert main() == 0
    assert set(table_of((tmp_path / "ce" / "report.md").read_text())) == {"ce"}
    monkeypatch.chdir(tmp_path)
    assert main(["ce", "other"]) == 0
    assert set(table_of((tmp_path / "reports" / "report.md").read_text())) == {"ce", "other"}
    assert "reports/report.html" in capsys.readouterr().out


def damage(content: str):
    def prepare(folder: Path) -> None:
        write_run(folder / "ce")
        (folder / "ce" / "result.json").write_text(content)

    return prepare


def changed(**changes):
    return lambda folder: write_run(folder / "ce", **changes)


def with_heads(content: str):
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
    "bad counts": (changed(class_counts=["x"]), "ce/result.json is damaged"),
    "bad heads": (with_heads('{"heads": [{}]}'), "ce/posthoc.json is damaged: it has no 'name'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_error_is_one_line_that_names_what_is_wrong(case, tmp_path, capsys):
    prepare, words = ERRORS[case]
    prepare(tmp_path / "runs")
    assert exit_status("lt_train", lambda: main([str(tmp_path / "runs")])) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and str(tmp_path / "runs") in said.err


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    write_run(tmp_path / "ce")
    (tmp_path / "file").write_text("")
    assert (
        exit_status(
            "lt_train",
            lambda: main([str(tmp_path / "ce"), "--out", str(tmp_path / "file" / "out")]),
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "cannot write the report to" in said and "--out" in said and said.count("\n") == 1
