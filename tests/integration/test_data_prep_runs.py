"""Data preparation as users meet it: tasks, kills, full disks, changed sources, other tools that
read what it wrote.
"""

import fcntl
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.dataset
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from data_prep.inspect import problems
from data_prep.reading.images import ppm
from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import Plan, is_complete, make_plan
from data_prep.writing.shards import write
from lt_train.data.manifest import MANIFEST_SCHEMA, Manifest, read_dataset
from lt_train.errors import UserError
from lt_train.files import file_sha256
from tests.helpers.pictures import EXIF_ORIENTATION, ROTATED_BY_90, encode, smooth_image

LIMIT = 60  # seconds that any one command may take
LONG = 150  # bytes of a name that does not fit into a tar header


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "data_prep", *map(str, arguments)]


def call(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LIMIT)


def succeed(*arguments: str | Path) -> subprocess.CompletedProcess:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def assert_one_line(done: subprocess.CompletedProcess, *words: str, reports: int = 0) -> None:
    """One line on stderr that says what is wrong, after so many on what went right, and exit status
    2.
    """
    *before, line = done.stderr.splitlines()
    assert line.startswith("data_prep: error: ") and all(word in line for word in words), line
    assert len(before) == reports, done.stderr
    assert done.returncode == 2


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, of which nothing is left after the block."""
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stderr.close()


def end_of(process: subprocess.Popen) -> subprocess.CompletedProcess:
    _, errors = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, "", errors)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def children(process: subprocess.Popen) -> list[int]:
    try:
        return [
            int(pid)
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []


def state(pid: int) -> str:
    """The kernel's letter for what a process does; X: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root`` and the hash of its content."""
    return {
        str(path.relative_to(root)): file_sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def finished(out: Path) -> list[Path]:
    """The shards that need not be written again."""
    return [
        out / path.name.removesuffix(".rows.arrow")
        for path in (out / ".partial").glob("*.rows.arrow")
    ]


def identity(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}


def noise(number: int, side: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_files(root: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


# --- one data set, whoever makes it, and however often it is interrupted


@dataclass(frozen=True)
class Big:
    """Enough images to be interrupted, how to prepare them (``--out`` left out), and what an
    undisturbed run makes of them.
    """

    command: list[str]
    tree: dict[str, str]

    @property
    def shards(self) -> int:
        return sum(name.endswith(".tar") for name in self.tree)


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Big:
    root = tmp_path_factory.mktemp("big")
    images = [
        encode(Image.fromarray(noise(number, 256)), "JPEG", quality=90) for number in range(8)
    ]
    sizes = {
        "train/many": 360,
        "train/medium": 90,
        "train/few": 7,
        "test/many": 20,
        "test/medium": 20,
        "test/few": 20,
    }
    names = [
        f"{folder}/{number:04d}.jpg" for folder, size in sizes.items() for number in range(size)
    ]
    write_files(
        root / "photos", {name: images[number % len(images)] for number, name in enumerate(names)}
    )
    arguments = ["folder", "--source", str(root / "photos"), "--samples-per-shard", "10"]
    succeed(*arguments, "--out", root / "set", "--workers", 1)
    return Big(arguments, tree(root / "set"))


@pytest.mark.slow
def test_two_workers_make_the_same_files_as_one(big, tmp_path):
    succeed(*big.command, "--out", tmp_path / "set", "--workers", 2)
    assert tree(tmp_path / "set") == big.tree
    assert big.shards == 46 + 6


@pytest.mark.slow
def test_tasks_in_any_order_make_the_same_files(big, tmp_path):
    """Each but the last says how many shards are missing; once the set is complete, any of them
    says so and writes nothing.
    """
    for number, order in enumerate([(0, 1, 2), (2, 0, 1)]):
        out, left = tmp_path / str(number) / "set", big.shards
        for task in order[:-1]:
            done = succeed(*big.command, "--out", out, "--task", f"{task}/3")
            left -= len(range(task, big.shards, 3))
            assert (
                f"; {left} shards of other tasks are missing" in done.stderr
                and "complete," not in done.stderr
            )
            assert not (out / "dataset.json").exists()
        done = succeed(*big.command, "--out", out, "--task", f"{order[-1]}/3")
        assert done.stderr.rstrip().endswith(", complete")
        assert tree(out) == big.tree
    assert "already complete" in succeed(*big.command, "--out", out, "--task", "1/3").stderr
    assert tree(out) == big.tree


@pytest.mark.slow
def test_tasks_at_the_same_time_make_the_same_files(big, tmp_path):
    out = tmp_path / "set"
    commands = [
        command(*big.command, "--out", out, "--task", f"{task}/3", "--workers", 1)
        for task in range(3)
    ]
    tasks = [
        subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for arguments in commands
    ]
    ends = [end_of(task) for task in tasks]
    assert [end.returncode for end in ends] == [0, 0, 0], [end.stderr for end in ends]
    assert any(end.stderr.rstrip().endswith(", complete") for end in ends)
    assert tree(out) == big.tree


@pytest.mark.slow
def test_a_finished_task_writes_nothing_while_others_are_missing(big, tmp_path):
    arguments = [*big.command, "--out", tmp_path / "set", "--task", "0/20"]
    succeed(*arguments)
    before = identity(finished(tmp_path / "set"))
    done = succeed(*arguments)
    assert (
        "0 images" in done.stderr
        and "3 shards were finished before" in done.stderr
        and "49 shards of other tasks are missing" in done.stderr
    )
    assert len(before) == 3 and identity(list(before)) == before


DISTURBANCES = {  # what happens to a run with its workers -> exit status, words of its one line
    "kill -9": (-signal.SIGKILL, None),
    "kill -9 of a worker": (2, "a worker process was killed"),
    "Ctrl-C": (130, "interrupted"),
    "Ctrl-C as workers start": (130, "interrupted"),
}


def disturb(process: subprocess.Popen, kind: str, out: Path) -> list[int]:
    """Returns the worker processes that there were."""
    if kind == "Ctrl-C as workers start":
        while not children(process):  # without a pause: the moment is short
            assert process.poll() is None
    else:
        wait_until(lambda: len(finished(out)) >= 2 or process.poll() is not None)
    workers = children(process)
    if kind == "kill -9":
        process.kill()
    elif kind == "kill -9 of a worker":
        os.kill(workers[0], signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGINT)
    return workers


@pytest.mark.slow
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_a_disturbed_run_leaves_no_process_and_goes_on(big, tmp_path, kind):
    """The same command again keeps what is finished and ends with the bytes of an undisturbed run."""
    out, (status, words) = tmp_path / "set", DISTURBANCES[kind]
    arguments = [*big.command, "--out", out, "--workers", 2]
    with running(*arguments) as process:
        workers = disturb(process, kind, out)
        end = end_of(process)
        assert end.returncode == status, end.stderr
        assert len(workers) == 2 or kind == "Ctrl-C as workers start"
        wait_until(lambda: all(state(pid) in "ZX" for pid in workers))
    if words is None:
        assert end.stderr == ""
    else:
        (line,) = end.stderr.splitlines()
        assert words in line
        assert not list((out / ".partial").glob("*.tmp")), "what was half-written takes no space"
    before = identity(finished(out))
    assert len(before) < big.shards and not (out / "dataset.json").exists()
    assert {
        path.name: file_sha256(path) for path in out.glob("*.tar")
    }.items() <= big.tree.items(), "what has its final name is whole"
    done = succeed(*arguments)
    assert tree(out) == big.tree
    assert identity(list(before)) == before
    assert (
        kind == "Ctrl-C as workers start"
        or f"{len(before)} shards were finished before" in done.stderr
        and len(before) >= 2
    )


@contextmanager
def halted(*arguments: str | Path, out: Path) -> Iterator[subprocess.Popen]:
    """A run that stands still in the middle of its work, with all its processes."""
    with running(*arguments, "--out", out) as process:
        wait_until(lambda: finished(out) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGSTOP)
        wait_until(lambda: all(state(pid) == "T" for pid in (process.pid, *children(process))))
        assert process.poll() is None and not (out / "dataset.json").exists()
        yield process


@pytest.mark.slow
def test_a_second_run_is_refused_and_the_first_finishes_undisturbed(big, tmp_path):
    out = tmp_path / "set"
    with halted(*big.command, "--workers", 2, out=out) as first:
        before = tree(out)
        for arguments in ([], ["--task", "1/2"]):
            assert_one_line(
                call(*big.command, "--out", out, *arguments),
                "another data_prep is writing to",
                str(out),
            )
        assert tree(out) == before
        os.killpg(first.pid, signal.SIGCONT)
        end = end_of(first)
    assert end.returncode == 0 and end.stderr.rstrip().endswith(", complete")
    assert tree(out) == big.tree


@pytest.mark.slow
def test_a_task_runs_once_at_a_time_and_not_beside_a_run_of_all(big, tmp_path):
    out = tmp_path / "set"
    with halted(*big.command, "--task", "1/2", "--workers", 1, out=out) as first:
        for arguments in (["--task", "1/2"], []):
            assert_one_line(
                call(*big.command, "--out", out, *arguments),
                "another data_prep is writing to",
                str(out),
            )
        other = succeed(*big.command, "--out", out, "--task", "0/2")
        assert "shards of other tasks are missing" in other.stderr
        with open(
            out / ".partial" / "finish.lock", "w"
        ) as lock:  # as if a third one were writing the manifest
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.killpg(first.pid, signal.SIGCONT)
            wait_until(lambda: waits_for_a_lock(first.pid) or first.poll() is not None)
            assert len(finished(out)) == big.shards and not (out / "dataset.json").exists()
        end = end_of(first)
    assert end.returncode == 0 and end.stderr.rstrip().endswith(", complete")
    assert tree(out) == big.tree


def waits_for_a_lock(pid: int) -> bool:
    return any(
        "->" in line.split() and str(pid) in line.split()
        for line in Path("/proc/locks").read_text().splitlines()
    )


# --- a small source


@dataclass(frozen=True)
class Little:
    """Few images that are prepared fast."""

    source: Path

    @property
    def command(self) -> list[str]:
        return ["folder", "--source", str(self.source), "--samples-per-shard", "4"]


@pytest.fixture
def little(tmp_path) -> Little:
    images = [encode(Image.fromarray(noise(number, 24)), "PNG") for number in range(6)]
    folders = [f"{split}/{label}" for split in ("train", "test") for label in "ab"]
    contents = {
        f"{folder}/{number}.png": image for folder in folders for number, image in enumerate(images)
    }
    return Little(write_files(tmp_path / "images", contents))


def test_what_is_left_of_the_work_on_a_complete_set_is_removed(little, tmp_path):
    """As after a kill between dataset.json and the end."""
    out = tmp_path / "set"
    succeed(*little.command, "--out", out)
    before = tree(out)
    write_files(out / ".partial", {"lock": b"", "train-000000.tar.rows.arrow": b"rows"})
    assert "already complete" in succeed(*little.command, "--out", out).stderr
    assert tree(out) == before and not (out / ".partial").exists()


@dataclass(frozen=True)
class Pixels:
    pixels: np.ndarray

    def read(self, index: int) -> bytes:
        return encode(Image.fromarray(self.pixels[index]), "PNG")


def plan_of(small, out: Path) -> Plan:
    keys = [str(index) for index in range(len(small.labels))]
    return make_plan(
        Source(
            "pixels", list("abcd"), {"train": SourceSplit(small.labels, keys, Pixels(small.pixels))}
        ),
        out,
        0,
        8,
    )


def test_a_run_that_another_one_overtook_writes_nothing(small, tmp_path):
    """The set was not complete when the run began, and is when it gets the lock."""
    out = tmp_path / "set"
    for expected in (3, 0):
        summary = write(plan_of(small, out), 1, 0.0, "tests", lambda images, size: None)
        assert (summary.shards, summary.missing) == (expected, 0)
        if expected:
            before = identity(list(out.iterdir()))
    assert identity(list(out.iterdir())) == before and len(before) == 6


def test_a_finished_shard_that_was_lost_is_written_again(little, tmp_path):
    whole, lost = tmp_path / "whole" / "set", tmp_path / "lost" / "set"
    succeed(*little.command, "--out", whole)
    succeed(*little.command, "--out", lost, "--task", "0/2")
    (lost / "train-000000.tar").unlink()
    succeed(*little.command, "--out", lost)
    assert tree(lost) == tree(whole)


def add_file(root: Path) -> None:
    shutil.copy(root / "train/a/0.png", root / "train/a/new.png")


def change_content(root: Path) -> None:
    """As many bytes, written later."""
    path = root / "train/b/3.png"
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def change_size(root: Path) -> None:
    path = root / "train/b/3.png"
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "arguments"),
    [(add_file, ["--task", "1/2"]), (change_content, []), (change_size, [])],
)
def test_a_source_that_changed_in_between_is_refused(little, tmp_path, change, arguments):
    out = tmp_path / "set"
    succeed(*little.command, "--out", out, "--task", "0/2")
    change(little.source)
    before = identity(finished(out))
    assert_one_line(
        call(*little.command, "--out", out, *arguments),
        "start of another data set",
        "changed since",
        str(out),
    )
    assert len(before) == 3 and identity(list(before)) == before == identity(finished(out))


def test_a_source_that_changed_since_it_was_prepared_is_refused(little, tmp_path):
    out = tmp_path / "set"
    succeed(*little.command, "--out", out)
    before = tree(out)
    change_size(little.source)
    assert_one_line(
        call(*little.command, "--out", out), "holds another data set", "changed since", str(out)
    )
    assert tree(out) == before


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"made_by": null}', b"\xff", b'{"made_by": {"fingerp']
)
def test_a_strange_dataset_json_is_not_taken_for_this_data_set(small, tmp_path, content):
    write_files(tmp_path / "set", {"dataset.json": content})
    with pytest.raises(UserError, match="holds another data set"):
        is_complete(plan_of(small, tmp_path / "set"))


@pytest.mark.parametrize("option", ["--max-rejected=nan", "--quality=101", "--seed=4294967296"])
def test_numbers_that_make_no_sense_are_refused(little, tmp_path, option):
    name, value = option.split("=")
    assert_one_line(
        call(*little.command, "--out", tmp_path / "set", option), f"{name} must be from "
    )
    assert not (tmp_path / "set").exists()


# --- where the data set goes


@dataclass(frozen=True)
class SmallDisk:
    path: Path

    def remount(self, options: str) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,{options}", str(self.path)], check=True, timeout=LIMIT
        )


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if mounted.returncode and re.search("superuser|denied|not permitted", mounted.stderr):
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    yield SmallDisk(path)
    subprocess.run(["umount", str(path)], check=True, timeout=LIMIT)


