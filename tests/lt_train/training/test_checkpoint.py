"""Checkpoints that survive damage."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.training.checkpoint import CheckpointStore


def write_state(step: int):
    """A writer of two files, one of them in a folder, as DeepSpeed has them."""

    def write(folder: Path) -> None:
        torch.save({"step": step, "weights": torch.full((50,), float(step))}, folder / "state.pt")
        (folder / "parts").mkdir()
        (folder / "parts" / "rank_0").write_bytes(bytes([step]) * 100)

    return write


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    """Holds steps 1, 2 and 3."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=3, world=World())
    for step in (1, 2, 3):
        store.save(step, {"seconds": 10.0 * step}, write_state(step))
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path, how: str) -> None:
    state, part, meta = path / "state.pt", path / "parts" / "rank_0", path / "meta.json"
    if how == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif how == "one bit flipped":
        content = bytearray(part.read_bytes())
        content[50] ^= 1
        part.write_bytes(content)
    elif how == "state missing":
        state.unlink()
    elif how == "meta.json missing":
        meta.unlink()
    elif how == "meta.json truncated":
        os.truncate(meta, meta.stat().st_size // 2)
    elif how == "meta.json empty":
        os.truncate(meta, 0)
    elif how == "meta.json with a digit of the step flipped":
        step = json.loads(meta.read_text())["step"]
        meta.write_text(meta.read_text().replace(f'"step": {step}', f'"step": {step ^ 1}'))


DAMAGES = [
    "truncated",
    "one bit flipped",
    "state missing",
    "meta.json missing",
    "meta.json truncated",
    "meta.json empty",
    "meta.json with a digit of the step flipped",
]


def test_newest_is_what_was_saved_last(store):
    newest = store.newest()
    assert (newest.step, newest.meta["seconds"]) == (3, 30.0)
    state = torch.load(newest.path / "state.pt", weights_only=True)
    assert state["step"] == 3 and state["weights"].eq(3).all()


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_one_before(store, caplog, how):
    damage(store.folder / "step-00000003", how)
    with caplog.at_level(logging.WARNING):
        assert store.newest().step == 2
    assert "step-00000003 is damaged" in caplog.text


def test_nothing_valid_is_nothing(store, tmp_path, caplog):
    assert CheckpointStore(tmp_path / "never written", 2, World()).newest() is None
    for path in store.folder.iterdir():
        damage(path, "truncated")
    assert store.newest() is None
    assert caplog.text.count("is damaged") == 3


def test_half_written_checkpoint_is_never_taken(store):
    """What SIGKILL in the middle of saving leaves."""
    (store.folder / ".step-00000004.partial").mkdir()
    write_state(4)(store.folder / ".step-00000004.partial")
    assert store.newest().step == 3
    store.save(4, {}, write_state(4))
    assert store.newest().step == 4
    assert names(store.folder) == [f"step-{step:08d}" for step in (2, 3, 4)]


def test_step_is_saved_again_over_a_damaged_one(store):
    damage(store.folder / "step-00000003", "truncated")
    store.save(3, {"seconds": 31.0}, write_state(3))
    assert (store.newest().step, store.newest().meta["seconds"]) == (3, 31.0)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_prune_keeps_the_newest(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep, World())
    steps = [5, 10, 100, 999, 12345]
    for step in steps:
        store.save(step, {}, lambda folder: (folder / "state").write_bytes(b"x"))
    assert names(tmp_path) == [f"step-{step:08d}" for step in steps[-keep:]]


def test_saving_an_earlier_step_drops_the_abandoned_later_ones(store):
    """A run started anew in the same folder must not be pruned in favour of the old one, nor resume
    from it.
    """
    (store.folder / ".step-00000009.partial").mkdir()
    store.save(2, {}, write_state(20))
    assert names(store.folder) == ["step-00000001", "step-00000002"]
    assert store.newest().step == 2


def no_space(folder: Path) -> None:
    write_state(4)(folder)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_save_to_full_device(folder: Path) -> None:
    torch.save({"weights": torch.zeros(10**6)}, Path("/dev/full"))


@pytest.mark.parametrize(
    "write", [no_space, torch_save_to_full_device], ids=["OSError", "torch.save"]
)
def test_full_disk_leaves_the_older_checkpoint(store, write):
    with pytest.raises(UserError, match="cannot write the checkpoint .*step-00000004"):
        store.save(4, {}, write)
    assert store.newest().step == 3
