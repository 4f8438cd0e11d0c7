"""What lies in a run's folder is damaged: each time that is told in one line, passed over, or
nothing of it counts.

``LT_TRAIN_TRIALS`` asks for more trials, ``LT_TRAIN_SEED`` for others.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.pipeline import StageJob
from launch.status import read_progress
from lt_train.config.load import load_config, to_yaml
from lt_train.config.schema import Config, RunConfig
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.files import seal
from lt_train.report.runs import read_log, read_runs
from lt_train.run_files import parse_log, read_result, write_record
from lt_train.training.checkpoint import Checkpoint, CheckpointStore
from lt_train.training.monitor import Monitor
from lt_train.training.run_folder import RunFolder
from tests.helpers.damage import DAMAGES, flip
from tests.helpers.finished_runs import (
    predicted,
    report,
    split_metrics,
    write_posthoc,
    write_run,
)
from tests.helpers.trials import SEED, trials

TRIALS = trials(24)  # a file
STEPS = (4, 8)
DATA = {"data.root": "0" * 64}
NEWEST = f"checkpoints/step-{STEPS[-1]:08d}"
FILES = {  # what is damaged -> whether its run has finished
    f"{NEWEST}/meta.json": False,
    f"{NEWEST}/state.pt": False,
    "config.yaml": False,
    "metrics.jsonl": False,
    "result.json": True,
    "posthoc.json": True,
    "nonfinite.json": True,
    "predictions.npz": True,
}
ODD = [
    b"",
    b"5",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"\xff\xfe",
    b"\x00" * 100,
    b"[" * 10**5,
    b'{"a":' * 10**5,
    b"1" * 10**4,
    b"a: &a [*a]",
    "{}".encode("utf-16"),
]
VALUES = [None, True, -1, 10**30, 10**400, float("inf"), float("nan"), "x", "", [], [[1], []], {}]


def config_of(folder: Path) -> Config:
    return Config(run=RunConfig(dir=str(folder)), seed=3)


def write_state(folder: Path) -> None:
    torch.save({"weights": torch.arange(8.0)}, folder / "state.pt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run as the trainer leaves it, without what takes time."""
    path = tmp_path_factory.mktemp("finished") / "run"
    folder = RunFolder(config_of(path), World())
    predictions = {"test": predicted()}
    write_run(path, predictions=predictions, steps=STEPS[-1], **folder.about(DATA))
    store = CheckpointStore(folder.checkpoints, 2, World())
    for step in STEPS:
        store.save(step, {"seconds": 1.0, "ranks": 1, **folder.about(DATA)}, write_state)
    (path / "config.yaml").write_text(to_yaml(folder.config))
    record = {"step": 8, "last_step": 8, "images_per_s": 5.0, "seconds_left": 0.0, "loss": 1.0}
    with open(path / "metrics.jsonl", "ab") as file:
        file.write(write_record(record))
    classifier = {"name": "tau-norm", "parameter": "tau 0.7", "metrics": {"test": split_metrics()}}
    write_posthoc(path, "val", classifier)
    (path / "nonfinite.json").write_bytes(seal({"step": 7, "sample_ids": [1, 2]}))
    return path


def odd(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(ODD)


def odd_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    lines[draw.randrange(len(lines))] = draw.choice(ODD)
    return b"\n".join(lines)


def odd_value(content: bytes, draw: random.Random) -> bytes:
    """One value somewhere in a JSON object, or in a line of them, is another."""
    lines = [content] if content.startswith(b"{\n") else content.splitlines()
    place = draw.randrange(len(lines))
    try:
        tree = json.loads(lines[place])
    except ValueError:
        return flip(content, draw)
    inside = tree
    while True:
        key = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        deeper = inside[key]
        if not isinstance(deeper, (dict, list)) or not deeper or draw.random() < 0.4:
            break
        inside = deeper
    inside[key] = draw.choice(VALUES)
    lines[place] = json.dumps(tree).encode()
    return b"\n".join(lines) + b"\n"


EVERY = (*DAMAGES, odd, odd_line, odd_value)


def told(act: Callable, *arguments) -> object:
    """What ``act`` returns; a :class:`UserError` is as good."""
    try:
        return act(*arguments)
    except UserError as error:
        assert str(error)
        return error


def go_on(path: Path) -> Checkpoint | dict | None:
    """As the trainer begins; what it goes on from."""
    folder = RunFolder(config_of(path), World())
    found = folder.finished(STEPS[-1])
    if found is None:
        found = CheckpointStore(folder.checkpoints, 2, World()).newest()
    folder.claim(found.meta if isinstance(found, Checkpoint) else found, DATA)
    first = found.step if isinstance(found, Checkpoint) else STEPS[-1]
    with Monitor(path, first, STEPS[-1], enabled=True) as monitor:
        monitor.evaluated(first, "val", {"top1": 1.0})
    assert not parse_log((path / "metrics.jsonl").read_bytes())[1]
    return found


def look_at(path: Path, whole: Path) -> None:
    """As the other commands do, which train nothing.

    What they read of a file with a checksum is what was written, or nothing.
    """
    result, written = told(read_result, path), read_result(whole)
    if isinstance(result, dict) and result:
        assert {name: result.get(name) for name in written} == written
    told(load_config, str(path / "config.yaml"))
    written = read_log(whole)[0]
    assert all(record in written for record in read_log(path)[0])
    found = told(read_runs, [path])
    if not isinstance(found, UserError):
        (run,), (same,) = found[0], read_runs([whole])[0]
        assert repr((run.metrics, run.posthoc)) == repr((same.metrics, same.posthoc))
        allowed = {
            words.replace(step, "") for words in same.warnings for step in ("", " at step 7")
        }
        parted = ("unreadable", "predictions.npz is left out")
        others = {words for words in run.warnings if not any(part in words for part in parted)}
        assert others <= allowed
        assert run.predictions is None or (run.predictions == same.predictions).all()
    told(read_progress, str(path))
    StageJob("x", "train", str(path), config="classifier_demo").is_finished()
    store = CheckpointStore(path / "checkpoints", 2, World())
    for step in STEPS:
        told(store.find, step)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_damage_is_told_or_passed_over(file, finished, tmp_path):
    draw = random.Random(f"{SEED} {file}")
    whole = CheckpointStore(finished / "checkpoints", 2, World())
    metas = {step: whole.find(step).meta for step in STEPS}
    for trial in range(TRIALS):
        path = Path(shutil.copytree(finished, tmp_path / str(trial)))
        damage = draw.choice(EVERY)
        (path / file).write_bytes(damage((path / file).read_bytes(), draw))
        what = f"SEED={SEED}, trial {trial}, {damage.__name__}: {path / file}"
        try:
            if trial % 20 == 0:  # it draws, which takes a second
                told(report, path)
            if not FILES[file]:
                (path / "result.json").unlink()
            look_at(path, finished)
            found = told(go_on, path)
        except Exception as error:
            raise AssertionError(what) from error
        if isinstance(found, Checkpoint):
            assert found.meta == metas[found.step], what
        else:
            assert isinstance(found, (dict, UserError)), what
        shutil.rmtree(path)
