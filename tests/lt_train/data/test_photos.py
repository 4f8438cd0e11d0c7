"""Images in the place of a manifest: read when they are asked for, and known only then."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from lt_train.config.load import load_config
from lt_train.data.image_files.check import Checker
from lt_train.data.photos import Photos, loaders_of
from lt_train.distributed import World
from lt_train.errors import MachineFault
from tests.helpers.pictures import encode, smooth_image


class Held:
    """Images in memory; an error in place of one is raised."""

    def __init__(self, contents: list[bytes | OSError]):
        self.contents = contents

    def read(self, index: int) -> bytes:
        content = self.contents[index]
        if isinstance(content, OSError):
            raise content
        return content


def image(width: int, height: int) -> Image.Image:
    return smooth_image(np.random.default_rng(width + height), width, height)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return encode(image(40, 30), "JPEG")


def test_what_was_read_is_known_and_what_cannot_be_used_says_why(jpeg):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory")
    photos = Photos(Held([b"", jpeg, missing, jpeg[:-9]]), np.array([3, 2, 1, 0]), "here")
    assert [photos.read(index) is None for index in range(4)] == [True, True, False, True]
    assert photos.widths.tolist() == [0, 0, 40, 0] and photos.heights.tolist() == [0, 0, 30, 0]
    assert photos.bad.keys() == {0, 1, 3} and photos.bad[1] == "No such file or directory"
    part = photos.subset(np.array([2, 3]))
    assert (part.widths.tolist(), part.bad) == ([40, 0], {1: photos.bad[3]})


def test_a_disk_that_fails_is_no_fault_of_an_image():
    photos = Photos(Held([OSError(errno.EIO, "Input/output error")]), np.arange(1), "here")
    with pytest.raises(MachineFault, match="cannot read an image of here: Input/output error"):
        photos.read(0)
    assert not photos.bad


def test_images_are_stored_as_data_prep_stores_them_by_any_thread(jpeg):
    """Those that no decoder is asked for too, and a process to ask is each thread's own."""
    not_by_dali = encode(image(9, 9).convert("1"), "TIFF")
    contents = [jpeg, not_by_dali, jpeg + b"more", jpeg[:99]]
    photos = Photos(Held(2 * contents), np.arange(8), "here")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(photos.read, range(8)))
    expected = [getattr(checked, "content", None) for checked in Checker()(contents)]
    assert [None if content is None else content.tobytes() for content in found] == 2 * expected
    assert None in expected and jpeg in expected and not_by_dali not in expected


def test_a_resident_loader_gets_squares_of_one_size_and_dali_the_rest():
    sizes = [(32, 32), (40, 30), (32, 32), (48, 48), (30, 40)]
    contents = [encode(image(*size), "PNG") for size in sizes] + [b"none"]
    photos = Photos(Held(contents), np.arange(6), "here")
    config = load_config("classifier_cifar10_lt", ["data.root=x"])
    seen = {}
    for ids, part, loader in loaders_of(photos, config, World(), 1):
        batches = list(loader)
        for batch in batches:
            assert batch.views[0].shape == (len(batch), 3, 32, 32)
            for row in batch.sample_id.tolist():
                seen[int(ids[row])] = type(loader).__name__
        assert len(part) == len(ids)
    resident, dali = "ResidentLoader", "DaliLoader"
    assert seen == {0: resident, 1: dali, 2: resident, 3: resident, 4: dali}
    assert photos.bad.keys() == {5}