@pytest.mark.slow
def test_on_a_full_disk_nothing_is_half_written_and_with_more_room_the_same_command_goes_on(
    little, small_disk, tmp_path
):
    """Grown bit by bit, so that it is full at many points of the work: in a shard, in its rows, in
    a manifest.
    """
    succeed(*little.command, "--out", tmp_path / "set", "--dali-index")
    whole, out, size, stages = tree(tmp_path / "set"), small_disk.path / "set", 64, set()
    arguments = [*little.command, "--out", out, "--workers", 2, "--dali-index"]
    while (done := call(*arguments)).returncode:
        reports = (
            out / "dataset.json"
        ).exists()  # that the set is complete, though its index is not
        assert_one_line(
            done,
            "No space left on device",
            str(out),
            "the same command again goes on",
            reports=reports,
        )
        found = {
            name: digest for name, digest in tree(out).items() if not name.startswith(".partial")
        }
        assert found.items() <= whole.items(), "what has its final name is whole"
        assert not list(out.rglob("*.tmp"))
        stages.add("manifest" if len(finished(out)) == 6 else "index" if reports else "shards")
        size += 16
        small_disk.remount(f"size={size}k")
    assert tree(out) == whole
    assert {"shards", "manifest"} <= stages, (size, stages)


@pytest.mark.slow
def test_what_cannot_be_written_is_told_in_one_line(little, small_disk, tmp_path):
    (tmp_path / "file").write_text("")
    small_disk.remount("size=1m")
    complete = [*little.command, "--out", small_disk.path / "set"]
    succeed(*complete)
    small_disk.remount("ro")
    cases = {
        small_disk.path / "other": "Read-only file system",
        tmp_path / "file" / "set": "Not a directory",
        Path("/proc/nowhere/set"): "No such file or directory",
        tmp_path / ("x" * 300): "File name too long",
    }
    for out, words in cases.items():
        assert_one_line(call(*little.command, "--out", out), str(out), words)
    assert_one_line(
        call(*complete, "--dali-index"), "Read-only file system", str(small_disk.path), reports=1
    )
    assert "already complete" in succeed(*complete).stderr, "which needs nothing written"


