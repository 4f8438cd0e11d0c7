"""The page about a prepared set."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.inspect import plot
from data_prep.reading.source import Source, SourceSplit
from lt_train.errors import UserError
from tests.helpers.commands import Encoded
from tests.helpers.finished_runs import Page
from tests.helpers.pictures import encode
from tests.helpers.sealed import rewrite
from tests.helpers.sources import prepared

CLASSES = ["<b>猫", "قط $x^2$", "🐈"]
COUNTS = {"train": [2, 5, 1], "test": [1, 1, 0]}


def part(labels: list[int] | None, sides: list[int]) -> SourceSplit:
    images = [encode(Image.new("RGB", (side, 20)), "PNG") for side in sides]
    keys = [f"image{number}" for number in range(len(images))]
    return SourceSplit(None if labels is None else np.array(labels), keys, Encoded(images))


@pytest.fixture
def root(tmp_path) -> Path:
    splits = {}
    for name, counts in COUNTS.items():
        labels = np.repeat(np.arange(3), counts)
        splits[name] = part(labels.tolist(), [20 + 40 * int(label) for label in labels])
    return prepared(Source("<i>cats", CLASSES, splits), tmp_path / "set")


def page_of(root: Path) -> str:
    plot(root, root.parent / "page.html")
    return (root.parent / "page.html").read_text()


def test_a_page_shows_counts_sizes_and_images_of_each_class(root):
    page = page_of(root)
    assert not {"b", "i"} & set(Page(page).tags) and "<i>cats" in Page(page).texts
    figures = re.findall("<figure>(.*?)</figure>", page, re.DOTALL)
    shown = []
    for figure in figures:
        texts = re.findall('base64,(.*?)"', figure)
        sizes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in texts]
        shown.append((sizes, *filter(None, Page(figure).texts)))
    assert shown == [
        ([(60, 20)] * 3, CLASSES[1], "5 train, 1 test"),
        ([(20, 20)] * 2, CLASSES[0], "2 train, 1 test"),
        ([(96, 19)], CLASSES[2], "1 train, 0 test"),
    ]
    assert '<td class="number">20 / 60 / 100</td>' in page, "widths: least, median, largest"
    assert "Image sizes" in page and "<p>None.</p>" in page
    assert "mathdefault" not in page


def test_a_page_says_what_was_rejected_and_why(root):
    def reject(content: dict) -> None:
        content["splits"]["train"]["rejected"] = 3

    rewrite(root / "dataset.json", reject)
    assert "3; rejected.jsonl, which names them, is not here" in page_of(root)
    lines = [
        {"split": "train", "key": f"bad{number}", "label": 0, "reason": reason}
        for number, reason in enumerate(["it is <empty>", "it is cut off", "it is cut off"])
    ]
    (root / "rejected.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = page_of(root).partition("Rejected images")[2].partition("<h2>")[0]
    rows = [[text for text in Page(row).texts if text] for row in section.split("<tr>")[2:]]
    assert rows[0][:4] == ["train", "it is cut off", "bad1", "2"]
    assert rows[1][:4] == ["train", "it is <empty>", "bad0", "1"]
    (root / "rejected.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="rejected.jsonl is damaged"):
        page_of(root)


def test_an_unlabeled_set_shows_its_images(tmp_path):
    root = prepared(Source("pool", [], {"train": part(None, [20] * 150)}), tmp_path / "set")
    page = page_of(root)
    assert page.count("<img") == 100 and "Class counts" not in page and "Image sizes" not in page


def test_a_plot_of_counts_in_one_decade_has_numbers_below(tmp_path):
    labels = np.repeat(np.arange(3), [30, 40, 50]).tolist()
    source = Source("even", CLASSES, {"train": part(labels, [20] * 120)})
    page = page_of(prepared(source, tmp_path / "set"))
    assert "mathdefault" not in page and {"1", "10"} <= set(Page(page).texts)
