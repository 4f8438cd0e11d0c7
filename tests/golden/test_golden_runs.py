"""Every method computes what it did when runs.json was recorded: a refactoring must give identical
losses.

On the processor and torch that recorded it to the last bit, elsewhere within 1e-5.
"""

import json

import pytest

from tests.golden.golden_runs import RECORD, machine, run_all

pytestmark = pytest.mark.slow
GOLDEN = json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    return run_all(tmp_path_factory.mktemp("golden"))


def test_the_cases_are_those_that_were_recorded(found):
    assert found.keys() == GOLDEN["cases"].keys()


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_numbers_are_those_that_were_recorded(found, name):
    case, golden = found[name], GOLDEN["cases"][name]
    assert case["ids"] == golden["ids"]
    assert case["losses"] == pytest.approx(golden["losses"], rel=1e-5)
    if machine() == GOLDEN["machine"]:
        assert case == golden
