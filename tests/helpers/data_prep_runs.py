"""Whole runs of ``python -m data_prep`` as users meet it, and what they leave behind."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lt_train.data.dataset import read_dataset
from lt_train.errors import EXIT_MISTAKE
from lt_train.files import file_sha256
from tests.helpers.sources import png

LIMIT = 60  # seconds that any one command may take


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "data_prep", *map(str, arguments)]


def call(*arguments: str | Path, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=LIMIT, **settings
    )


def succeed(*arguments: str | Path, **settings) -> subprocess.CompletedProcess:
    done = call(*arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done


def assert_one_line(
    done: subprocess.CompletedProcess, *words: str, reports: int = 0, status: int = EXIT_MISTAKE
) -> None:
    """One line on stderr that says what is wrong, after so many on what went right, and the exit
    status.
    """
    *before, line = done.stderr.splitlines()
    assert line.startswith("data_prep: error: ") and all(word in line for word in words), line
    assert len(before) == reports, done.stderr
    assert done.returncode == status


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root`` and the hash of its content."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): file_sha256(path) for path in files}


def finished(out: Path) -> list[Path]:
    """The shards that need not be written again."""
    rows = (out / ".partial").glob("*.rows.arrow")
    return [out / path.name.removesuffix(".rows.arrow") for path in rows]


def identity(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """What changes when a file is written again, be it with the same bytes."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def noise(number: int, side: int) -> np.ndarray:
    """An image."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def noise_png(number: int, side: int) -> bytes:
    return png(noise(number, side))


@dataclass(frozen=True)
class Little:
    """Few images that are prepared fast."""

    source: Path

    @property
    def command(self) -> list[str]:
        return ["folder", "--source", str(self.source), "--samples-per-shard", "4"]


@dataclass(frozen=True)
class Original:
    """An image as it lies in the source."""

    content: bytes
    label: int


@dataclass(frozen=True)
class Made:
    """A prepared data set, what made it, and its originals by split and key."""

    root: Path
    command: list[str]  # --out left out
    extension: str
    originals: dict[str, dict[str, Original]]

    def tars(self, split: str) -> list[str]:
        shards = read_dataset(self.root).splits[split].shards
        return [str(self.root / shard.name) for shard in shards]
