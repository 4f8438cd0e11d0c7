"""Whose a run's folder is, and what it keeps."""

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lt_train import locks
from lt_train.config.load import read_yaml
from lt_train.config.schema import Config, OptimConfig, ResumeConfig, RunConfig
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.files import temporary_of, unseal
from lt_train.run_files import write_result
from lt_train.training.best_weights import BestWeights
from lt_train.training.checkpoint import CheckpointStore, saved_checkpoints
from lt_train.training.monitor import Monitor
from lt_train.training.run_folder import RunFolder
from tests.helpers.data_prep_runs import tree

VALUES = {"loss": 1.0, "images_per_s": 1.0, "seconds_left": 0.0}


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(run=RunConfig(dir=str(tmp_path / "run")), seed=3)


def claimed(config: Config) -> Path:
    folder = RunFolder(config, World())
    folder.claim()
    return folder.path


def test_a_claimed_folder_holds_the_resolved_config(config):
    saved = read_yaml(claimed(config) / "config.yaml")
    assert saved["seed"] == 3 and saved["optim"]["momentum"] == 0.9


def test_a_start_that_left_nothing_may_be_made_again_with_other_keys(config):
    path = claimed(config)
    claimed(replace(config, seed=4))
    assert read_yaml(path / "config.yaml")["seed"] == 4


@pytest.mark.parametrize("work", ["result.json", "checkpoints/step-00000004"])
def test_a_folder_with_work_in_it_is_not_given_another_config(config, work):
    path = claimed(config)
    (path / work).mkdir(parents=True)
    claimed(config)
    with pytest.raises(UserError, match=r"another config \(seed: 3 -> 4\).*allow_changes=\[seed\]"):
        claimed(replace(config, seed=4))
    assert read_yaml(path / "config.yaml")["seed"] == 3
    claimed(replace(config, seed=4, resume=ResumeConfig(allow_changes=("seed",))))
    assert read_yaml(path / "config.yaml")["seed"] == 4


@pytest.mark.parametrize(
    "change",
    [
        {"description": "the same, in other words"},
        {"max_steps": 7},
        {"reference_error": 29.6},
        {"run": {"log_every": 3}},
        {"data": {"cache_dir": "/scratch"}},
    ],
    ids=str,
)
def test_keys_that_change_nothing_that_is_learnt_may_change(config, change):
    (claimed(config) / "checkpoints" / "step-00000004").mkdir(parents=True)
    for key, value in change.items():
        inner = replace(getattr(config, key), **value) if isinstance(value, dict) else value
        config = replace(config, **{key: inner})
    claimed(config)


def test_every_changed_key_is_named(config):
    (claimed(config) / "result.json").touch()
    changed = replace(config, epochs=9.0, optim=OptimConfig(lr=0.5))
    with pytest.raises(UserError, match=r"epochs: 90.0 -> 9.0, optim.lr: 0.1 -> 0.5"):
        claimed(changed)


def test_a_run_is_finished_when_its_result_has_the_steps_asked_for(config):
    path, folder = claimed(config), RunFolder(config, World())
    assert folder.finished(10) is None
    (path / "result.json").write_text(json.dumps({"steps": 10, "metrics": {}}))
    assert folder.finished(10) == {"steps": 10, "metrics": {}}
    assert folder.finished(20) is None
    write_result(path, {"steps": 10, "metrics": {"top1": 71.5}})
    assert folder.finished(10) == {"steps": 10, "metrics": {"top1": 71.5}}
    sealed = (path / "result.json").read_text()
    for damaged in ('{"steps": 1', sealed.replace("71.5", "91.5")):
        (path / "result.json").write_text(damaged)
        assert folder.finished(10) is None


def test_a_loss_that_is_not_finite_is_told_with_its_samples(config):
    path, folder = claimed(config), RunFolder(config, World())
    with pytest.raises(UserError, match=r"the loss is nan at step 5 \(sample ids 1, 2, \.\.\."):
        folder.stop_nonfinite(5, float("nan"), [1, 2])
    content = unseal((path / "nonfinite.json").read_bytes())
    assert content == {"step": 5, "sample_ids": [1, 2]}


def test_a_folder_that_cannot_be_made_is_one_line(config, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="cannot write to run.dir .*run"):
        claimed(config)


def test_a_run_of_an_earlier_version_is_named_as_such(config):
    path = claimed(config)
    (path / "checkpoints" / "step-00000004").mkdir(parents=True)
    saved = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(saved.replace("method:", "stage:"))
    with pytest.raises(UserError, match="earlier version of lt_train .stage is method now"):
        claimed(config)


def test_a_user_s_own_entries_are_no_work(config):
    path = claimed(config)
    for name in ("step-best", "step-4", "step-00000004.mine"):
        (path / "checkpoints" / name).mkdir(parents=True)
    (path / "checkpoints" / "step-00000004").write_text("a file")
    claimed(replace(config, seed=4))


def about(config: Config, data: dict | None = None) -> dict:
    """What result.json or a meta.json says of a run."""
    return RunFolder(config, World()).about(data or {})


def test_another_run_s_checkpoints_or_result_are_not_gone_on_with(config):
    folder, other = RunFolder(config, World()), about(replace(config, seed=4))
    with pytest.raises(UserError, match=r"another config \(seed: 4 -> 3\).*allow_changes=\[seed\]"):
        folder.claim(other)
    assert not (folder.path / "config.yaml").exists(), "the right command finds no wrong config"
    folder.claim(about(replace(config, max_steps=9, description="the same")))
    allowed = replace(config, resume=ResumeConfig(allow_changes=("seed",)))
    RunFolder(allowed, World()).claim(other)


