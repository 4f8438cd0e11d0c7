"""Files that are there whole or not at all, with the mode of any other file."""

import os
from pathlib import Path

import pytest

from lt_train.files import atomic_file, write_atomically


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
