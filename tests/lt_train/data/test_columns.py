"""Views of columns: NumPy's values without its copies."""

import pickle

import numpy as np
import pytest

from lt_train.data.columns import Chained, Picked, Shifted, rows_where, slices, take
from lt_train.data.tables import class_index, count_classes

FIRST = np.arange(10, 17, dtype=np.int32)
SECOND = np.arange(90, 95, dtype=np.int32)
ROWS = np.array([6, 0, 0, 3, 5], np.int32)
BOTH = np.concatenate([FIRST, SECOND])
VIEWS = {  # the view, and what it must be like
    "some rows": (Picked(FIRST, ROWS), FIRST[ROWS]),
    "some of some": (take(Picked(FIRST, ROWS), np.array([4, 1])), FIRST[ROWS][[4, 1]]),
    "a part of some": (take(Picked(FIRST, ROWS), slice(1, 3)), FIRST[ROWS][1:3]),
    "two in a row": (Chained(FIRST, SECOND), BOTH),
    "a part of two": (take(Chained(FIRST, SECOND), slice(5, 9)), BOTH[5:9]),
    "views in a row": (
        Chained(Picked(FIRST, ROWS), Shifted(SECOND, 7)),
        np.concatenate([FIRST[ROWS], SECOND + 7]),
    ),
    "none of two": (take(Chained(FIRST, SECOND), slice(3, 3)), BOTH[:0]),
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_view_is_indexed_like_the_array(case):
    view, array = VIEWS[case]
    indices = [slice(None), slice(1, -1), np.arange(len(array))[::-1], np.zeros(0, np.int64)]
    for index in indices:
        found = view[index]
        assert isinstance(found, np.ndarray) and found.dtype == array.dtype == view.dtype
        np.testing.assert_array_equal(found, array[index])
    assert [view[row] for row in range(len(view))] == array.tolist() == view.tolist()


@pytest.mark.parametrize("case", VIEWS)
def test_operators_and_functions_see_an_array(case):
    view, array = VIEWS[case]
    np.testing.assert_array_equal(view == 13, array == 13)
    np.testing.assert_array_equal(2 * view - view, array)
    assert np.unique(view).tolist() == np.unique(array).tolist()
    assert np.asarray(view, np.float64).dtype == np.float64
    assert pickle.loads(pickle.dumps(view)).tolist() == array.tolist()


def test_a_part_of_an_array_is_no_copy():
    assert np.shares_memory(take(FIRST, slice(2, 5)), FIRST)
    assert take(FIRST, ROWS).column is FIRST


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_rows_and_classes_are_found_some_rows_at_a_time(at_once, monkeypatch):
    monkeypatch.setattr("lt_train.data.columns.ROWS_AT_ONCE", at_once)
    labels = np.random.default_rng(0).integers(-1, 4, 50).astype(np.int32)
    assert [labels[rows].tolist() for rows in slices(50)][0] == labels[:at_once].tolist()
    rows = rows_where(lambda rows: labels[rows] == 2, len(labels))
    assert rows.tolist() == np.flatnonzero(labels == 2).tolist() and rows.dtype == np.int32
    counts = count_classes(labels, 5)
    assert counts.tolist() == [*np.bincount(labels[labels >= 0]), 0]
    expected = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    assert class_index(labels, counts).tolist() == expected.tolist()
