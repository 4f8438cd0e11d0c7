"""Files of tensors: equal bytes for equal weights, a checksum, and what cannot be read."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lt_train.errors import UserError
from lt_train.models.tensor_files import (
    CHECKSUM,
    WRITTEN_BY,
    read_safetensors,
    read_tensors,
    tensors_digest,
    write_tensors,
)
from tests.helpers.networks import State, assert_same_state

ABOUT = {"method": "moco", "steps": "12", "backbone": "resnet18", "größe": "ü"}


def tensors() -> State:
    """Of several types and shapes, one of them transposed."""
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 5, generator=generator).t(),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 4),
        "ä": torch.arange(5, dtype=torch.uint8),
    }


@pytest.fixture
def written(tmp_path) -> Path:
    write_tensors(tensors(), tmp_path / "some.safetensors", ABOUT)
    return tmp_path / "some.safetensors"


def reason(path: Path) -> str:
    with pytest.raises(UserError) as refusal:
        read_tensors(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)
    return str(refusal.value)


def test_what_was_written_is_read_here_and_by_safetensors(written):
    read, about = read_safetensors(written)
    for found in (read, load_file(written)):
        assert_same_state(found, tensors())
    assert about == {"format": "pt", **ABOUT, **WRITTEN_BY}
    with safe_open(written, "pt") as file:
        assert file.metadata() == {**about, CHECKSUM: tensors_digest(tensors(), about)}


def test_equal_tensors_make_equal_files_in_any_order(written, tmp_path):
    again = tmp_path / "again.safetensors"
    backwards = dict(reversed(tensors().items()))
    for _ in range(5):  # safetensors shuffles its metadata at every call
        write_tensors(backwards, again, dict(reversed(ABOUT.items())))
        assert again.read_bytes() == written.read_bytes()


def test_two_processes_write_the_same_bytes(tmp_path):
    script = (
        "import sys, torch, pathlib; from lt_train.models.tensor_files import write_tensors;"
        "write_tensors({name: torch.arange(9.0) for name in set('abcdefgh')},"
        " pathlib.Path(sys.argv[1]), {name: 'x' for name in set('ijklmnop')})"
    )
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", script, theirs], env=environment, check=True)
    write_tensors(
        {name: torch.arange(9.0) for name in "abcdefgh"}, ours, dict.fromkeys("ijklmnop", "x")
    )
    assert theirs.read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_file_has_the_mode_of_any_other(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_tensors(tensors(), tmp_path / "some.safetensors", {})
    finally:
        os.umask(before)
    assert (tmp_path / "some.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_digest_tells_apart_names_types_shapes_bytes_and_what_is_said_of_them():
    one = {"a": torch.zeros(4), "b": torch.zeros(2)}
    others = [
        ({"a": torch.zeros(2), "b": torch.zeros(4)}, {}),
        ({"a": torch.zeros(4), "c": torch.zeros(2)}, {}),
        ({"a": torch.zeros(2, 2), "b": torch.zeros(2)}, {}),
        ({"a": torch.zeros(4, dtype=torch.int32), "b": torch.zeros(2)}, {}),
        ({"a": torch.tensor([0.0, 0.0, 0.0, -0.0]), "b": torch.zeros(2)}, {}),
        ({"a": torch.zeros(4)}, {}),
        (one, {"steps": "1"}),
        (one, {"steps": 1}),
    ]
    digests = {tensors_digest(*other) for other in [(one, {}), *others]}
    assert len(digests) == len(others) + 1
    assert tensors_digest(dict(reversed(one.items()))) == tensors_digest(one)


def test_in_no_byte_of_a_file_can_a_bit_flip_unseen(tmp_path):
    path = tmp_path / "small.safetensors"
    write_tensors({"a": torch.arange(3.0)}, path, {"steps": "1"})
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert "damaged" in reason(path), place


def test_files_of_others_and_of_earlier_versions_have_no_checksum(tmp_path):
    path = tmp_path / "others.safetensors"
    contiguous = {name: tensor.contiguous() for name, tensor in tensors().items()}
    for about in (None, {"format": "pt", "steps": "12", "sha256": "of something else"}):
        save_file(contiguous, path, about)
        assert read_safetensors(path)[1] == (about or {})
        assert_same_state(read_tensors(path), tensors())


def test_weights_that_were_changed_under_their_metadata_are_refused(written):
    about = read_safetensors(written)[1]
    with safe_open(written, "pt") as file:
        checksum = file.metadata()[CHECKSUM]
    save_file({"weight": torch.zeros(5, 3)}, written, {**about, CHECKSUM: checksum})
    assert "its checksum is that of other content" in reason(written)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_git_lfs_pointer_is_named(name, tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    assert "it is a Git LFS pointer" in reason(tmp_path / name)
    assert reason(tmp_path / name).endswith("git lfs pull")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_an_empty_file_and_one_without_tensors_are_told_as_such(name, tmp_path):
    (tmp_path / name).touch()
    assert "it is empty; copy, download or export it again" in reason(tmp_path / name)
    if name.endswith(".pth"):
        torch.save({"epoch": 3}, tmp_path / name)
    else:
        header = json.dumps({"__metadata__": {"epoch": "3"}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header)
    assert "holds no tensors" in reason(tmp_path / name)


@pytest.fixture
def stranger(written, monkeypatch):
    """Who reads files of the folder, if their mode lets anybody."""
    monkeypatch.chdir(written.parent)
    written.parent.chmod(0o755)
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)  # root may read anything
    yield
    os.seteuid(user)


def test_a_file_without_permission_is_not_said_to_be_missing(written, stranger):
    relative = Path(written.name)
    assert_same_state(read_tensors(relative), tensors())
    user = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    relative.chmod(0)
    os.seteuid(user)
    assert reason(relative).endswith("is not a readable safetensors file: Permission denied")


def test_a_folder_in_place_of_a_file_is_told_as_such(tmp_path):
    (tmp_path / "some.safetensors").mkdir()
    assert "Is a directory" in reason(tmp_path / "some.safetensors")