# --- other tools read what was written


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
        return [
            str(self.root / shard.name) for shard in read_dataset(self.root).splits[split].shards
        ]


STRANGE_CLASSES = ["a b  c", "plain", "x" * LONG, "ねこ・犬"]  # sorted
STRANGE_STEMS = [
    "0",
    "a b",
    "naïve",
    "写真　一",
    "写真　二",
    "y" * LONG + "1",
    "y" * LONG + "2",
    "[bold]",
    "name.with.dots",
]


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Made:
    """JPEGs under names with spaces, dots, brackets, of other scripts and longer than a tar header,
    in folders of such names.
    """
    root = tmp_path_factory.mktemp("strange")
    generator = np.random.default_rng(0)
    originals, contents = {}, {}
    for split in ("train", "test"):
        originals[split] = {}
        for label, name in enumerate(STRANGE_CLASSES):
            for stem in STRANGE_STEMS:
                content = encode(smooth_image(generator, 24, 16), "JPEG", quality=90)
                contents[f"{split}/{name}/{stem}.jpg"] = content
                originals[split][f"{name}/{stem.replace('.', '_')}"] = Original(content, label)
    source, out = (
        write_files(root / "Quelle [alt] für ねこ", contents),
        root / "Ziel [neu] ü $1$ ねこ",
    )
    arguments = ["folder", "--source", str(source), "--samples-per-shard", "10"]
    succeed(*arguments, "--out", out)
    return Made(out, arguments, "jpg", originals)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Made:
    """A pool of unlabeled raw pixels."""
    root = tmp_path_factory.mktemp("pool")
    pixels = np.stack([noise(number, 9)[:7] for number in range(25)])
    np.save(root / "pool.npy", pixels)
    arguments = ["tinyimages", "--source", str(root / "pool.npy"), "--samples-per-shard", "10"]
    succeed(*arguments, "--out", root / "set")
    return Made(
        root / "set",
        arguments,
        "ppm",
        {
            "train": {
                f"{number:08d}": Original(ppm(image), -1) for number, image in enumerate(pixels)
            }
        },
    )


