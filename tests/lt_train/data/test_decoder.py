"""DALI's decoder outside of training graphs."""

import numpy as np
import pytest

from lt_train.data.decoder import TINY, Decoder, reason_of
from tests.helpers.sources import pixels_of


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(16)


def test_whole_images_and_parts_of_them_are_pillows_pixels(decoder, photos):
    contents = [np.frombuffer(content, np.uint8) for content in photos.values()]
    expected = [pixels_of(content) for content in photos.values()]
    for found, wanted in zip(decoder(contents), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    start = [np.array([5, 7], np.int32)] * len(contents)
    shape = [np.array([40, 31], np.int32)] * len(contents)
    for found, wanted in zip(decoder(contents, start, shape), expected, strict=True):
        assert np.abs(found.astype(int) - wanted[5:45, 7:38]).max() <= 1


def test_one_that_does_not_decode_is_an_error_and_the_next_batch_is_none(decoder, photos):
    whole = np.frombuffer(photos["square"], np.uint8)
    with pytest.raises(RuntimeError) as raised:
        decoder([whole, whole[:-900]])
    assert reason_of(raised.value) == "Failed to decode sample #1"
    assert decoder([TINY])[0].tolist() == [[[0, 0, 0]]]


def test_a_part_beyond_the_image_is_an_error(decoder, photos):
    sides = [np.array([257, 10], np.int32)]
    with pytest.raises(RuntimeError):
        decoder([np.frombuffer(photos["square"], np.uint8)], [np.zeros(2, np.int32)], sides)
