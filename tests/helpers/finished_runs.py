"""Finished runs that nobody trained, and what a report makes of them."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from lt_train.commands.report import main
from lt_train.files import seal
from lt_train.run_files import PREDICTION, write_predictions, write_record, write_result

COUNTS = [500, 120, 60, 10]
NAMES = ["cat", "dog", "fox", "owl"]
CONFUSION = [  # 90, 80, 70 and 40 % of its classes, 70 % of all
    [9, 1, 0, 0],
    [2, 8, 0, 0],
    [3, 0, 7, 0],
    [0, 5, 1, 4],
]


def split_metrics(top1: float = 70.0, prefix: str = "", **changes) -> dict:
    values = {
        "top1": top1,
        "top5": 99.0,
        "balanced": 70.0,
        "many_shot": 85.0,
        "medium_shot": 70.0,
        "few_shot": 40.0,
        "ece": 12.34,
        "per_class": [90.0, 80.0, 70.0, 40.0],
        "confusion": CONFUSION,
        **changes,
    }
    return {"samples": 40, **{prefix + name: value for name, value in values.items()}}


def write_run(
    folder: Path,
    metrics: dict | None = None,
    predictions: dict[str, np.ndarray] | None = None,
    **changes,
) -> dict:
    """A finished run as lt_train/training leaves it; ``changes`` go into its result.json."""
    if metrics is None:
        metrics = {"val": split_metrics(71.5), "test": split_metrics()}
    result = {
        "method": "classifier",
        "description": "Cross-entropy",
        "headline": "top1",
        "metrics": metrics,
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
    result |= write_predictions(folder, predictions or {})
    write_result(folder, result)
    records = [
        {"step": step, "epoch": step / 100, "loss": 2 / step, "lr": 0.1, "last_step": 200}
        for step in (50, 100, 150, 200)
    ]
    records += [
        {"step": step, "split": "val", result["headline"]: 50.0 + step / 10} for step in (100, 200)
    ]
    (folder / "metrics.jsonl").write_bytes(b"".join(map(write_record, records)))
    return result


def predicted(confusion: list[list[int]] = CONFUSION) -> np.ndarray:
    """Predictions that have this confusion matrix: images of a class follow each other, those that
    were right first; each is surer than the one before.
    """
    pairs = []
    for label, row in enumerate(confusion):
        for guess in sorted(range(len(row)), key=lambda guess: guess != label):
            pairs += [(label, guess)] * row[guess]
    found = np.empty(len(pairs), PREDICTION)
    found["sample_id"] = np.arange(len(pairs))
    found["label"], found["predicted"] = np.transpose(pairs)
    found["confidence"] = np.linspace(0.4, 0.9, len(pairs))
    return found


def write_posthoc(folder: Path, selected_on: str, *classifiers: dict) -> None:
    """Post-hoc classifiers of a run as lt_train/commands/posthoc.py leaves them."""
    content = {"selected_on": selected_on, "classifiers": classifiers}
    (folder / "posthoc.json").write_bytes(seal(content))


def report(*words: str | Path) -> tuple[str, str]:
    """Markdown and HTML of a report on these folders, which goes to the first of them."""
    assert main([*map(str, words), "--out", str(words[0])]) == 0
    return (Path(words[0]) / "report.md").read_text(), (Path(words[0]) / "report.html").read_text()


def table_of(markdown: str, of: str = "split") -> dict[str, dict[str, str]]:
    """Cells by row and column of the table that has a column ``of`` this name."""
    for block in markdown.split("\n\n"):
        lines = [line.strip("|") for line in block.splitlines() if line.startswith("|")]
        header, _, *rows = map(_cells, lines) if lines else ([], [])
        if of in header:
            return {row[0]: dict(zip(header, row)) for row in rows}
    raise AssertionError(f"no table with a column {of}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(" | ")]


class Page(HTMLParser):
    """Tags, addresses that a browser would fetch or lead to, and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.texts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.addresses.append(value)
            self.addresses += re.findall(r"url\((.*?)\)", value or "")

    def handle_data(self, text):
        self.texts.append(text.strip())
