"""The command line: what it says when something is wrong, how it finds damage, and data sets of
one's own.
"""

import os
from pathlib import Path

import pytest

from data_prep.__main__ import main
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from tests.helpers.data_prep_runs import assert_one_line, call, noise_png, succeed
from tests.helpers.sources import fill, pixels_of


@pytest.fixture
def class_folders(tmp_path) -> Path:
    for label in "ab":
        images = {f"{number}.png": noise_png(number, 64) for number in range(3)}
        fill(tmp_path / "images" / label, images)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a regular file")
    return tmp_path


PREPARE = ("folder", "--source", "images", "--out", "out")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--source", "nowhere", "--out", "out"], "nowhere"),
        (["--source", "empty", "--out", "out"], "empty"),
        (["--source", "images", "--out", "file/out"], "file/out"),
        (["--source", "images", "--out", "out", "--samples-per-shard", "0"], "--samples-per-shard"),
        (["--source", "images", "--out", "out", "--val-fraction", "1.5"], "--val-fraction"),
    ],
)
def test_a_users_mistake_is_told_in_one_line(class_folders, arguments, word):
    # what was understood, before anything is written, and that nothing is held out
    reports = 2 * int(word == "file/out")
    assert_one_line(call("folder", *arguments, cwd=class_folders), word, reports=reports)
    assert not (class_folders / "out").exists()


@pytest.mark.parametrize(
    "option", ["--seed=-1", "--val=-3", "--imbalance-ratio=nan", "--imbalance-ratio=0.5"]
)
def test_numbers_that_make_no_sense_are_refused_without_a_traceback(tmp_path, option):
    done = call("demo", "--out", "out", "--largest", "5", option, cwd=tmp_path)
    assert done.returncode != 0
    assert "error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--source", "--list", "--val-list", "--csv", "--out"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_not_the_current_folder(class_folders, option, value, capsys, monkeypatch):
    monkeypatch.chdir(class_folders / "images")
    with pytest.raises(SystemExit) as end:
        main([*PREPARE[:1], "--source", ".", "--out", "../out", f"{option}={value}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and f"argument {option}: the path is empty" in last
    assert not (class_folders / "out").exists()


def test_the_home_folder_is_known_in_every_path(class_folders, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(class_folders))
    words = ["--out=~/out", "--workers", "1"]
    assert main(["folder", "--source=~/images", *words]) == 0
    command = read_dataset(class_folders / "out").made_by["command"]
    assert f"--source {class_folders}/images" in command
    assert main(["verify", "~/out"]) == main(["info", "~/out"]) == 0
    with pytest.raises(SystemExit):
        main(["folder", "--source=~nobody_of_this_name/x", *words])
    assert "a folder of that name is './~nobody_of" in capsys.readouterr().err


def test_what_was_understood_and_passed_over_is_said_before_the_work(class_folders):
    images = class_folders / "images"
    (images / "a" / "0.png").rename(images / "a" / "0.heic")
    others = ["a/.ipynb_checkpoints/0.png", "a/._1.png", "__MACOSX/a/._1.png", "b/Thumbs.db"]
    fill(images, dict.fromkeys([*others, "c/1.gif", "c/2.gif"], b"x"))
    lines = succeed(*PREPARE, "--val-fraction", "0.4", cwd=class_folders).stderr.splitlines()
    assert lines[0] == (
        "out: 5 images of 2 classes: train 3, val 2; passed over: 2 hidden, 1 .heic, 1 Thumbs.db,"
        " 1 __MACOSX, folder 'c' without images (2 .gif)"
    )
    assert lines[-1].startswith("out: 5 images in ")
    pool = succeed("tinyimages", "--source", "images/b", "--out", "pool", cwd=class_folders)
    note, line = pool.stderr.splitlines()[:2]
    assert note.startswith("note: ") and "withdrawn" in note
    assert line == "tinyimages: 3 images: train 3 unlabeled; passed over: 1 Thumbs.db"


def test_a_file_name_that_is_not_utf8_gives_no_traceback(class_folders):
    folder = class_folders / "images" / "a"
    os.rename(folder / "0.png", os.fsencode(folder) + b"/\xe9.png")
    assert "Traceback" not in call(*PREPARE, cwd=class_folders).stderr


def test_prepare_twice_then_verify_then_damage(class_folders):
    """The second run writes nothing; verify is silent about an intact set and names the shard and
    sample of a flipped byte.
    """
    succeed(*PREPARE, cwd=class_folders)
    assert "already complete" in succeed(*PREPARE, cwd=class_folders).stderr
    succeed("verify", "out", cwd=class_folders)
    shard = class_folders / "out" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    shard.write_bytes(content)
    done = call("verify", "out", cwd=class_folders)
    assert_one_line(done, "damaged")
    assert "train-000000.tar is not as it was written" in done.stdout and "crc32" in done.stdout


def test_verify_finds_a_changed_key(class_folders):
    """Which no checksum of an image and no count would tell."""
    succeed(*PREPARE, cwd=class_folders)
    manifest = class_folders / "out" / "train.arrow"
    manifest.write_bytes(manifest.read_bytes().replace(b"a/0", b"a/9"))
    done = call("verify", "out", cwd=class_folders)
    assert_one_line(done, "damaged: 1 problem")
    assert "train.arrow is not as it was written" in done.stdout


MY_SETS = """
import io

import numpy as np
from PIL import Image

from data_prep.reading.source import Recipe, Source, SourceSplit


class Grey:
    def read(self, index):
        buffer = io.BytesIO()
        Image.new("L", (8, 6), 10 * index).save(buffer, "PNG")
        return buffer.getvalue()


def add_arguments(parser):
    parser.add_argument("--images", type=int, default=4)


def make_source(arguments):
    labels = np.arange(arguments.images) % 2
    keys = [f"grey_{index}" for index in range(arguments.images)]
    return Source("mine", ["even", "odd"], {"train": SourceSplit(labels, keys, Grey())})


RECIPES = {"mine": Recipe("grey images", add_arguments, make_source)}
"""


def test_a_set_of_ones_own_is_prepared_as_any_other(tmp_path):
    """Read back: every key with its label and image; and the command that made it, which makes it
    again.
    """
    (tmp_path / "my_sets.py").write_text(MY_SETS)
    words = ("--import", "my_sets", "mine", "--images", "7")
    done = succeed(*words, "--out", "out", cwd=tmp_path)
    assert done.stderr.rstrip().endswith(", complete")
    manifest = Manifest(tmp_path / "out", "train")
    assert manifest.classes == ["even", "odd"] and len(manifest) == 7
    for sample_id in range(7):
        number = int(manifest.key(sample_id).removeprefix("grey_"))
        assert manifest.labels[sample_id] == number % 2
        pixels = pixels_of(bytes(manifest.read(sample_id)))
        assert pixels.shape == (6, 8, 3) and (pixels == 10 * number).all()
    assert sorted(map(manifest.key, range(7))) == [f"grey_{number}" for number in range(7)]
    dataset = read_dataset(tmp_path / "out")
    assert dataset.name == "mine"
    assert dataset.made_by["command"] == f"python -m data_prep {' '.join(words)}"
    assert "already complete" in succeed(*words, "--out", "out", cwd=tmp_path).stderr


def test_the_help_lists_a_set_of_ones_own_beside_the_others(tmp_path):
    (tmp_path / "my_sets.py").write_text(MY_SETS)
    text = succeed("--import", "my_sets", "--help", cwd=tmp_path).stdout
    assert "mine" in text and "grey images" in text and "cifar10_lt" in text
    assert "grey images" not in succeed("--help", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("SETS = {}\n", ["the module 'my_sets' has no RECIPES"]),
        (None, ["--import: cannot import 'my_sets'", "working directory or on PYTHONPATH"]),
        ("import no_such_module\n", ["--import: cannot import 'my_sets'", "no_such_module"]),
        ("RECIPES = {'mine': 1}\n", ["'mine' in the RECIPES of the module 'my_sets' is no"]),
        (MY_SETS.replace('"mine": R', '"demo": R'), ["data set 'demo'", "rename it"]),
        (MY_SETS.replace('"mine": R', '"verify": R'), ["data set 'verify'", "rename it"]),
    ],
    ids=[
        "no RECIPES",
        "no module",
        "a bad import",
        "no Recipe",
        "a name taken",
        "a command's name",
    ],
)
def test_a_module_that_brings_no_sets_is_told_in_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "my_sets.py").write_text(content)
    done = call("--import", "my_sets", "mine", "--out", "out", cwd=tmp_path)
    assert_one_line(done, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["DALI", "all of nvidia"])
