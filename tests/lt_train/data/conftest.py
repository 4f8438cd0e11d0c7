"""Small sets for the tests of the loaders."""

from pathlib import Path

import pytest

from tests.helpers.pools import prepare_pool, prepare_pseudo_labeled


@pytest.fixture(params=["dali", "resident"])
def loader(request) -> str:
    return request.param


@pytest.fixture(scope="package")
def photo_root(prepare, photos) -> Path:
    """The photos, keyed by their number, for training and evaluation."""
    split = list(photos.values()), list(range(len(photos)))
    return prepare({"train": split, "val": split})


@pytest.fixture(scope="package")
def pool(tmp_path_factory) -> Path:
    """Images of no classes."""
    return prepare_pool(tmp_path_factory.mktemp("pool") / "pool")


@pytest.fixture(scope="package")
def pseudo_labeled(tmp_path_factory) -> Path:
    """Images without labels of their own, with columns that a classifier wrote."""
    return prepare_pseudo_labeled(tmp_path_factory.mktemp("unlabeled") / "set")