@pytest.fixture(scope="module")
def thumbnails(tmp_path_factory) -> Made:
    """PNGs of 32 x 32 pixels in class folders, as CIFAR-10 is often kept, from a list."""
    root = tmp_path_factory.mktemp("thumbnails")
    places = [(label, number) for label in range(3) for number in range(9 - 4 * label)]
    contents = {
        f"{label}/{number}.png": encode(Image.fromarray(noise(label * 10 + number, 32)), "PNG")
        for label, number in places
    }
    write_files(root / "images", contents)
    (root / "train.txt").write_text("".join(f"{name} {name[0]}\n" for name in contents))
    arguments = [
        "folder",
        "--list",
        str(root / "train.txt"),
        "--source",
        str(root / "images"),
        "--samples-per-shard",
        "6",
    ]
    succeed(*arguments, "--out", root / "set", "--dali-index")
    originals = {
        name.removesuffix(".png"): Original(content, int(name[0]))
        for name, content in contents.items()
    }
    return Made(root / "set", arguments, "png", {"train": originals})


@pytest.fixture(scope="module", params=["strange", "pool", "thumbnails"])
def made(request) -> Made:
    return request.getfixturevalue(request.param)


def test_webdataset_reads_every_sample(made):
    for split, originals in made.originals.items():
        tars = made.tars(split)
        assert len(tars) > 1
        found = {
            sample["__key__"]: sample
            for sample in webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
        }
        assert found.keys() == originals.keys()
        for key, original in originals.items():
            np.testing.assert_array_equal(
                found[key][made.extension], Image.open(io.BytesIO(original.content))
            )
            assert found[key].get("cls", -1) == original.label