def test_without_dali_pillow_checks_alone_and_a_line_says_so(
    class_folders, missing, capsys, monkeypatch
):
    """The same set comes out, as nothing is odd in it; it is another plan, so that tasks with DALI
    and tasks without do not share the work on one.
    """

    def find_spec(name: str) -> None:
        if missing != "DALI":
            raise ModuleNotFoundError(name)

    monkeypatch.chdir(class_folders)
    (class_folders / "images/a/cut.png").write_bytes(noise_png(9, 64)[:-5000])
    arguments = ["folder", "--source", "images", "--max-rejected", "0.2", "--out"]
    assert main([*arguments, "with"]) == 0
    monkeypatch.setattr("data_prep.prepare.find_spec", find_spec)
    monkeypatch.setattr("lt_train.data.image_files.check._decoders", None)  # nobody asks it
    assert "DALI is not installed" not in capsys.readouterr().err
    assert main([*arguments, "without"]) == 0
    assert "note: DALI is not installed here" in capsys.readouterr().err
    found = [read_dataset(class_folders / name) for name in ("with", "without")]
    assert found[0].splits["train"].shards == found[1].splits["train"].shards
    assert found[0].made_by["fingerprint"] != found[1].made_by["fingerprint"]
    (class_folders / "images/a/cut.png").unlink()
    assert main([*arguments, "trusting", "--no-decode-check"]) == 0
    assert "DALI" not in capsys.readouterr().err, "nothing is decoded"
