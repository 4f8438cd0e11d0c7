"""Room in the node cache: what is missing against what is free, and which sets are removed."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from lt_train.data import cache_room
from lt_train.data.cache_room import MARGIN, RECORD, USED
from lt_train.data.dataset import files_of, read_dataset
from lt_train.data.node_cache import NodeCache, folder_of
from lt_train.distributed import World
from lt_train.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def sets(small, tmp_path) -> list[str]:
    """Four sets of one size."""
    return [shutil.copytree(small.root, tmp_path / name) for name in "abcd"]


@pytest.fixture
def cache(tmp_path):
    """Function that copies sets into the cache, whose limit is a number of sets."""

    def copy(*roots: Path, limit: float | None = None) -> NodeCache:
        most = None if limit is None else int(limit * size_of_set(roots[0]))
        return NodeCache([str(root) for root in roots], tmp_path / "cache", most, World())

    return copy


def size_of_set(root: Path) -> int:
    return sum(file.bytes for file in files_of(read_dataset(root)))


def names(tmp_path: Path) -> str:
    """Of the sets in the cache."""
    return "".join(sorted(path.name[0] for path in (tmp_path / "cache").iterdir()))


def used_in_order(*roots: Path, target: Path) -> None:
    """Have them last used so."""
    for hour, root in enumerate(roots):
        os.utime(folder_of(str(root), target) / USED, (3600 * hour, 3600 * hour))


def free(monkeypatch, size: int, total: int = 10**15) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total, total - size, size))


def test_too_little_space_is_told_before_anything_is_copied(sets, cache, tmp_path, monkeypatch):
    need = size_of_set(sets[0])
    free(monkeypatch, MARGIN + need - 1)
    with pytest.raises(UserError) as told:
        cache(sets[0])
    assert told.value.status == 74  # another job may leave some
    assert f"/cache has {(MARGIN + need) / 1e9:.4g} GB free, and {need / 1e9:.4g} GB of the" in str(
        told.value
    )
    assert [path.name for path in (tmp_path / "cache").glob("*/*")] == [USED]
    free(monkeypatch, MARGIN + need)
    cache(sets[0])
    free(monkeypatch, 0)
    cache(sets[0])  # it is there, and needs no room
    free(monkeypatch, 0, total=need - 1)
    with pytest.raises(UserError, match="still to be copied") as told:
        cache(sets[1])
    assert told.value.status == 2  # it never fits


def test_what_others_still_copy_is_not_free(sets, cache, tmp_path, monkeypatch):
    first, need = cache(sets[0]), size_of_set(sets[0])
    (folder,) = first.folders.values()
    for name in ("dataset.json", "train-000000.tar"):  # as if it were still to come
        (folder / name).unlink()
    free(monkeypatch, MARGIN + need)
    with pytest.raises(UserError, match=r"GB of them for what others copy"):
        cache(sets[1])
    del first  # that job has ended
    cache(sets[1])


def test_the_least_recently_used_sets_make_room(sets, cache, tmp_path):
    a, b, c, d = sets
    for root in (a, b, c):
        cache(root)
    used_in_order(b, c, a, target=tmp_path / "cache")
    cache(d)
    assert names(tmp_path) == "abcd", "unasked, nothing is removed"
    shutil.rmtree(folder_of(str(d), tmp_path / "cache"))
    cache(d, limit=3.5)
    assert names(tmp_path) == "acd"
    cache(a, limit=3.5)  # is there, and nothing needs to go
    assert names(tmp_path) == "acd"
    cache(b, d, limit=2)
    assert names(tmp_path) == "bd", "what is needed itself stays"


def test_a_set_in_use_stays(sets, cache, tmp_path):
    a, b, c, _ = sets
    running = cache(a)
    cache(b)
    used_in_order(a, b, target=tmp_path / "cache")
    cache(c, limit=2)
    assert names(tmp_path) == "ac"
    with pytest.raises(UserError, match="allows .* of which jobs that run use") as told:
        cache(b, c, limit=2)
    assert told.value.status == 74
    assert names(tmp_path) == "abc" and not list((tmp_path / "cache").glob("b*/*.tar"))
    assert running.folders[str(a)].is_dir()


def test_nothing_is_removed_where_that_would_not_do(sets, cache, tmp_path, monkeypatch):
    a, b, c, _ = sets
    cache(a)
    with pytest.raises(UserError, match="where data.cache_gb allows") as told:
        cache(b, c, limit=1)
    assert told.value.status == 2
    free(monkeypatch, 0)
    with pytest.raises(UserError, match="free"):
        cache(b, c, limit=9)
    assert list((tmp_path / "cache").glob("a*/dataset.json"))


def test_sets_are_removed_for_want_of_space_too(sets, cache, tmp_path, monkeypatch):
    a, b, c, _ = sets
    cache(a)
    cache(b)
    used_in_order(b, a, target=tmp_path / "cache")
    need = size_of_set(a)

    def usage(path: Path) -> Usage:
        there = sum(need for _ in Path(path).glob("*/train-000000.tar"))
        return Usage(10**15, 0, MARGIN + 2 * need - there)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cache(c, limit=9)
    assert names(tmp_path) == "ac"


def test_what_was_not_put_there_stays(sets, cache, tmp_path):
    a, b, c, _ = sets
    theirs = tmp_path / "cache" / "mine" / "train-000000.tar"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"1")
    for root in (a, b):
        cache(root)
    used_in_order(a, b, target=tmp_path / "cache")
    of_a, of_b = (folder_of(str(root), tmp_path / "cache") for root in (a, b))
    (of_a / "notes.txt").write_bytes(b"2")
    (of_b / RECORD).write_text('{"files": ["../../a/train.arrow"], "bytes": 1}')
    cache(c, limit=1)
    assert [path.name for path in of_a.iterdir()] == ["notes.txt"]
    assert (of_b / "train.arrow").exists() and (a / "train.arrow").exists()
    assert theirs.read_bytes() == b"1"


def test_a_removal_that_was_cut_off_is_gone_on_with(sets, cache, tmp_path, monkeypatch):
    a, b, _, _ = sets
    cache(a)
    (left,) = cache_room.cached_sets(tmp_path / "cache")
    (left.folder / "dataset.json").unlink()
    (left.folder / "train.arrow").unlink()
    (left.folder / ".train-000000.tar@elsewhere.1.tmp").write_bytes(b"half")
    (left.folder / ".train-000000.tar.lock").touch()
    cache(b, limit=1)
    assert names(tmp_path) == "b"
