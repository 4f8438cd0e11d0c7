"""What is told of nodes."""

import re

import pytest

from launch import check


def seen(**changes) -> dict:
    """What a fit rank tells of itself."""
    common = {
        "host": "n1",
        "rank": 0,
        "device": "CPU",
        "bandwidth": 2.5,
        "dali": "",
        "seen": 0.01,
        "skew": 0.001,
        "versions": {"torch": "2.11"},
    }
    return {**common, **changes}


def test_fit_nodes_give_a_line_each_and_no_problem(capsys):
    assert check._report([seen(), seen(rank=1, bandwidth=1.25), seen(host="n2", rank=2)]) == []
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2
        and lines[0].startswith("n1: ranks 0, 1, CPU, all_reduce 1.25 GB/s, DALI decodes")
        and lines[1].startswith("n2: ranks 2,")
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seen": None}, "n2 does not see a file"),
        ({"skew": -3.0}, r"n2: its clock is -3\.0 s off"),
        ({"dali": "DALI does not decode: x"}, "n2: DALI does not decode: x"),
        ({"versions": {"torch": "2.12"}}, r"n2 has other versions than rank 0: .*2\.12"),
    ],
)
def test_an_unfit_node_is_named(changes, words, capsys):
    (problem,) = check._report(
        [seen(), seen(host="n2", rank=1, **changes), seen(host="n2", rank=2)]
    )
    assert re.search(words, problem) and len(capsys.readouterr().out.splitlines()) == 2
