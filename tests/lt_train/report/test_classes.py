"""Tables of classes."""

import re

import numpy as np

from tests.helpers.finished_runs import (
    CONFUSION,
    Page,
    predicted,
    report,
    split_metrics,
    write_run,
)


def listed(page: str) -> list[list[str]]:
    """Cells of the table of classes."""
    table = page.partition('<table class="sorts">')[2].partition("</table>")[0]
    rows = re.findall("<tr>(.*?)</tr>", table)
    return [[text for text in Page(row).texts if text] for row in rows]


def test_each_class_has_its_images_and_the_accuracy_of_each_run(tmp_path):
    write_run(tmp_path / "a")
    other = split_metrics(per_class=[100.0, 50.0, 25.0, 12.5], confusion=None)
    write_run(tmp_path / "b", {"test": other})
    header, *body = listed(report(tmp_path)[1])
    assert header == ["class", "training images", "test images", "a", "b"]
    assert body[0] == ["cat", "500", "10", "90.0", "100.0"]
    assert body[-1] == ["owl", "10", "10", "40.0", "12.5"]


def test_classes_without_test_images_are_no_zeros_anywhere(tmp_path):
    metrics = split_metrics(
        per_class=[90.0, 80.0, None, 40.0],
        class_samples=[10, 10, 0, 10],
        confusion=[*CONFUSION[:2], [0, 0, 0, 0], CONFUSION[3]],
    )
    write_run(tmp_path / "ce", {"test": metrics})
    markdown, page = report(tmp_path)
    assert [row[0] for row in listed(page)] == ["class", "cat", "dog", "owl"]
    assert "1 without test images are left out" in page
    svg = page.partition("<h2>Confusion</h2>")[2].partition("</svg>")[0]
    texts = Page(svg).texts
    assert len([text for text in texts if text.isdecimal()]) == 12, "three rows of four"
    assert texts.count("fox") == 1, "a column and no row"
    assert "1 class(es) without test images have no row" in page


def test_the_most_frequent_confusions_come_first(tmp_path):
    write_run(tmp_path / "ce")
    lines = [line for line in report(tmp_path)[0].splitlines() if "| ce |" in line]
    found = [line.strip("| ").split(" | ") for line in lines if " % |" in line]
    assert found[0] == ["ce", "owl", "dog", "5", "50.0 %"]
    assert [row[3] for row in found] == ["5", "3", "2", "1", "1"]


def test_confusions_of_more_classes_than_a_matrix_has_are_those_of_the_images(tmp_path):
    """Also what was taken for none of the classes, as by a sourcing classifier."""
    rows = predicted()
    rows["predicted"][0] = 4
    many = split_metrics(confusion=None)
    write_run(tmp_path / "ce", {"test": many}, predictions={"test": rows})
    markdown = report(tmp_path)[0]
    assert "| ce | owl | dog | 5 | 50.0 % |" in markdown
    assert "| ce | cat | none of the classes | 1 | 10.0 % |" in markdown


def test_names_stand_in_tables_as_they_are(tmp_path):
    names = ["<i>$x^2$", "猫", "قط", "a|🐈"]
    write_run(tmp_path / "ce", classes=names, predictions={"test": predicted()})
    markdown, page = report(tmp_path)
    assert [row[0] for row in listed(page)][1:] == names and "i" not in Page(page).tags
    svg = page.partition("<h2>Accuracy by class</h2>")[2].partition("</svg>")[0]
    assert set(names) <= set(Page(svg).texts), "the browser's fonts draw them"


def test_many_classes_are_those_of_fewest_images(tmp_path):
    classes = 1500
    counts = np.geomspace(1280, 2, classes).astype(int).tolist()
    accuracies = np.linspace(0, 100, classes).tolist()
    metrics = {"test": split_metrics(per_class=accuracies, confusion=None)}
    names = [f"species {number}" for number in range(classes)]
    write_run(tmp_path / "ce", metrics, class_counts=counts, classes=names)
    page = report(tmp_path)[1]
    rows = listed(page)[1:]
    assert len(rows) == 1000 and rows[-1][0] == names[-1]
    assert "the 1,000 with fewest training images of 1,500" in page
