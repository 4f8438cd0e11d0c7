"""The table of the suite: every row can be had, and says what it should."""

from pathlib import Path

import pytest

from lt_train.benchmark.measure import ALL_RUNS, BASELINE
from lt_train.benchmark.rows import LARGE, SECONDS, SMALL, Row, experiments_of, ranks_of, rows_of
from lt_train.config.load import load_config

KINDS = [("cpu", 0), ("gpu", 1), ("gpu", 8)]
KNOWN = {"one": {"a": [8.0, 9.0], "b": [4.0, 3.0]}, "two": {"c": [2.0, 6.0]}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_of_experiments_that_there_are(kind):
    experiments, rows = experiments_of(*kind), rows_of(*kind)
    by_name = {experiment.name: experiment for experiment in experiments}
    assert len(by_name) == len(experiments) and len({row.name for row in rows}) == len(rows)
    for row in rows:
        for name, run in (row.of, *row.over):
            of_ranks = {"per_rank"} if by_name[name].ranks > 1 else set()
            assert run in {*by_name[name].runs, *of_ranks}, row.name
        assert (row.unit == "x") == bool(row.over), row.name
    asked = [name for row in rows for name in row.experiments]
    assert {*asked} == by_name.keys(), "nothing is measured for no row"


@pytest.mark.parametrize("kind", KINDS)
def test_every_experiment_has_a_config(kind):
    roots = {LARGE: Path("large"), SMALL: Path("small")}
    for experiment in experiments_of(*kind):
        config = load_config(experiment.config, experiment.words(roots))
        assert config.data.root == experiment.images
        assert config.global_batch_size % experiment.ranks == 0
        assert {*experiment.runs} <= {*ALL_RUNS, BASELINE, SECONDS}
        assert (config.view.size == 32) == (experiment.images == SMALL)


def test_ranks_are_doubled_as_far_as_there_are_gpus():
    assert [ranks_of(gpus) for gpus in (0, 1, 2, 6, 8)] == [[], [], [2], [2, 4], [2, 4, 8]]


def test_a_row_is_over_the_slower_of_what_it_is_compared_with():
    assert Row("rate", ("one", "a")).values(KNOWN) == [8, 9]
    assert Row("ratio", ("one", "a"), (("one", "b"), ("two", "c"))).values(KNOWN) == [4, 3]


def test_less_seconds_are_more_of_an_aim():
    assert Row("a", ("one", "a"), aim=50, unit="s").over_aim(100) == 0.5
    assert Row("a", ("one", "a"), aim=50, unit="images/s").over_aim(100) == 2
    assert Row("a", ("one", "a")).over_aim(100) is None
