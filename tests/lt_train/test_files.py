"""Files that are there whole or not at all, with the mode of any other file, and sealed JSON."""

import errno
import json
import os
from pathlib import Path

import pytest

from lt_train.errors import DamagedFile, MachineFault
from lt_train.files import atomic_file, read_sealed, seal, unseal, write_atomically


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_open_gives(mask, tmp_path):
    path, ordinary = tmp_path / "ours", tmp_path / "ordinary"
    before = os.umask(mask)
    try:
        ordinary.touch()
        write_atomically(path, b"first")
        assert mode(path) == mode(ordinary) == 0o666 & ~mask
        path.chmod(0o600)
        with atomic_file(path) as file:
            file.write(b"second")
    finally:
        os.umask(before)
    assert mode(path) == mode(ordinary) and path.read_bytes() == b"second"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside(tmp_path):
    path = tmp_path / "ours"
    write_atomically(path, b"first")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"second")
        raise ZeroDivisionError
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


CONTENT = {"name": "owls", "accuracy": 71.25, "odd": float("inf"), "counts": [3, 2], "by": {4: 1}}


def test_what_is_sealed_is_read_also_laid_out_otherwise():
    sealed = seal(CONTENT)
    assert unseal(sealed) == {**CONTENT, "by": {"4": 1}}
    assert list(json.loads(sealed))[-1] == "sha256", "cut off, it is no JSON"
    other = dict(reversed(json.loads(sealed).items()))
    assert unseal(json.dumps(other).encode()) == unseal(sealed)


@pytest.mark.parametrize(
    "change", [("owls", "owlz"), ("71.25", "77.25"), ('"sha256": "', "&0"), ("sha256", "sla256")]
)
def test_what_is_not_as_it_was_sealed_is_damaged(change, tmp_path):
    damaged = seal(CONTENT).decode().replace(change[0], change[1].replace("&", change[0]))
    (tmp_path / "ours.json").write_text(damaged)
    with pytest.raises(DamagedFile, match="ours.json is damaged: .*own checksum; copy it again"):
        read_sealed(tmp_path / "ours.json", "copy it again")


def test_a_file_of_an_earlier_version_has_no_checksum_and_is_read():
    unsealed = b'{"name": "owls"}'
    assert unseal(unsealed) == {"name": "owls"}
    for content in (unsealed, b'{"name": "owls", "sha256": null}'):
        with pytest.raises(ValueError, match="checksum"):
            unseal(content, may_lack=False)


def test_a_failing_disk_is_no_damage(tmp_path, monkeypatch):
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MachineFault, match="cannot read .*ours.json: Input/output error"):
        read_sealed(tmp_path / "ours.json", "copy it again")