def read_by_dali(made: Made, split: str, indexed: bool) -> list[tuple[bytes, int]]:
    """Every sample's bytes and label (-1: none), in order."""
    tars, ext = (
        made.tars(split),
        (["jpg;png;ppm", "cls"] if made.extension != "ppm" else ["jpg;png;ppm"]),
    )
    index = {"index_paths": [tar.replace(".tar", ".idx") for tar in tars]} if indexed else {}

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        outputs = fn.readers.webdataset(
            paths=tars, ext=ext, name="reader", missing_component_behavior="error", **index
        )
        return tuple(outputs) if len(ext) > 1 else outputs

    pipe = pipeline()
    pipe.build()
    found = []
    for _ in range(pipe.reader_meta("reader")["epoch_size"]):
        content, *label = (bytes(np.array(output[0])) for output in pipe.run())
        found.append((content, int(label[0]) if label else -1))
    return found


def test_dali_reads_every_sample_with_and_without_an_index(made, tmp_path):
    """The index may be asked for when the set is complete already: it is the same."""
    copy = Made(
        Path(shutil.copytree(made.root, tmp_path / made.root.name)),
        made.command,
        made.extension,
        made.originals,
    )
    for path in copy.root.glob("*.idx"):
        path.unlink()
    done = succeed(*made.command, "--out", copy.root, "--dali-index")
    number = sum(map(len, map(copy.tars, made.originals)))
    assert (
        "already complete" in done.stderr
        and f"{number} index files for DALI written" in done.stderr
    )
    assert tree(made.root).items() <= tree(copy.root).items() and len(tree(made.root)) in (
        len(tree(copy.root)),
        len(tree(copy.root)) - number,
    )
    for split, originals in made.originals.items():
        manifest = Manifest(made.root, split)
        expected = [
            (originals[key].content, originals[key].label)
            for key in map(manifest.key, range(len(manifest)))
        ]
        assert len(expected) == len(originals)
        assert read_by_dali(copy, split, indexed=False) == expected
        assert read_by_dali(copy, split, indexed=True) == expected


def by_arrow(path: Path) -> pa.Table:
    """Mapped, so that nothing is copied into memory."""
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    assert pa.total_allocated_bytes() == before
    (batch,) = table.to_batches()
    for name in set(table.column_names) - {"key"}:
        batch[name].to_numpy(zero_copy_only=True)
    return table


