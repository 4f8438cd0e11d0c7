"""The sets that ``--suite`` trains on: noise with the spectrum, and the files the size, of
photographs; sharded by data_prep as anyone's own images are.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lt_train.benchmark.rows import LARGE, SMALL
from lt_train.errors import MachineFault

PHOTOGRAPH = 500, 375  # pixels
QUALITY = 90  # of JPEG
GRAIN = 14.0  # grey levels of the finest noise: with it, files of about 100 KB
CLASSES = 10


def make_sets(
    folder: Path, sizes: dict[str, dict[str, int]], say: Callable[[str], None]
) -> dict[str, Path]:
    """Prepared sets in ``folder`` by name, :data:`LARGE` and :data:`SMALL`, of so many images a
    split.
    """
    makers = {LARGE: photograph, SMALL: thumbnail}
    roots = {}
    for name, splits in sizes.items():
        say(f"making {sum(splits.values()):,} {name} images")
        generator = np.random.default_rng(0)
        for split, images in splits.items():
            for number in range(images):
                place = folder / name / split / str(number % CLASSES)
                place.mkdir(parents=True, exist_ok=True)
                image = makers[name](generator)
                image.save(place / f"{number:06d}.jpg", quality=QUALITY)
        roots[name] = _prepared(folder / name, folder / f"{name}-prepared")
    return roots


def photograph(generator: np.random.Generator) -> Image.Image:
    """Colours that change slowly, and less and less of what changes faster."""
    width, height = PHOTOGRAPH
    pixels = np.full((height, width, 3), 128, np.float32)
    cell, strength = 128, 48.0
    while cell > 1:
        rows, columns = height // cell + 2, width // cell + 2
        coarse = generator.integers(0, 256, (rows, columns, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(smooth, np.float32) - 128) * (strength / 128)
        cell, strength = cell // 2, strength * 0.75
    grain = generator.standard_normal((height, width, 1), np.float32)
    return Image.fromarray((pixels + GRAIN * grain).clip(0, 255).astype(np.uint8))


def thumbnail(generator: np.random.Generator) -> Image.Image:
    """32 x 32 pixels."""
    coarse = Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8))
    return coarse.resize((32, 32), Image.Resampling.BICUBIC)


def _prepared(source: Path, out: Path) -> Path:
    words = ["folder", "--source", str(source), "--out", str(out)]
    command = [sys.executable, "-m", "data_prep", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise MachineFault(f"data_prep could not prepare the suite's images: {said[-1]}")
    return out
