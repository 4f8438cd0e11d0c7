"""docs/library.md: both examples, to the letter, and the names that the page promises."""

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lt_train
from data_prep.sets import demo
from lt_train.config.load import load_config, to_yaml
from lt_train.data.manifest import Manifest
from lt_train.models.backbones import make_backbone
from lt_train.models.weights import BACKBONE_FILE, export_weights
from tests.helpers.sources import prepared

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
LIMIT = 240  # seconds that any one command may take
PLAIN_EPOCHS, EPOCHS, BATCH, SAVE_EVERY = 5, 3, 16, 2  # the page's


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the page's files lie beside a set and a finished run."""
    folder = tmp_path_factory.mktemp("library")
    sizes = argparse.Namespace(
        largest=24, imbalance_ratio=10, val=1, test=1, seed=0, image_size=None
    )
    prepared(demo.make_source(sizes), folder / "shards" / "photos")
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (folder / re.match(r"# (\w+\.py)\n", block)[1]).write_text(block)
    run = folder / "runs" / "moco"
    run.mkdir(parents=True)
    words = ["eval_view.size=32", "eval_view.resize=32", "model.backbone=resnet10"]
    (run / "config.yaml").write_text(to_yaml(load_config("moco_demo", words)))
    torch.manual_seed(0)
    export_weights(make_backbone("resnet10"), run / BACKBONE_FILE, {})
    return folder


def run(folder: Path, *words: str) -> list[str]:
    """What Python says with these words, a line each."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def steps(lines: list[str]) -> list[tuple[int, int, float]]:
    """Epoch, batch and loss of every step; gloo has lines of its own among them."""
    found = [re.fullmatch(r"epoch (\d+), batch (\d+): loss (\S+)", line) for line in lines]
    parts = [match.groups() for match in found if match]
    return [(int(epoch), int(batch), float(loss)) for epoch, batch, loss in parts]


def test_the_page_names_what_there_is():
    table = PAGE.read_text().partition("| name |")[2].partition("\n\n")[0]
    firsts = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    named = set(re.findall(r"[A-Za-z]\w+", firsts)) & {*lt_train.__all__}
    assert named == {*lt_train.__all__} - {"ImageDataset", "UserError"}


@pytest.mark.slow
def test_the_plain_loop_learns_and_leaves_a_backbone(folder):
    lines = run(folder, "plain_loop.py")
    found = [re.fullmatch(r"epoch (\d): loss (\S+)", line).groups() for line in lines]
    assert [int(epoch) for epoch, _ in found] == list(range(PLAIN_EPOCHS))
    assert float(found[-1][1]) < 0.8 * float(found[0][1])
    backbone = lt_train.load_backbone(folder / "backbone.pth", "resnet10")
    before = lt_train.load_backbone(folder / "runs" / "moco")
    assert not backbone.conv1.weight.equal(before.conv1.weight)


@pytest.mark.slow
def test_ranks_go_on_where_others_have_stopped(folder):
    """Two ranks train the first epoch; one goes on from their checkpoint, and ends the rest."""
    page = (folder / "many_ranks.py").read_text()
    shorter = page.replace(
        f"EPOCHS, GLOBAL_BATCH, SAVE_EVERY = {EPOCHS},", "EPOCHS, GLOBAL_BATCH, SAVE_EVERY = 1,"
    )
    assert shorter != page
    (folder / "first_epoch.py").write_text(shorter)
    batches = len(Manifest(folder / "shards" / "photos", "train")) // BATCH
    saved = batches // SAVE_EVERY * SAVE_EVERY
    assert 0 < saved < batches
    two_ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    first = steps(run(folder, *two_ranks, "first_epoch.py"))
    assert [place[:2] for place in first] == [(0, batch + 1) for batch in range(batches)]
    rest = steps(run(folder, "many_ranks.py"))
    expected = [(epoch, batch + 1) for epoch in range(EPOCHS) for batch in range(batches)]
    assert [place[:2] for place in rest] == expected[saved:]
    assert all(math.isfinite(loss) for *_, loss in first + rest)
