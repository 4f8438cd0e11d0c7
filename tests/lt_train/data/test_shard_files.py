"""Shards read by offset: whole or not at all, by many threads, with few of them open."""

import errno
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lt_train.data import shard_files
from lt_train.data.shard_files import ShardFiles
from lt_train.errors import EXIT_MACHINE, UserError


def content_of(number: int) -> bytes:
    return np.random.default_rng(number).bytes(100)


def make(folder: Path, number: int) -> list[Path]:
    paths = [folder / f"train-{index:06d}.tar" for index in range(number)]
    for index, path in enumerate(paths):
        path.write_bytes(content_of(index))
    return paths


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_pieces_are_what_lies_there_and_none_beyond_the_end(tmp_path):
    files = ShardFiles(make(tmp_path, 2))
    assert files.read(1, 20, 30).tobytes() == content_of(1)[20:50]
    assert files.read(0, 0, 100).tobytes() == content_of(0)
    assert files.read(0, 100, 0).tobytes() == b""
    assert files.read(0, 71, 30) is None and files.read(0, 500, 1) is None


def test_few_are_open_at_once_and_none_when_nobody_needs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "most_open", lambda: 5)
    paths, before = make(tmp_path, 40), descriptors()
    files = ShardFiles(paths)
    for index in [*range(40), *range(39, -1, -1), *[3, 9] * 20]:
        assert files.read(index, 0, 100).tobytes() == content_of(index)
        assert descriptors() - before <= 5
    del files
    assert descriptors() == before


def test_the_shards_used_last_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "most_open", lambda: 2)
    files = ShardFiles(make(tmp_path, 3))
    for index in (0, 1, 0, 2):
        files.read(index, 0, 1)
    for path in files.paths:
        path.unlink()
    assert files.read(0, 0, 100).tobytes() == content_of(0), "open, so still there"
    with pytest.raises(UserError, match="train-000001.tar: No such file"):
        files.read(1, 0, 100)


def test_threads_read_while_others_close(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "most_open", lambda: 2)
    files = ShardFiles(make(tmp_path, 20))
    wanted = np.random.default_rng(0).integers(0, 20, 4000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: files.read(index, 10, 80).tobytes(), wanted))
    assert found == [content_of(index)[10:90] for index in wanted]


def test_large_images_in_no_order_are_read_without_their_neighbours(tmp_path, monkeypatch):
    """By a descriptor of their own: who reads the same shard in order has it read ahead."""
    advised: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *_: advised.append(file), raising=False)
    monkeypatch.setattr(shard_files, "LARGE", 50)
    files, before = ShardFiles(make(tmp_path, 2)), descriptors()
    assert files.read(0, 10, 90).tobytes() == content_of(0)[10:]
    assert files.read(0, 10, 49, at_random=True).tobytes() == content_of(0)[10:59]
    assert (advised, descriptors() - before) == ([], 1)
    for _ in range(2):
        assert files.read(0, 10, 50, at_random=True).tobytes() == content_of(0)[10:60]
    assert (len(advised), descriptors() - before) == (1, 2)


def test_a_file_system_that_takes_no_advice_is_read(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refused, raising=False)
    monkeypatch.setattr(shard_files, "LARGE", 50)
    assert ShardFiles(make(tmp_path, 1)).read(0, 0, 100, at_random=True) is not None


def test_what_comes_in_pieces_is_put_together(tmp_path, monkeypatch):
    """As network file systems and signals may have it."""
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: whole(file, [parts[0][:7]], at))
    files = ShardFiles(make(tmp_path, 1))
    assert files.read(0, 3, 90).tobytes() == content_of(0)[3:93]
    assert files.read(0, 20, 90) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_an_error_under_a_running_job_is_one_line(number, tmp_path, monkeypatch):
    files = ShardFiles(make(tmp_path, 1))
    files.read(0, 0, 1)

    def fail(*_) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError) as refused:
        files.read(0, 0, 1)
    line = f"cannot read shard {files.paths[0]}: {os.strerror(number)}; python -m data_prep verify"
    assert str(refused.value) == f"{line} {tmp_path}"
    assert refused.value.status == EXIT_MACHINE, "no mistake of the user: Slurm tries once more"


def test_a_folder_in_the_place_of_a_shard_is_one_line(tmp_path):
    (tmp_path / "train-000000.tar").mkdir()
    with pytest.raises(UserError, match="train-000000.tar: Is a directory"):
        ShardFiles([tmp_path / "train-000000.tar"]).read(0, 0, 1)


def test_if_others_take_all_descriptors_it_makes_do_with_its_own(tmp_path, monkeypatch):
    files, whole = ShardFiles(make(tmp_path, 9)), os.open
    opened = []

    def at_most_three(path, flags) -> int:
        if len(files._open) >= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(path)
        return whole(path, flags)

    monkeypatch.setattr(os, "open", at_most_three)
    for index in range(9):
        assert files.read(index, 0, 100).tobytes() == content_of(index)
    assert len(opened) == 9


def test_a_copy_for_another_process_opens_its_own(tmp_path):
    files = ShardFiles(make(tmp_path, 3))
    files.read(2, 0, 1)
    other, before = pickle.loads(pickle.dumps(files)), descriptors()
    assert other.read(2, 0, 100).tobytes() == content_of(2)
    assert descriptors() == before + 1


UNDER_A_LIMIT = """
import os, resource, sys
from pathlib import Path
soft, hard = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from lt_train.data.shard_files import ShardFiles
sets = [ShardFiles(sorted(Path(sys.argv[1]).glob("*.tar"))) for _ in range(4)]
for files in sets:
    for index in [*range(len(files.paths)), 0]:
        assert files.read(index, 0, 100) is not None
sys.stdout.write(f"{len(files.paths)} {len(os.listdir('/proc/self/fd'))}")
"""


@pytest.mark.parametrize(("soft", "hard", "least"), [(256, 256, 100), (64, 2048, 1200)])
def test_four_sets_of_many_shards_are_read_under_any_limit(soft, hard, least, tmp_path):
    """Whose soft limit is raised as far as may be."""
    make(tmp_path, 400)
    words = [sys.executable, "-c", UNDER_A_LIMIT, tmp_path, str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    shards, left_open = map(int, done.stdout.split())
    assert shards == 400 and least < left_open < hard
