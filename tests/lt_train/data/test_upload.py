"""Arrays arrive as they are, together."""

import numpy as np
import torch

from lt_train.data.upload import in_one_copy, upload
from tests.helpers.dispatched import Dispatched

ARRAYS = (
    np.arange(5, dtype=np.uint8),
    np.arange(6).reshape(2, 3)[:, ::-1],
    np.zeros((0, 256), np.uint8),
    np.array([1.5, -2.5], np.float32),
    np.array([True, False, True]),
)


def test_arrays_arrive_as_they_are():
    cpu = torch.device("cpu")
    shared = upload(cpu, *ARRAYS)
    for tensors in (shared, in_one_copy(list(shared), cpu)):
        for tensor, array in zip(tensors, ARRAYS, strict=True):
            assert tensor.dtype == torch.from_numpy(array.copy()).dtype
            np.testing.assert_array_equal(tensor.numpy(), array)


def test_nothing_stays_nothing():
    first, nothing, last = upload(torch.device("cpu"), ARRAYS[0], None, ARRAYS[3])
    assert nothing is None
    assert (first.tolist(), last.tolist()) == ([0, 1, 2, 3, 4], [1.5, -2.5])
    assert upload(torch.device("meta"), None, None) == (None, None)


def test_another_device_gets_one_copy_that_nobody_waits_for():
    with Dispatched() as dispatched:
        tensors = upload(torch.device("meta"), *ARRAYS)
    assert [tensor.shape for tensor in tensors] == [array.shape for array in ARRAYS]
    assert dispatched.calls.count("aten._to_copy.default") == 1 and not dispatched.waits
