"""The node cache: a verified copy gives the same batches."""

from dataclasses import replace

import pytest

from lt_train.config.schema import ViewConfig
from lt_train.errors import UserError
from tests.helpers.loading import WHOLE, assert_same_batches, configure, train


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
