"""verify, info and --benchmark on prepared sets."""

import errno
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from PIL import Image
from rich.console import Console

from data_prep.inspect import problems, show
from data_prep.reading.source import Source, SourceSplit
from lt_train.errors import MachineFault, UserError
from tests.helpers.commands import Encoded
from tests.helpers.data_prep_runs import assert_one_line, call, noise, noise_png, succeed, tree
from tests.helpers.sealed import rewrite
from tests.helpers.sources import fill, prepared


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_dataset(root: Path, change: Callable[[dict], None]) -> None:
    rewrite(root / "dataset.json", lambda content: change(content["splits"]["train"]))


def read_table(root: Path) -> pa.Table:
    return pa.ipc.open_file((root / "train.arrow").read_bytes()).read_all()


def first_offset(root: Path) -> int:
    return read_table(root)["offset"][0].as_py()


def other_type(root: Path) -> None:
    """A column's type becomes one that no manifest has."""
    table = read_table(root)
    place = table.column_names.index("label")
    table = table.set_column(place, "label", pa.array(["a"] * len(table)))
    with pa.ipc.new_file(root / "train.arrow", table.schema) as sink:
        sink.write_table(table)


WRITTEN = "is not as it was written"
DAMAGES = {  # what is done to a data set, with another one at hand -> what is said about it
    "a flipped byte in an image": (
        lambda root, other: flip(root / "train-000000.tar", first_offset(root) + 50),
        [f"train-000000.tar {WRITTEN}", "crc32"],
    ),
    "a flipped byte in a header": (
        lambda root, other: flip(root / "train-000000.tar", 0),
        [f"train-000000.tar {WRITTEN}"],
    ),
    "a truncated shard": (
        lambda root, other: os.truncate(root / "train-000001.tar", 700),
        [f"train-000001.tar {WRITTEN}", "truncated"],
    ),
    "an empty shard": (
        lambda root, other: os.truncate(root / "train-000001.tar", 0),
        [f"train-000001.tar {WRITTEN} (0 bytes", "truncated"],
    ),
    "a missing shard": (
        lambda root, other: (root / "train-000001.tar").unlink(),
        ["train-000001.tar is missing"],
    ),
    "a folder in a shard's place": (
        lambda root, other: (
            (root / "train-000001.tar").unlink(),
            (root / "train-000001.tar").mkdir(),
        ),
        ["train-000001.tar cannot be read: Is a directory"],
    ),
    "a missing manifest": (
        lambda root, other: (root / "train.arrow").unlink(),
        ["cannot read", "train.arrow"],
    ),
    "another set's manifest": (
        lambda root, other: shutil.copy(other / "train.arrow", root),
        ["12 rows", "class counts", "other shards"],
    ),
    "another set's class index": (
        lambda root, other: shutil.copy(other / "train.class_index.arrow", root),
        ["class_index.arrow does not agree"],
    ),
    "another set's shard": (
        lambda root, other: shutil.copy(other / "train-000000.tar", root),
        [f"train-000000.tar {WRITTEN}"],
    ),
    "a manifest of another type": (lambda root, other: other_type(root), ["train.arrow"]),
    "a cut manifest": (
        lambda root, other: os.truncate(root / "train.arrow", 900),
        ["cannot read", "train.arrow"],
    ),
    "another number of samples": (
        lambda root, other: edit_dataset(root, lambda split: split.update(samples=8)),
        ["9 rows, dataset.json says 8"],
    ),
    "other class counts": (
        lambda root, other: edit_dataset(root, lambda split: split.update(class_counts=[5, 4, 0])),
        ["other class counts"],
    ),
    "another shard's size": (
        lambda root, other: edit_dataset(root, lambda split: split["shards"][0].update(samples=5)),
        ["other shards"],
    ),
}


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory) -> tuple[Path, Path]:
    """9 images of three classes in three shards, and 12 in other shards."""
    root = tmp_path_factory.mktemp("two")
    for name, size, per_shard in (("one", 3, 3), ("other", 4, 2)):
        source = root / name / "images"
        for label in "abc":
            fill(source / label, {f"{n}.png": noise_png(n, 20) for n in range(size)})
        options = ["--out", root / name / "set", "--samples-per-shard", per_shard]
        succeed("folder", "--source", source, *options)
    return root / "one" / "set", root / "other" / "set"


def test_verify_says_nothing_but_that_an_intact_set_is_intact(strange, pool):
    done = succeed("verify", strange.root)
    (line,) = done.stdout.splitlines()
    assert "as written" in line and done.stderr == ""
    assert not list(problems(pool.root))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(two_sets, tmp_path, damage):
    root = Path(shutil.copytree(two_sets[0], tmp_path / "set"))
    assert not list(problems(root))
    break_it, words = DAMAGES[damage]
    break_it(root, two_sets[1])
    found = "\n".join(problems(root))
    assert all(word in found for word in words), found


