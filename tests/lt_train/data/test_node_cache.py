"""The node cache: a verified copy gives the same batches."""

import hashlib
from dataclasses import replace

import pytest

from lt_train.config.schema import ViewConfig
from lt_train.data.node_cache import cache_on_node
from lt_train.distributed import World
from lt_train.errors import UserError
from tests.helpers.loading import WHOLE, assert_same_batches, configure, train
from tests.helpers.sealed import rewrite


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
        cache_on_node(root, tmp_path / "scratch" / "deep", World())
    assert sorted(tmp_path.rglob("*")) == before
