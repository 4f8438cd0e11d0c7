"""Checkpoints that survive damage."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from lt_train.distributed import World
from lt_train.errors import EXIT_MACHINE, EXIT_MISTAKE, UserError
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


def test_no_checkpoint_is_nothing_and_damaged_ones_alone_stop_the_run(store, tmp_path, caplog):
    assert CheckpointStore(tmp_path / "never written", 2, World()).newest() is None
    for path in store.folder.iterdir():
        damage(path, "truncated")
    with pytest.raises(UserError, match=r"is damaged \(1, 2, 3\).*resume.enabled=false"):
        store.newest()
    assert caplog.text.count("is damaged") == 3
    assert names(store.folder) == [f"step-{step:08d}" for step in (1, 2, 3)]


@pytest.mark.parametrize("content", ["5", "null", "[]", "[" * 10**5, "\xff", '{"sha256": 5}', "{}"])
def test_odd_meta_is_damage(store, caplog, content):
    (store.folder / "step-00000003" / "meta.json").write_bytes(content.encode("latin-1"))
    assert store.newest().step == 2
    assert "step-00000003 is damaged" in caplog.text


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_is_not_damaged(store, monkeypatch, reason):
    def fail(path: Path) -> str:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("lt_train.training.checkpoint.file_sha256", fail)
    words = f"cannot read .*step-00000003/parts/rank_0: {os.strerror(reason)}"
    with pytest.raises(UserError, match=words) as refused:
        store.newest()
    assert refused.value.status == (EXIT_MISTAKE if reason == errno.EACCES else EXIT_MACHINE)
    with pytest.raises(UserError, match=words):
        store.find(3)


@pytest.mark.parametrize("name", ["meta.json", "state.pt"])
def test_a_folder_in_place_of_a_file_is_not_read_past(store, name):
    (store.folder / "step-00000003" / name).unlink()
    (store.folder / "step-00000003" / name).mkdir()
    with pytest.raises(UserError, match=f"cannot read .*step-00000003/{name}: Is a directory"):
        store.newest()


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_empty(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="cannot read .*checkpoints: Not a directory"):
        CheckpointStore(tmp_path / "checkpoints", 2, World()).newest()


def test_a_link_to_checkpoints_on_a_disk_that_is_gone_is_not_empty(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot read .*checkpoints: No such file"):
        CheckpointStore(tmp_path / "checkpoints", 2, World()).newest()


def test_what_a_user_keeps_beside_checkpoints_is_neither_taken_nor_deleted(store):
    kept = ["step-best", "step-30.mine", "step-00000009.mine", "step-4", "step-0000000010"]
    kept += [".step-best.partial", "step-\N{ARABIC-INDIC DIGIT FIVE}0000000"]
    for name in kept:
        shutil.copytree(store.folder / "step-00000001", store.folder / name)
    (store.folder / "step-00000009").write_text("my notes")
    assert store.newest().step == 3
    with pytest.raises(UserError, match="no intact checkpoint of step 9; it has 1, 2, 3$"):
        store.find(9)
    for step in (4, 5):
        store.save(step, {}, write_state(step))
    ours = [f"step-{step:08d}" for step in (3, 4, 5)]
    assert names(store.folder) == sorted([*kept, *ours, "step-00000009"])


def test_a_checkpoint_under_another_step_s_name_is_damaged(store, caplog):
    shutil.copytree(store.folder / "step-00000001", store.folder / "step-00000007")
    assert store.newest().step == 3
    assert "step-00000007 is damaged (meta.json is of step 1)" in caplog.text


def test_steps_beyond_eight_digits_are_in_order(tmp_path):
    store = CheckpointStore(tmp_path, 2, World())
    for step in (99_999_998, 99_999_999, 100_000_000):
        store.save(step, {}, write_state(1))
    assert store.newest().step == 100_000_000
    assert names(tmp_path) == ["step-100000000", "step-99999999"]


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


@pytest.mark.parametrize("renames", range(3))  # meta.json, the old one aside, the new one
def test_a_kill_while_a_checkpoint_takes_another_s_place_leaves_none_torn(
    tmp_path, monkeypatch, renames
):
    store, done = CheckpointStore(tmp_path, 1, World()), []
    store.save(3, {}, write_state(3))

    def killed(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(rename(source, target))

    rename = os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        store.save(3, {}, write_state(30))
    newest = store.newest()  # which would raise if all were damaged
    assert (newest is None) == (renames == 2)
    store.save(4, {}, write_state(4))
    assert names(tmp_path) == ["step-00000004"], "nothing is left of the old one, either"


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
    assert not list(store.folder.glob(".*")), "what there was room for takes none"