def by_hugging_face(path: Path) -> pa.Table:
    """As the datasets library opens Arrow files: as a stream, or else as a file."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


READERS = {
    "pyarrow": by_arrow,
    "pyarrow.dataset": lambda path: pyarrow.dataset.dataset(path, format="ipc").to_table(),
    "Hugging Face": by_hugging_face,
    "pandas": lambda path: pa.Table.from_pandas(
        pandas.read_feather(path), schema=MANIFEST_SCHEMA, preserve_index=False
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_other_tools_read_the_manifest_which_points_at_the_images_bytes(made, reader):
    for split, originals in made.originals.items():
        table = READERS[reader](made.root / f"{split}.arrow")
        assert table.schema.equals(MANIFEST_SCHEMA)
        tars = [Path(tar).read_bytes() for tar in made.tars(split)]
        rows = table.to_pylist()
        assert {row["key"] for row in rows} == originals.keys() and len(rows) == len(originals)
        for row in rows:
            original = originals[row["key"]]
            assert (
                tars[row["shard"]][row["offset"] : row["offset"] + row["size"]] == original.content
            )
            assert (row["width"], row["height"]) == Image.open(io.BytesIO(original.content)).size
            assert row["label"] == original.label


# --- images


@pytest.fixture(scope="module")
def odd_images() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    image = smooth_image(generator, 60, 40)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_BY_90
    return {
        "plain.jpg": encode(image, "JPEG", quality=90),
        "rotated.jpg": encode(image, "JPEG", quality=90, exif=exif),
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG", quality=90),
        "16 bits.png": encode(
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256), "PNG"
        ),
        "empty.jpg": b"",
        "truncated.jpg": encode(image, "JPEG", quality=90)[:-200],
        "text.jpg": b"this is no image, though it was named so",
    }


GOOD = {"plain", "rotated", "cmyk"}


@pytest.fixture(scope="module")
def odd(odd_images, tmp_path_factory) -> Path:
    """All of them, prepared."""
    root = tmp_path_factory.mktemp("odd")
    write_files(root / "images" / "a", odd_images)
    succeed("folder", "--source", root / "images", "--out", root / "set", "--max-rejected", "0.6")
    return root / "set"


def test_odd_images_are_kept_as_they_are_or_named_with_the_reason(odd, odd_images):
    manifest = Manifest(odd, "train")
    kept = {
        manifest.key(sample_id).removeprefix("a/"): sample_id for sample_id in range(len(manifest))
    }
    assert kept.keys() == GOOD
    for name, sample_id in kept.items():
        assert manifest.read(sample_id).tobytes() == odd_images[f"{name}.jpg"]
        assert (manifest.widths[sample_id], manifest.heights[sample_id]) == (
            60,
            40,
        ), "as stored, whatever EXIF says"
    rejected = {
        row["key"]: row["reason"]
        for row in map(json.loads, (odd / "rejected.jsonl").read_text().splitlines())
    }
    reasons = {
        "16 bits": "not 8 bits",
        "empty": "empty file",
        "truncated": "does not decode",
        "text": "not an image",
    }
    assert rejected.keys() == {f"a/{name}" for name in reasons}
    assert all(reason in rejected[f"a/{name}"] for name, reason in reasons.items())


def test_dali_decodes_cmyk_as_pillow_does(odd, odd_images):
    tar = str(odd / "train-000000.tar")

    @pipeline_def(batch_size=3, num_threads=1, device_id=None)
    def pipeline():
        return fn.decoders.image(
            fn.readers.webdataset(paths=[tar], ext=["jpg"]), device="cpu", output_type=types.RGB
        )

    pipe = pipeline()
    pipe.build()
    (images,) = pipe.run()
    keys = [Manifest(odd, "train").key(sample_id) for sample_id in range(3)]
    expected = np.asarray(Image.open(io.BytesIO(odd_images["cmyk.jpg"])).convert("RGB")).astype(int)
    assert np.abs(np.array(images[keys.index("a/cmyk")]).astype(int) - expected).max() <= 1


def test_more_unusable_images_than_allowed_are_an_error_that_says_how_to_allow_them(
    little, tmp_path
):
    """29 of 100: the share it names is enough, though 0.29 * 100 is less than 29 to a computer."""
    content = (little.source / "train/a/0.png").read_bytes()
    write_files(
        tmp_path / "many" / "a",
        {f"{number}.png": content if number >= 29 else b"" for number in range(100)},
    )
    arguments = ["folder", "--source", tmp_path / "many", "--out", tmp_path / "set"]
    done = call(*arguments)
    assert_one_line(
        done, "29 of 100 images cannot be used", "rejected.jsonl", "--max-rejected 0.29 "
    )
    assert not (tmp_path / "set" / "dataset.json").exists()
    done = succeed(*arguments, "--max-rejected", "0.29")
    assert "29 rejected" in done.stderr and "1 shards were finished before" in done.stderr
    assert read_dataset(tmp_path / "set").splits["train"].rejected == 29


def test_without_the_decode_check_only_headers_are_read(odd, odd_images, tmp_path):
    """A truncated image passes; good images give the same tar and manifest as with the check."""
    write_files(
        tmp_path / "all" / "a",
        {
            name: content
            for name, content in odd_images.items()
            if Path(name).stem in {*GOOD, "truncated"}
        },
    )
    succeed(
        "folder", "--source", tmp_path / "all", "--out", tmp_path / "trusted", "--no-decode-check"
    )
    manifest = Manifest(tmp_path / "trusted", "train")
    contents = {
        manifest.key(sample_id): manifest.read(sample_id).tobytes()
        for sample_id in range(len(manifest))
    }
    assert contents == {f"a/{name}": odd_images[f"{name}.jpg"] for name in (*GOOD, "truncated")}

    write_files(
        tmp_path / "good" / "a",
        {name: content for name, content in odd_images.items() if Path(name).stem in GOOD},
    )
    for name, options in (("checked", []), ("trusted2", ["--no-decode-check"])):
        succeed("folder", "--source", tmp_path / "good", "--out", tmp_path / name, *options)
    checked, trusted = (tree(tmp_path / name) for name in ("checked", "trusted2"))
    assert {name for name in checked if checked[name] != trusted[name]} == {"dataset.json"}


def test_resize_makes_larger_training_images_smaller_and_keeps_all_others(tmp_path):
    generator = np.random.default_rng(0)
    sides = {
        "landscape": (200, 90),
        "portrait": (98, 301),
        "just larger": (65, 65),
        "exactly": (64, 100),
        "smaller": (63, 300),
        "wide": (1000, 66),
    }
    images = {
        f"{name}.jpg": encode(smooth_image(generator, *size), "JPEG", quality=95)
        for name, size in sides.items()
    }
    images["png.png"] = encode(Image.fromarray(noise(0, 90)).convert("RGBA"), "PNG")
    sides["png"] = (90, 90)
    splits = ("train", "val", "test")
    source = write_files(
        tmp_path / "images",
        {f"{split}/a/{name}": content for split in splits for name, content in images.items()},
    )
    for workers in (1, 2):
        options = [
            "--samples-per-shard",
            "3",
            "--resize",
            "64",
            "--quality",
            "90",
            "--workers",
            workers,
        ]
        succeed("folder", "--source", source, "--out", tmp_path / str(workers) / "set", *options)
    root = tmp_path / "1" / "set"
    assert tree(root) == tree(tmp_path / "2" / "set")
    for split in splits:
        manifest = Manifest(root, split)
        assert len(manifest) == len(images)
        for sample_id in range(len(manifest)):
            name, content = (
                manifest.key(sample_id).rpartition("/")[2],
                manifest.read(sample_id).tobytes(),
            )
            original, (width, height) = (
                images.get(f"{name}.jpg") or images[f"{name}.png"],
                sides[name],
            )
            if split != "train" or min(width, height) <= 64:
                assert content == original
                continue
            image = Image.open(io.BytesIO(content))
            assert image.format == "JPEG" and image.mode == "RGB"
            assert (
                image.size == (manifest.widths[sample_id], manifest.heights[sample_id])
                and min(image.size) == 64
            )
            assert abs(max(image.size) - max(width, height) * 64 / min(width, height)) <= 1
            assert (image.width > image.height) == (width > height)
            expected = (
                Image.open(io.BytesIO(original))
                .convert("RGB")
                .resize(image.size, Image.Resampling.BICUBIC)
            )
            assert content == encode(expected, "JPEG", quality=90)


# --- verify, info, --benchmark


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_dataset(root: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((root / "dataset.json").read_text())
    change(content["splits"]["train"])
    (root / "dataset.json").write_text(json.dumps(content))


def first_row(root: Path) -> dict:
    return (
        pa.ipc.open_file((root / "train.arrow").read_bytes()).read_all().slice(0, 1).to_pylist()[0]
    )


def not_arrow(root: Path) -> None:
    """A column's type becomes one that no manifest has."""
    table = pa.ipc.open_file((root / "train.arrow").read_bytes()).read_all()
    table = table.set_column(
        table.column_names.index("label"), "label", pa.array(["a"] * len(table))
    )
    with pa.ipc.new_file(root / "train.arrow", table.schema) as sink:
        sink.write_table(table)


