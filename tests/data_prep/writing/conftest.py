"""What the tests of plans and shards compare with."""

import pytest

from tests.helpers.data_prep_runs import tree
from tests.helpers.noise_sets import plan_noise, run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    """The files of one run from start to end."""
    out = tmp_path_factory.mktemp("undisturbed") / "noise"
    run(plan_noise(out))
    return tree(out)
