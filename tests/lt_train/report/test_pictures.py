"""Pictures of a data set's images in a report."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.reading.source import Source, SourceSplit
from lt_train.data.manifest import Manifest
from lt_train.report.pictures import picture_section
from lt_train.report.rows import make_rows
from lt_train.report.runs import read_runs
from lt_train.report.thumbnails import Thumbnails
from tests.helpers.commands import Encoded
from tests.helpers.finished_runs import NAMES, Page, predicted, report, write_run
from tests.helpers.pictures import encode
from tests.helpers.sources import prepared

TRAIN = [6, 4, 3, 1]
GREYS = {"train": 40, "test": 200}  # of a split's images, with 10 more a class


def grey(value: int, side: int = 200) -> bytes:
    return encode(Image.new("RGB", (side, side // 2), (value,) * 3), "JPEG", quality=95)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set of four classes with ten test images each; an image's grey says split and class."""
    splits = {}
    for name, counts in (("train", TRAIN), ("test", [10] * 4)):
        labels = np.repeat(np.arange(4), counts)
        contents = [grey(GREYS[name] + 10 * int(label)) for label in labels]
        keys = [f"{name}{number}" for number in range(len(labels))]
        splits[name] = SourceSplit(labels, keys, Encoded(contents))
    return prepared(Source("greys", NAMES, splits), tmp_path_factory.mktemp("greys") / "set")


def write(folder: Path, root: Path, **changes) -> None:
    """A run on the set, whose test images are dealt over shards in another order than by class."""
    rows, labels = predicted(), Manifest(root, "test").labels
    for label in range(4):
        rows["sample_id"][rows["label"] == label] = np.flatnonzero(labels == label)
    config = {"data": {"root": str(root)}}
    options = {"class_counts": TRAIN, "config": config, **changes}
    write_run(folder, predictions={"test": np.sort(rows, order="sample_id")}, **options)


def pictures(page: str) -> list[tuple[list[int], str]]:
    """Greys and text of each figure of the section of pictures."""
    section = page.partition("<h2>Pictures</h2>")[2].partition("<h2>")[0]
    found = []
    for figure in re.findall("<figure>(.*?)</figure>", section, re.DOTALL):
        images = re.findall('src="data:image/jpeg;base64,(.*?)"', figure)
        greys = []
        for text in images:
            with Image.open(io.BytesIO(base64.b64decode(text))) as image:
                assert image.size == (96, 48) and image.format == "JPEG"
                greys.append(round(float(np.asarray(image).mean())))
        found.append((greys, " ".join(Page(figure).texts)))
    return found


def shows(figure: tuple[list[int], str], greys: list[int], *words: str) -> bool:
    close = len(figure[0]) == len(greys) and np.allclose(figure[0], greys, atol=3)
    return close and all(word in figure[1] for word in words)


def test_a_run_shows_its_mistakes_and_confusions_and_each_class(root, tmp_path):
    write(tmp_path / "ce", root)
    markdown, page = report(tmp_path)
    found = pictures(page)
    # the third of four classes with fewest images is two; no more than three mistakes of each
    mistakes = found[:6]
    assert all(shows(figure, [230], "owl") for figure in mistakes[:3])
    assert all(shows(figure, [220], "fox", "taken for cat") for figure in mistakes[3:])
    assert shows(found[0], [230], "taken for fox, 90 %"), "the surest one first"
    assert shows(found[6], [230, 210], "owl (left), taken for dog", "5 of 10 images")
    classes = found[-4:]
    for label, (name, count) in enumerate(zip(NAMES, TRAIN)):
        greys = [GREYS["train"] + 10 * label] * min(3, count)
        assert shows(classes[label], greys, name, f"{count} training images")
    assert "base64" not in markdown and len(page.encode()) < 600_000


def section(folder: Path) -> str:
    """The section of pictures alone: plots take their time."""
    return picture_section(make_rows(read_runs([folder])[0]), Thumbnails())


REASONS = {
    "moved": "is not on this machine",
    "relabeled": "is not the data set of ce any more",
    "damaged": "No pictures:",
}


@pytest.mark.parametrize("case", REASONS)
def test_without_the_set_a_line_says_so(case, root, tmp_path):
    place = Path(shutil.copytree(root, tmp_path / "set"))
    changes = {"classes": ["a", "b", "c", "d"]} if case == "relabeled" else {}
    write(tmp_path / "runs" / "ce", place, **changes)
    if case == "moved":
        shutil.rmtree(place)
    if case == "damaged":
        (place / "test.arrow").write_bytes(b"")
    page = section(tmp_path / "runs")
    assert not pictures(page) and page.count(REASONS[case]) == 1


def test_sets_behind_urls_are_not_asked_for(root, tmp_path):
    write(tmp_path / "ce", root, config={"data": {"root": "s3://bucket/set"}})
    assert "s3://bucket/set is not on this machine" in section(tmp_path)


def test_a_page_has_only_so_many_pictures(root):
    few, manifest = Thumbnails(2), Manifest(root, "train")
    shown = [few.of(manifest, number, "<a>") for number in range(4)]
    assert [bool(image) for image in shown] == [True, True, False, False]
    assert 'alt="&lt;a&gt;"' in shown[0]


def test_a_damaged_image_is_left_out(root, tmp_path):
    place = Path(shutil.copytree(root, tmp_path / "set"))
    manifest = Manifest(place, "train")
    shard, offset, size = manifest.places(np.array([0]))[0]
    content = bytearray(manifest.paths[shard].read_bytes())
    content[offset + size // 2] ^= 255
    manifest.paths[shard].write_bytes(content)
    pictures_left = Thumbnails()
    assert pictures_left.of(Manifest(place, "train"), 0, "x") == ""
    assert pictures_left.of(Manifest(place, "train"), 1, "x")


def test_a_set_without_its_shards_is_no_hindrance(root, tmp_path):
    place = Path(shutil.copytree(root, tmp_path / "set"))
    for shard in place.glob("*.tar"):
        shard.unlink()
    write(tmp_path / "runs" / "ce", place)
    page = section(tmp_path / "runs")
    assert not pictures(page) and f"The images of {place} cannot be read" in page
