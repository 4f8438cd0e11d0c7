"""The plots: what they show, and that many classes do not swell them."""

import numpy as np
import pytest

from tests.helpers.finished_runs import CONFUSION, NAMES, Page, report, split_metrics, write_run


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
    assert len(page.encode()) < 1_000_000 and "Genus" not in page
