"""From a raw pool to D_U by the commands that users type: shard, train, score, select, train."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.reading.near_duplicates import NearDuplicates
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.scores import ScoreStore

pytestmark = pytest.mark.slow

LIMIT = 240  # seconds that any one command may take
CLASSES, POOL, COPIES = 10, 1800, 60
SMALL = (
    "model.backbone=resnet32_cifar",
    "engine.precision=fp32",
    "global_batch_size=32",
    "epochs=4",
    "run.log_every=5",
)


def module(*arguments: object) -> list[str]:
    """The command line of a module."""
    return [sys.executable, "-m", *map(str, arguments)]


def call(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)


def run(*arguments: object) -> str:
    """Run a module's command; returns what it wrote to stderr."""
    done = call(module(*arguments))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def coloured(generator: np.random.Generator, label: int, number: int) -> np.ndarray:
    """Noise of a colour that tells the class."""
    colour = np.random.default_rng(label).integers(40, 216, 3)
    noise = generator.integers(-90, 90, (number, 32, 32, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """labeled/: ten classes with a test split; pool/: images like theirs, and copies of test's."""
    root, generator = tmp_path_factory.mktemp("sourcing"), np.random.default_rng(0)
    for label in range(CLASSES):
        for split, number in (("train", 12), ("test", 6)):
            images = root / "images" / split / str(label)
            images.mkdir(parents=True)
            for index, pixels in enumerate(coloured(generator, label, number)):
                Image.fromarray(pixels).save(images / f"{index}.png")
    run("data_prep", "folder", "--source", root / "images", "--out", root / "labeled")
    pool = np.concatenate([coloured(generator, index % (2 * CLASSES), 1) for index in range(POOL)])
    noise = generator.integers(-5, 6, (COPIES, 32, 32, 3))
    pool[:: POOL // COPIES] = np.clip(images_of_test(root).astype(int) + noise, 0, 255)
    np.save(root / "pool.npy", pool)
    options = ["--samples-per-shard", "100", "--out", root / "pool"]
    run("data_prep", "tinyimages", "--source", root / "pool.npy", *options)
    run("lt_train", "sourcing_cifar10", *settings(root))
    return root


def images_of_test(root: Path) -> np.ndarray:
    paths = sorted((root / "images" / "test").glob("*/*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def settings(root: Path) -> list[str]:
    return [
        f"data.root={root}/labeled",
        f"unlabeled.root={root}/pool",
        "unlabeled.max_samples=300",
        f"run.dir={root}/run",
        *SMALL,
    ]


def contents(scores: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in scores.iterdir()}


@pytest.fixture(scope="module")
def scores(folder) -> Path:
    """Scored by two array tasks of two ranks each."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*torchrun, "lt_train", "score", "sourcing_cifar10", *settings(folder)]
    for task in ("0/2", "1/2"):
        run(*command, "--task", task)
    return folder / "run" / "scores"


def test_a_killed_scoring_goes_on_and_ends_with_the_same_scores(folder, scores):
    out = folder / "killed"
    command = ["lt_train", "score", "sourcing_cifar10", *settings(folder), "--out", out]
    process = subprocess.Popen(module(*command), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LIMIT
    while len(list(out.glob("train-*.arrow"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("train-*.arrow")}
    assert len(finished) < POOL // 100, "killed in the middle"
    assert f"{len(finished)} shards were scored before" in run(*command)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    names = {f"train-{number:06d}.arrow" for number in range(POOL // 100)} | {"scores.json"}
    assert {name for name in contents(out) if not name.startswith(".")} == names
    same = [contents(out)[name] == contents(scores)[name] for name in sorted(names)]
    assert all(same), "one process in two goes, and two tasks of two ranks, score alike"


def test_the_selection_becomes_a_set_that_a_method_can_train_on(folder, scores):
    out = folder / "unlabeled"
    sources = ["--pool", folder / "pool", "--scores", scores, "--test-set", folder / "labeled"]
    options = ["--per-class", 60, "--all", "--out", out]
    said = run("data_prep", "unlabeled_cifar10", *sources, *options)
    assert "withdrawn" in said and "near-duplicates of the test set left out" in said
    chosen, pool = Manifest(out, "train"), Manifest(folder / "pool", "train")
    labels = chosen.column("sourced_label")
    assert 0 < len(chosen) <= 60 * CLASSES and np.bincount(labels, minlength=CLASSES).max() <= 60
    pixels = np.load(folder / "pool.npy")[[int(chosen.key(index)) for index in range(len(chosen))]]
    assert not NearDuplicates(images_of_test(folder))(pixels).any()
    by_key = {pool.key(index): index for index in range(len(pool))}
    every = [part for _, *part in ScoreStore(scores, read_dataset(folder / "pool")).read(CLASSES)]
    all_labels, all_scores = (np.concatenate(column) for column in zip(*every))
    ids = [by_key[chosen.key(index)] for index in range(len(chosen))]
    np.testing.assert_array_equal(labels, all_labels[ids])
    np.testing.assert_array_equal(chosen.column("score"), all_scores[ids])
    others = [f"unlabeled.root={out}", f"run.dir={folder}/again", "max_steps=2"]
    run("lt_train", "sourcing_cifar10", *settings(folder), *others)
    assert json.loads((folder / "again" / "result.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["classifier_cifar10_lt", "method=fixmatch"], "sourcing method"),
        (["sourcing_cifar10", "--task", "3/2"], "I/N"),
        (["sourcing_cifar10", "run.dir=nowhere"], "not a finished run"),
        (["sourcing_cifar10", "--pool", "nowhere"], "nowhere"),
        (["sourcing_cifr10"], "sourcing_cifar10"),
    ],
)
def test_bad_input_to_score_is_told_in_one_line(folder, arguments, word):
    config, *others = arguments
    done = call(module("lt_train", "score", config, *settings(folder), *others))
    assert done.returncode == 2 and word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