WRITTEN = "is not as it was written"
DAMAGES = {  # what is done to a data set, with another one at hand -> what is said about it
    "a flipped byte in an image": (
        lambda root, other: flip(root / "train-000000.tar", first_row(root)["offset"] + 50),
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
    "a manifest of another type": (lambda root, other: not_arrow(root), ["train.arrow"]),
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
        images = {
            f"{number}.png": encode(Image.fromarray(noise(number, 20)), "PNG")
            for number in range(size)
        }
        write_files(
            root / name / "images",
            {f"{label}/{number}": image for label in "abc" for number, image in images.items()},
        )
        succeed(
            "folder",
            "--source",
            root / name / "images",
            "--out",
            root / name / "set",
            "--samples-per-shard",
            per_shard,
        )
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
    assert len(lines) == 4 and [
        sum(word in line for line in lines)
        for word in ("crc32", "sha256", "is missing", "class counts")
    ] == [1, 1, 1, 1]


def test_info_counts_labeled_images(strange, tmp_path):
    """The name and the command that made it have brackets and dollars in them, which mean nothing."""
    done = succeed("info", strange.root, "--plot", tmp_path / "counts.png")
    assert (
        "Ziel [neu] ü $1$ ねこ" in done.stdout
        and "Quelle [alt] für ねこ" in done.stdout
        and "4 classes" in done.stdout
    )
    assert re.search(r"train +36 +9 +9 +1\.0 +4 ", done.stdout) and re.search(
        r"test +36 +9 +9 +1\.0 +4 ", done.stdout
    )
    assert (
        "training classes: many-shot 0, medium-shot 0, few-shot 4" in done.stdout
        and "…" not in done.stdout
    )
    assert re.search(r"plain +9 █{40}", done.stdout)
    assert_is_plot(tmp_path / "counts.png")


def assert_is_plot(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 2, "something is drawn"


def test_info_prints_what_the_encoding_of_the_output_lacks_otherwise(strange):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        command("info", strange.root),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment,
    )
    assert (
        done.returncode == 0
        and "Traceback" not in done.stderr
        and r"f\xfcr \u306d\u3053" in done.stdout
    )


def test_info_of_a_pool_has_no_classes_and_no_plot(pool, tmp_path):
    done = succeed("info", pool.root)
    assert (
        "0 classes" in done.stdout
        and re.search(r"train +25 ", done.stdout)
        and "shot" not in done.stdout
    )
    done = call("info", pool.root, "--plot", tmp_path / "counts.png")
    assert_one_line(done, "unlabeled", str(pool.root))
    assert not (tmp_path / "counts.png").exists()


def test_info_of_an_unlabeled_set_counts_by_sourced_label(tmp_path):
    labels = np.repeat(np.arange(10), [15, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    content = {
        "data": np.stack([noise(number, 32) for number in range(60)]),
        "extrapolated_targets": labels,
    }
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps(content))
    succeed(
        "unlabeled_cifar10", "--pool", tmp_path / "ti.pickle", "--all", "--out", tmp_path / "set"
    )
    done = succeed("info", tmp_path / "set", "--plot")
    assert (
        "classes by sourced_label (the set is unlabeled): many-shot 0, medium-shot 0, few-shot 10"
        in done.stdout
    )
    for line in (r"train +60 +15 +1 +15\.0 ", r"airplane +15 █{40}\n", r"truck +1 █+\n"):
        assert re.search(line, done.stdout)
    assert_is_plot(tmp_path / "set" / "class_counts.png")
    succeed("verify", tmp_path / "set")


def test_a_plot_that_cannot_be_written_is_one_line(two_sets, tmp_path):
    assert_one_line(call("info", two_sets[0], "--plot", tmp_path), str(tmp_path), "Is a directory")


@pytest.mark.slow
def test_benchmark_prints_both_ratios_and_leaves_nothing(little, tmp_path):
    before = tree(tmp_path)
    done = succeed(
        *little.command, "--out", tmp_path / "not" / "there" / "set", "--workers", 2, "--benchmark"
    )
    for ratio in ("shards over decode check alone", "shards, no decode check over tar cf"):
        assert float(re.search(rf"^{ratio}: ([0-9.]+)$", done.stdout, re.MULTILINE)[1]) > 0
    assert tree(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"images"}


def test_a_benchmark_that_cannot_write_is_one_line(little, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_line(
        call(*little.command, "--out", "/proc/nowhere/set", "--benchmark"),
        "cannot write to '/proc'",
    )
