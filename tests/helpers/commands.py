"""What the tests of the commands share: a small set's images, the commands, and what they leave
behind.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lt_train.__main__ import main
from lt_train.errors import exit_status
from lt_train.run_files import parse_log
from tests.helpers.pictures import encode

CLASSES, TRAIN, HELD_OUT = 4, [24, 12, 6, 3], 6  # 45 images: 5 steps of 9 an epoch
SMALL = (
    "global_batch_size=9",
    "run.log_every=1",
    "run.checkpoint_every=5",
    "run.keep_checkpoints=9",
    "run.evaluate_every=1",
    "epochs=4",
    "optim.warmup_epochs=0",
    "data.eval_batch_size=16",
    "engine.precision=fp32",
    "moco.queue_size=18",
    "knn.k=5",
)
LIMIT = 240  # seconds that any one command may take


def images(labels: np.ndarray, seed: int) -> list[bytes]:
    """Noise with a tint that tells the class, but not always."""
    generator = np.random.default_rng(seed)
    tints = generator.normal(0, 30, (len(labels), 1, 1, 3))
    tints += 40 * np.eye(CLASSES, 3)[labels][:, None, None]
    noise = generator.normal(110, 40, (len(labels), 32, 32, 3))
    pixels = np.clip(noise + tints, 0, 255).astype(np.uint8)
    return [encode(Image.fromarray(image), "PNG") for image in pixels]


class Encoded:
    """A split's images, already encoded."""

    def __init__(self, contents: list[bytes]):
        self.contents = contents

    def read(self, index: int) -> bytes:
        return self.contents[index]


def words(config: str, root: Path, folder: Path, *more: str) -> list[str]:
    return [config, f"data.root={root}", f"run.dir={folder}", *SMALL, *more]


def run(*arguments: str | Path) -> None:
    """The command in this process."""
    assert main([*map(str, arguments)]) == 0


def refused(capsys, *arguments: str | Path) -> str:
    """The one line of a command that a user's mistake ends with status 2."""
    capsys.readouterr()
    assert exit_status("lt_train", lambda: main([*map(str, arguments)])) == 2
    errors = capsys.readouterr().err
    lines = [line for line in errors.splitlines() if line.startswith("lt_train: error:")]
    assert len(lines) == 1 and "Traceback" not in errors
    return lines[0]


def torchrun(*arguments: str | Path) -> str:
    """The command on 2 ranks; what it says."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "lt_train", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file in the folder, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(folder: Path, name: str = "result.json") -> dict:
    return json.loads((folder / name).read_text())


def evaluated(folder: Path, *more: str | Path) -> dict:
    run("evaluate", folder, *more)
    return read(folder, "evaluation.json")["metrics"]


def logged(folder: Path, split: str, step: int) -> dict:
    records, odd = parse_log((folder / "metrics.jsonl").read_bytes())
    assert not odd
    (found,) = [
        record for record in records if (record.get("split"), record["step"]) == (split, step)
    ]
    return {name: value for name, value in found.items() if name not in ("step", "split")}


def scalars(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The method's state."""
    path = folder / "checkpoints" / f"step-{step:08d}" / "state.pt"
    return torch.load(path, weights_only=True)["method"]
