"""The node cache: a verified copy gives the same batches, made by all ranks of a node together."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from lt_train.config.schema import ViewConfig
from lt_train.data import node_cache
from lt_train.data.cache_room import lock_of
from lt_train.data.node_cache import NodeCache, in_threads
from lt_train.data.tables import add_columns
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.locks import claimed
from tests.helpers.commands import content
from tests.helpers.file_servers import serving
from tests.helpers.loading import WHOLE, assert_same_batches, configure, train
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sealed import rewrite

LIMIT, POLL = 60, 0.02  # seconds that a test may wait for something, and between two looks


def cached(root: Path | str, target: Path) -> NodeCache:
    return NodeCache([str(root)], target, None, World())


def files(folder: Path) -> dict[str, str]:
    """sha256 of the files of a set, by name."""
    kinds = (".tar", ".arrow", "dataset.json")
    return {name: digest for name, digest in content(folder).items() if name.endswith(kinds)}


def test_cached_shards_give_the_same_batches(small, tmp_path, loader):
    config = configure(small.root, loader, WHOLE)
    cached = replace(config, data=replace(config.data, cache_dir=str(tmp_path / "scratch")))
    for _ in range(2):  # the second time, what is there already is used
        assert_same_batches(train(cached), train(config))


def test_caching_a_damaged_shard_is_refused_and_names_it(small, damaged_copy, tmp_path):
    view = ViewConfig(size=32, crop="pad", padding=4)
    config = configure(damaged_copy(small.root, [0]), "resident", view)
    with pytest.raises(UserError, match="train-000000.tar does not match its sha256"):
        train(replace(config, data=replace(config.data, cache_dir=str(tmp_path / "scratch"))))


@pytest.mark.parametrize("name", ["../../evil.tar", "/{}/evil.tar", "..", "a\\b.tar", 7])
def test_what_a_stranger_names_elsewhere_is_neither_read_nor_written(
    name, small, damaged_copy, tmp_path
):
    root = damaged_copy(small.root)
    (tmp_path / "evil.tar").write_bytes(b"secret")

    def rename(content: dict) -> None:
        shard = content["splits"]["val"]["shards"][0]
        shard["sha256"] = hashlib.sha256(b"secret").hexdigest()
        shard["name"] = name.format(tmp_path) if isinstance(name, str) else name

    rewrite(root / "dataset.json", rename)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="dataset.json is damaged: .*(plain file name|is not text)"):
        cached(root, tmp_path / "scratch" / "deep")
    assert sorted(tmp_path.rglob("*")) == before


def test_several_files_are_copied_at_once(small, tmp_path):
    together = threading.Barrier(4)

    def wait_for_others(number: int, path: str) -> int | None:
        if 1 < number <= 5:
            together.wait(LIMIT)
        return None

    with serving(small.root, fault=wait_for_others) as server:
        copied = cached(server.url, tmp_path)
    assert not together.broken and files(copied.folders[server.url]) == files(small.root)


def copied_by(world: World, url: str, target: str) -> list[str]:
    return NodeCache([url], Path(target), None, world).copied


@pytest.mark.slow
def test_the_ranks_of_a_node_share_the_files(small, tmp_path):
    with serving(small.root) as server:
        first, second = run_on_ranks(2, copied_by, server.url, str(tmp_path))
    names = [name for name in files(small.root) if name != "dataset.json"]
    assert sorted(first + second) == sorted(names) and abs(len(first) - len(second)) <= 1
    # each file was read once; what there is, by rank 0 for all
    assert Counter(server.seen) == Counter(f"/{name}" for name in [*names, "dataset.json"])
    (folder,) = tmp_path.iterdir()
    assert files(folder) == files(small.root)


COPY = """
import sys
from pathlib import Path
from lt_train.data.node_cache import NodeCache
from lt_train.data.tables import add_columns
from lt_train.distributed import World

NodeCache(sys.argv[1:2], Path(sys.argv[2]), None, World())
"""


@pytest.mark.slow
def test_a_copy_that_was_killed_is_gone_on_with(small, tmp_path):
    """While one file is in the middle of its body, and the others are there."""
    stalled, release = threading.Event(), threading.Event()
    slow = "/train-000001.tar"

    def stall(number: int, path: str) -> int | None:
        if path == slow and not release.is_set():
            stalled.set()
            release.wait(LIMIT)
        return None

    with serving(small.root, fault=stall) as server:
        killed = subprocess.Popen([sys.executable, "-c", COPY, server.url, str(tmp_path)])
        try:
            assert stalled.wait(LIMIT)
            others = files(small.root).keys() - {slow[1:], "dataset.json"}
            while not others <= {path.name for path in tmp_path.glob("*/*")}:
                assert killed.poll() is None
                time.sleep(POLL)
        finally:
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
        (folder,) = tmp_path.iterdir()
        assert files(folder).keys() == others
        assert any(path.name.endswith(".tmp") for path in folder.iterdir())
        release.set()
        server.seen.clear()
        assert cached(server.url, tmp_path).copied == [slow[1:]]
        assert server.seen == ["/dataset.json", slow]
    assert files(folder) == files(small.root)
    assert {path.name for path in folder.glob(".*")} == {".in_use", ".node_cache.json"}


def test_what_another_job_copies_is_waited_for_and_not_copied_twice(small, tmp_path, monkeypatch):
    monkeypatch.setattr(node_cache, "LOOK_AGAIN", 0.01)
    folder = cached(small.root, tmp_path).folders[str(small.root)]
    (folder / "val-000000.tar").rename(tmp_path / "of the other job")
    (folder / "test-000000.tar").unlink()
    found: list[NodeCache] = []
    with claimed(lock_of(folder / "val-000000.tar")) as is_mine:
        assert is_mine
        copying = threading.Thread(target=lambda: found.append(cached(small.root, tmp_path)))
        copying.start()
        while not (folder / "test-000000.tar").exists():
            assert copying.is_alive()
            time.sleep(POLL)
        assert not (folder / "val-000000.tar").exists()
        (tmp_path / "of the other job").rename(folder / "val-000000.tar")
    copying.join(LIMIT)
    assert found[0].copied == ["test-000000.tar"]


def test_the_first_error_ends_the_work_and_the_rest_is_left():
    begun, is_over = [], threading.Event()

    def work(item: int) -> bool:
        begun.append(item)
        if item == 1:
            raise UserError("one")
        return is_over.wait(LIMIT)

    with pytest.raises(UserError, match="one"):
        in_threads(work, range(9), 2)  # though the other one still works
    is_over.set()
    assert len(begun) <= 3


def test_columns_that_were_added_since_are_copied(small, damaged_copy, tmp_path):
    root = damaged_copy(small.root)
    cached(root, tmp_path / "scratch")
    add_columns(root, "train", {"score": pa.array([0.5] * len(small.labels))}, "a test")
    copied = cached(root, tmp_path / "scratch")
    assert copied.copied == ["train.arrow"]
    assert files(copied.folders[str(root)]) == files(root)