def test_another_set_at_the_same_place_is_refused_unless_allowed(config):
    config = replace(config, data=replace(config.data, root="shards/x"))
    folder, before = RunFolder(config, World()), about(config, {"data.root": "one"})
    folder.claim(before, {"data.root": "one"})
    with pytest.raises(UserError, match=r"other data than there is in data.root=shards/x now.*"):
        folder.claim(before, {"data.root": "two"})
    allowed = replace(config, resume=ResumeConfig(allow_changes=("data.root",)))
    RunFolder(allowed, World()).claim(before, {"data.root": "two"})


def test_what_earlier_versions_have_not_kept_is_not_asked_for(config):
    RunFolder(config, World()).claim({"steps": 10}, {"data.root": "one"})


@pytest.mark.parametrize("key", ["config", "data"])
def test_what_is_kept_of_a_run_and_is_odd_is_one_line(config, key):
    with pytest.raises(UserError, match=f"is damaged: '{key}' cannot be 5"):
        RunFolder(config, World()).claim({key: 5})


ODD = ["[]", "null", "5", "[" * 10**5, "\xff\xfe", "{", ""]


@pytest.mark.parametrize("content", ODD)
def test_an_odd_result_is_told_and_does_not_count(config, content, caplog):
    path = claimed(config)
    (path / "result.json").write_bytes(content.encode("latin-1"))
    assert RunFolder(config, World()).finished(10) is None
    assert "result.json is damaged" in caplog.text


def test_a_result_that_cannot_be_read_is_not_passed_over(config):
    (claimed(config) / "result.json").mkdir()
    with pytest.raises(UserError, match="cannot read .*result.json: Is a directory"):
        RunFolder(config, World()).finished(10)


def test_a_damaged_config_is_told_with_the_way_out(config):
    path = claimed(config)
    (path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (path / "config.yaml").write_text("seed: [")
    with pytest.raises(UserError, match=r"cannot read .*config.yaml: line \d: .*; remove it, and"):
        claimed(config)


@pytest.fixture
def running(config):
    """The folder of a run that holds its lock."""
    folder = RunFolder(config, World())
    assert folder.take() is None
    folder.claim()
    yield folder
    folder.lock.release()


def dead_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_what_killed_writers_have_left_goes_and_nothing_else(running):
    path, here = running.path, temporary_of(running.path / "x").name
    kept = [".notes.tmp", "result.json.12.tmp", ".mine.12.tmpx", ".12.tmp"]
    living = [here, ".best.pt@node7.12.tmp", ".best.pt.12.tmp"]
    for name in (*kept, ".result.json.12.tmp", ".best.pt@node7.3456.tmp"):
        (path / name).touch()
        os.utime(path / name, (1, 1))  # nobody writes to them now
    for name in (*living, here.replace(f".{os.getpid()}.", f".{dead_process()}.")):
        (path / name).touch()
    (path / ".a.12.tmp").mkdir()
    running.claim()
    others = {".a.12.tmp", "config.yaml", "run.lock", *living}
    assert {entry.name for entry in path.iterdir()} == {*kept, *others}


def test_a_second_run_is_told_who_has_the_folder(running, config, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.0)
    other = RunFolder(replace(config, seed=4), World())
    assert f"in use by pid {os.getpid()} on" in other.lock.take(0).who
    assert read_yaml(running.path / "config.yaml")["seed"] == 3


def overtake(folder: RunFolder) -> None:
    """As a later attempt of the same job does."""
    holder = replace(locks.this_process(2**62), host="node7")
    (folder.path / "run.lock").write_text(json.dumps(asdict(holder)))


def test_a_run_that_was_overtaken_writes_nothing_more(running):
    path, check, network = running.path, running.lock.check, torch.nn.Linear(2, 2)
    store = CheckpointStore(running.checkpoints, 2, World(), check)
    best, monitor = BestWeights(path, "val", check), Monitor(path, 0, 9, True, check)
    best.offer(1, 5.0, network)
    monitor.record(1, VALUES)
    overtake(running)
    before = tree(path)
    writers = {
        "a checkpoint": lambda: store.save(4, {}, lambda _: None),
        "better weights": lambda: best.offer(2, 6.0, network),
        "a new start": best.forget,
        "a row": lambda: monitor.record(3, VALUES),
        "an evaluation": lambda: monitor.evaluated(3, "val", {"top1": 1.0}),
        "pictures": lambda: monitor.show(
            3, lambda: {"views/view_1": np.zeros((2, 2, 3), np.uint8)}
        ),
        "its texts": lambda: monitor.begin(running.config),
        "its end": lambda: running.finish(SimpleNamespace(backbone=network), {"steps": 9}, {}),
        "its samples": lambda: running.stop_nonfinite(3, float("nan"), [1]),
    }
    for name, write in writers.items():
        with pytest.raises(UserError, match="taken over by pid .* on node7"):
            write()
        assert tree(path) == before, name
    with monitor:
        pass
    assert tree(path) == before, "closing a file of events adds nothing"


def test_a_checkpoint_that_was_begun_before_is_not_put_in_place(running):
    store = CheckpointStore(running.checkpoints, 2, World(), running.lock.check)

    def write(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"state")
        overtake(running)

    with pytest.raises(UserError, match="taken over"):
        store.save(4, {}, write)
    assert saved_checkpoints(running.checkpoints) == {}