def test_verify_lists_all_damage_and_ends_with_one_line(two_sets, tmp_path):
    root = Path(shutil.copytree(two_sets[0], tmp_path / "set"))
    for damage in ("a flipped byte in an image", "a missing shard", "other class counts"):
        DAMAGES[damage][0](root, two_sets[1])
    done = call("verify", root)
    assert_one_line(done, f"{root} is damaged: 4 problem(s)")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for word in ("crc32", "sha256", "is missing", "class counts"):
        assert sum(word in line for line in lines) == 1


def test_info_counts_labeled_images(strange, tmp_path):
    """The name and the command that made it have brackets and dollars in them, which mean
    nothing.
    """
    text = succeed("info", strange.root, "--plot", tmp_path / "counts.png").stdout
    for words in ("Ziel [neu] ü $1$ ねこ", "Quelle [alt] für ねこ", "4 classes"):
        assert words in text
    assert re.search(r"train +36 +9 +9 +1\.0 +4 ", text)
    assert re.search(r"test +36 +9 +9 +1\.0 +4 ", text)
    assert "training classes: many-shot 0, medium-shot 0, few-shot 4" in text
    assert "…" not in text and re.search(r"plain +9 █{40}", text)
    assert_is_plot(tmp_path / "counts.png")


def assert_is_plot(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 2, "something is drawn"


def test_info_prints_what_the_encoding_of_the_output_lacks_otherwise(strange):
    done = succeed("info", strange.root, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in done.stderr and r"f\xfcr \u306d\u3053" in done.stdout


def test_info_of_a_pool_has_no_classes_and_no_plot(pool, tmp_path):
    text = succeed("info", pool.root).stdout
    assert "0 classes" in text and "shot" not in text
    assert re.search(r"train +25 ", text)
    done = call("info", pool.root, "--plot", tmp_path / "counts.png")
    assert_one_line(done, "unlabeled", str(pool.root))
    assert not (tmp_path / "counts.png").exists()


def test_info_of_an_unlabeled_set_counts_by_sourced_label(tmp_path):
    labels = np.repeat(np.arange(10), [15, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    pixels = np.stack([noise(number, 32) for number in range(60)])
    pool = tmp_path / "ti.pickle"
    pool.write_bytes(pickle.dumps({"data": pixels, "extrapolated_targets": labels}))
    succeed("unlabeled_cifar10", "--pool", pool, "--all", "--out", tmp_path / "set")
    text = succeed("info", tmp_path / "set", "--plot").stdout
    groups = "many-shot 0, medium-shot 0, few-shot 10"
    assert f"classes by sourced_label (the set is unlabeled): {groups}" in text
    for line in (r"train +60 +15 +1 +15\.0 ", r"airplane +15 █{40}\n", r"truck +1 █+\n"):
        assert re.search(line, text)
    assert_is_plot(tmp_path / "set" / "class_counts.png")
    succeed("verify", tmp_path / "set")


@pytest.mark.parametrize("column", [np.array([0, 1, 3, 0]), np.array([0.0, 0.5, 1.0, 0.0])])
def test_info_of_labels_that_are_none_is_one_line(column, tmp_path):
    """A set that others made may hold anything in a column beside the format's."""
    contents = [noise_png(number, 20) for number in range(4)]
    keys = [f"{number}" for number in range(4)]
    part = SourceSplit(None, keys, Encoded(contents), {"hidden_label": column})
    root = prepared(Source("set", ["a", "b", "c"], {"train": part}), tmp_path / "set")
    with pytest.raises(UserError, match="column hidden_label of .* labels of 3 classes"):
        show(root, Console())


def test_a_plot_that_cannot_be_written_is_one_line(two_sets, tmp_path):
    assert_one_line(call("info", two_sets[0], "--plot", tmp_path), str(tmp_path), "Is a directory")


@pytest.mark.slow
def test_benchmark_prints_both_ratios_and_leaves_nothing(little, tmp_path):
    before = tree(tmp_path)
    out = tmp_path / "not" / "there" / "set"
    done = succeed(*little.command, "--out", out, "--workers", 2, "--benchmark")
    for ratio in ("shards over decode check alone", "shards, no decode check over tar cf"):
        assert float(re.search(rf"^{ratio}: ([0-9.]+)$", done.stdout, re.MULTILINE)[1]) > 0
    assert tree(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"images"}


def test_a_benchmark_that_cannot_write_is_one_line(little):
    done = call(*little.command, "--out", "/proc/nowhere/set", "--benchmark")
    assert_one_line(done, "cannot write to '/proc'", reports=1)


def test_a_disk_that_fails_is_no_damage(two_sets, monkeypatch):
    """Which a set that is prepared anew would not mend."""

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("data_prep.inspect.file_sha256", fail)
    with pytest.raises(MachineFault, match="train-000000.tar cannot be read: Input/output error"):
        list(problems(two_sets[0]))


def test_a_changed_class_name_is_found(two_sets, tmp_path):
    root = Path(shutil.copytree(two_sets[0], tmp_path / "set"))
    content = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(content.replace('"b"', '"z"'))
    for command in ("verify", "info"):
        assert_one_line(call(command, root), "dataset.json is damaged: it does not match its own")
