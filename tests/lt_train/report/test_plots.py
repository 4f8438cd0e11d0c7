"""The plots: what they show, and that many classes do not swell them."""

import re

import numpy as np
import pytest

from lt_train.drawing.style import COLORS
from tests.helpers.finished_runs import (
    CONFUSION,
    NAMES,
    Page,
    predicted,
    report,
    split_metrics,
    write_run,
)


def test_confusion_is_in_percent_of_each_true_class_over_all_seeds(tmp_path):
    for seed, row in enumerate(([9, 1, 0, 0], [4, 6, 0, 0])):
        metrics = {"test": split_metrics(confusion=[row, *CONFUSION[1:]])}
        write_run(tmp_path / f"ce-seed{seed}", metrics, seed=seed)
    svg = report(tmp_path)[1].rpartition("<h2>Confusion</h2>")[2].partition("</svg>")[0]
    cells = [text for text in Page(svg).texts if text.isdecimal()]
    assert cells[:8] == ["65", "35", "0", "0", "20", "80", "0", "0"]


def test_classes_are_ordered_by_their_training_images(tmp_path):
    metrics = {"test": split_metrics(confusion=None)}
    write_run(tmp_path / "ce", metrics, class_counts=[60, 500, 10, 120])
    svg = report(tmp_path)[1].partition("<h2>Accuracy by class</h2>")[2].partition("</svg>")[0]
    assert [text for text in Page(svg).texts if text in NAMES] == ["dog", "owl", "cat", "fox"]


@pytest.mark.parametrize("classes", [1000, 8142])
def test_many_classes_stay_small_and_without_names(classes, tmp_path):
    counts = np.geomspace(1280, 2, classes).astype(int).tolist()
    names = [f"Genus species{index}" for index in range(classes)]
    for number in range(3):
        accuracies = np.random.default_rng(number).uniform(0, 100, classes).tolist()
        metrics = {"test": split_metrics(per_class=accuracies, confusion=None)}
        write_run(tmp_path / f"run{number}", metrics, class_counts=counts, classes=names)
    _, page = report(tmp_path)
    assert "Accuracy by class" in page and f"of {classes:,}" in page
    assert len(page.encode()) < 1_000_000
    assert not any("Genus" in svg for svg in re.findall("<svg.*?</svg>", page, re.DOTALL))


def test_equal_curves_can_be_told_apart(tmp_path):
    """By dashes and markers, and on the axis of classes side by side."""
    for name in "abc":
        write_run(tmp_path / name, predictions={"test": predicted()})
    page = report(tmp_path)[1]
    for section in ("Accuracy by class", "Calibration", "Training"):
        svg = page.partition(f"<h2>{section}</h2>")[2].partition("</svg>")[0]
        for color in COLORS[:3]:
            assert f"stroke: {color}" in svg
        dashes = re.findall('fill: none; (stroke-dasharray: [0-9.,]+)?[^"]*stroke: #', svg)
        assert len(set(dashes)) >= 3, section
    svg = page.partition("<h2>Accuracy by class</h2>")[2].partition("</svg>")[0]
    starts = [
        re.search(rf'<path d="M ([0-9.]+) [^"]*"[^>]*stroke: {c}', svg)[1] for c in COLORS[:3]
    ]
    assert len(set(starts)) == 3


def test_text_is_never_smaller_than_can_be_read(tmp_path):
    """On a narrow screen a plot scrolls rather than shrink below 11 pixels."""
    write_run(tmp_path / "ce", predictions={"test": predicted()}, reference_error=20.0)
    page = report(tmp_path)[1]
    figures = re.findall(r"--least: (\d+)px.*?(<svg.*?</svg>)", page, re.DOTALL)
    assert len(figures) == 6
    for least, svg in figures:
        width = float(re.search(r'viewBox="0 0 ([0-9.]+)', svg)[1])
        sizes = [
            float(size)
            for size in re.findall(r"font: ([0-9.]+)px|font-size: ([0-9.]+)", svg)[0]
            if size
        ]
        assert min(sizes) * int(least) / width >= 10.99


def test_a_legend_names_every_run_whatever_it_is_called(tmp_path):
    """Matplotlib leaves out what begins with an underscore."""
    names = ["_private", "长尾", "a $b$ <c>"]
    for name in names:
        write_run(tmp_path / name, predictions={"test": predicted()})
    page = report(tmp_path)[1]
    for section in ("Many, medium and few", "Accuracy by class", "Calibration", "Training"):
        svg = page.partition(f"<h2>{section}</h2>")[2].partition("</svg>")[0]
        texts = [text.lstrip("\u200b") for text in Page(svg).texts]
        assert set(names) <= set(texts), section
