"""The README's commands for one's own images, typed as they stand there, and the same run on a
cluster.
"""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.pictures import smooth_image
from tests.slurm.bench import LIMIT, ROOT

COLOURS = {"owls at night": "navy", "foxes": "orange", "été": "limegreen", "$ signs": "crimson"}
COUNTS = (90, 60, 35, 15)
NEW = 3  # new photos a class
# a small network without weights from anywhere, in a folder that has the README's name for it
SMALL = (
    "run.dir=runs/finetune_folder",
    "model.backbone=timm/test_vit",
    "model.pretrained=false",
    "view.size=160",
    "eval_view.size=160",
    "eval_view.resize=160",
    "global_batch_size=32",
    "epochs=4",
)


def commands(heading: str) -> list[str]:
    """Those of the README's part of this heading."""
    part = (ROOT / "README.md").read_text("utf-8").partition(f"## {heading}\n")[2]
    block = re.search(r"```bash\n(.*?)```", part, re.DOTALL)[1]
    return [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]


def draw_photos(folder: Path) -> None:
    """Of one colour a class, and of many sizes: photos/CLASS/IMG_0001.jpg ... and new_photos."""
    generator = np.random.default_rng(0)
    for (name, colour), count in zip(COLOURS.items(), COUNTS):
        for number in range(count + NEW):
            width, height = generator.integers(90, 220, 2).tolist()
            noise = smooth_image(generator, width, height)
            photo = Image.blend(noise, Image.new("RGB", noise.size, colour), 0.4)
            is_new = number >= count
            path = folder / (f"new_photos/{name}" if is_new else f"photos/{name}")
            path.mkdir(parents=True, exist_ok=True)
            photo.save(path / f"IMG_{number:04d}.jpg")


def test_own_photos_from_the_readme_alone_here_and_on_a_cluster(bench):
    draw_photos(bench.folder)
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def type_in(line: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            line,
            shell=True,
            cwd=bench.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    prepare, train, after = commands("Your own images")
    assert "200 images of 4 classes: train 160, val 40" in type_in(prepare).stderr
    type_in(shlex.join([*shlex.split(train), *SMALL]))
    said = type_in(after).stdout
    run = bench.folder / "runs" / "finetune_folder"
    metrics = json.loads((run / "result.json").read_text())["metrics"]["val"]
    assert f"{metrics['top1']:.1f}" in said and (run / "report.html").stat().st_size > 10_000
    with open(bench.folder / "new.csv", encoding="utf-8") as file:
        predicted = {row["path"]: row["class_1"] for row in csv.DictReader(file)}
    assert len(predicted) == NEW * len(COLOURS) and set(predicted.values()) <= COLOURS.keys()
    right = [Path(path).parent.name == name for path, name in predicted.items()]
    assert sum(right) > 2 * len(right) / len(COLOURS), "twice what chance gives"

    submit, *_ = commands("On a cluster")
    words = [*shlex.split(submit)[2:], *SMALL, "run.dir=runs/cluster"]
    bench.wait(bench.submit(*words, nodes=1))
    result = json.loads((bench.folder / "runs" / "cluster" / "result.json").read_text())
    assert result["classes"] == sorted(COLOURS) and result["metrics"]["val"]["samples"] == 40
