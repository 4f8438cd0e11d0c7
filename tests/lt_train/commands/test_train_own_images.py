"""A newcomer's three commands: prepare own images in uneven folders, train from somebody's weights,
read the report.
"""

import re

import numpy as np
import timm
import torch
from PIL import Image

from data_prep.__main__ import main as data_prep
from tests.helpers.commands import read, run

SIZES = (30, 20, 14, 10, 8, 6, 5, 4, 3, 3, 2, 2)  # images of twelve classes
NETWORK = "timm/test_efficientnet"


def draw(folder, generator: np.random.Generator) -> None:
    """Class folders of noise, each in a colour of its own."""
    for label, size in enumerate(SIZES):
        (folder / f"thing {label}").mkdir(parents=True)
        tint = np.array([label % 3, label // 3 % 2, label // 6]) * (80, 160, 160)
        for number in range(size):
            pixels = np.clip(generator.normal(40, 20, (40, 50, 3)) + tint, 0, 255)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / f"thing {label}" / f"{number}.jpg")


def test_three_commands_end_in_a_report_of_each_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos", np.random.default_rng(0))
    torch.manual_seed(0)
    theirs = timm.create_model(NETWORK.removeprefix("timm/"), num_classes=5)
    torch.save(theirs.state_dict(), "theirs.pth")
    held_out = ["--val-fraction", "0.2", "--out", "shards/photos"]
    assert data_prep(["folder", "--source", "photos", *held_out]) == 0
    own = [f"model.backbone={NETWORK}", "model.trainable=lora", "model.init_from=theirs.pth"]
    small = ["view.size=32", "eval_view.size=32", "eval_view.resize=36", "epochs=2"]
    batches = ["global_batch_size=16", "optim.lr_batch_size=16", "engine.precision=fp32"]
    run("finetune_folder", "data.root=shards/photos", *own, *small, *batches)
    (folder,) = tmp_path.glob("runs/*")
    result = read(folder)
    assert result["outside_data"] == ["weights theirs.pth"]
    assert len(result["classes"]) == len(SIZES) and sum(result["class_counts"]) > 0.7 * sum(SIZES)
    run("report", "runs")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "‡" in page and "outside data: weights theirs.pth" in page
    assert "training images" in page
    names = re.findall(r"thing \d+", page)
    assert set(names) == {f"thing {label}" for label in range(len(SIZES))}
