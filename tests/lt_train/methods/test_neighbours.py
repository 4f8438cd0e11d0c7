"""k-NN votes against a plain loop, and the same however samples lie on ranks."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_train.distributed import World
from lt_train.methods import neighbours
from lt_train.methods.neighbours import knn_votes
from tests.helpers.ranks import run_on_ranks

BANK, QUERIES, CLASSES = 40, 13, 4
TEMPERATURE = 0.07


def samples() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bank, its labels and queries, which differ by less than bf16 can tell."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(16, generator=generator)
    bank, queries = (
        F.normalize(centre + 0.02 * torch.randn(number, 16, generator=generator), dim=1)
        for number in (BANK, QUERIES)
    )
    return bank, torch.randint(0, CLASSES, (BANK,), generator=generator), queries


def by_a_plain_loop(k: int) -> torch.Tensor:
    bank, labels, queries = samples()
    expected = torch.zeros(QUERIES, CLASSES, dtype=torch.float64)
    for row, query in enumerate(queries.double()):
        similarity = [float(query @ other) for other in bank.double()]
        for nearest in sorted(range(BANK), key=similarity.__getitem__, reverse=True)[:k]:
            expected[row, labels[nearest]] += np.exp(similarity[nearest] / TEMPERATURE)
    return expected


@pytest.mark.parametrize("bf16_around", [False, True], ids=["float32", "inside bf16 autocast"])
@pytest.mark.parametrize("k", [1, 5, 100], ids=lambda k: f"k={k}")
def test_votes_equal_a_plain_loop(k, bf16_around, monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES_AT_ONCE", 5)
    bank, labels, queries = samples()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16_around):
        votes = list(knn_votes(queries, bank, labels, CLASSES, k, TEMPERATURE))
    assert [len(some) for some in votes] == [5, 5, 3]
    votes = torch.cat(votes)
    assert votes.dtype == torch.float32
    torch.testing.assert_close(votes.double(), by_a_plain_loop(k), rtol=1e-4, atol=0.0)


# samples of the bank, and queries, of each rank: none on some, fewer than k, in uneven numbers
SPREADS = {
    2: [((20, 20), (7, 6)), ((37, 3), (0, 13)), ((0, 40), (13, 0)), ((1, 39), (1, 12))],
    3: [((14, 13, 13), (5, 4, 4)), ((2, 0, 38), (0, 13, 0)), ((0, 39, 1), (6, 0, 7))],
}
KS = (1, 5, 100)


def votes_of_a_rank(world: World) -> list[torch.Tensor]:
    """The votes for this rank's queries, of every spread and k, in turns of 3 or of 2 queries."""
    neighbours.QUERIES_AT_ONCE = 6
    bank, labels, queries = samples()
    found = []
    for (in_bank, asked), k in itertools.product(SPREADS[world.size], KS):
        own_bank, own_labels, own_queries = (
            rows.split(counts)[world.rank]
            for rows, counts in ((bank, in_bank), (labels, in_bank), (queries, asked))
        )
        turns = list(knn_votes(own_queries, own_bank, own_labels, CLASSES, k, TEMPERATURE))
        assert len(turns) == -(-max(asked) // (6 // world.size))
        found.append(torch.cat(turns))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", SPREADS)
def test_votes_do_not_depend_on_how_samples_are_spread(ranks):
    on_ranks = run_on_ranks(ranks, votes_of_a_rank)
    bank, labels, queries = samples()
    for (spread, k), parts in zip(itertools.product(SPREADS[ranks], KS), zip(*on_ranks)):
        assert [len(part) for part in parts] == list(spread[1])
        (expected,) = knn_votes(queries, bank, labels, CLASSES, k, TEMPERATURE)
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-5, atol=0.0)
