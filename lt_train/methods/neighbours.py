"""Votes of the nearest neighbours among samples that lie spread over the ranks.

No rank holds more than its own part of them: the queries of all ranks go round, each rank finds
the nearest in its part, and of these the nearest of all vote where the query came from.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from lt_train.collectives import all_gather_rows, all_to_all_rows, gather_counts, rank_and_size

QUERIES_AT_ONCE = 1024  # of all ranks together, which each rank compares with its part


def knn_votes(
    queries: torch.Tensor,
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    num_classes: int,
    k: int,
    temperature: float,
) -> Iterator[torch.Tensor]:
    """Weighted k-NN votes (., num_classes) of this rank's ``queries`` (Q, D), some at a time, in
    order, after Wu et al. 2018. Collective: each rank must take all of them.

    ``bank`` (N, D) and ``bank_labels`` (N,): this rank's part of the samples; rows of it and of
    ``queries`` are unit vectors. Ranks may have any numbers of both, also none: then what is
    yielded may be empty, since all have as many turns.
    """
    rank, ranks = rank_and_size()
    together = max(1, QUERIES_AT_ONCE // ranks)
    counts = gather_counts(len(queries), queries.device)
    for start in range(0, max(counts), together):
        shares = [min(max(count - start, 0), together) for count in counts]
        asked = all_gather_rows(queries[start : start + together], shares)
        found = _nearest(asked, bank, bank_labels, k)
        similarity, labels = (_returned(rows, shares, rank) for rows in found)
        similarity, nearest = similarity.topk(k, dim=1)
        votes = similarity.new_zeros(len(similarity), num_classes)
        weights = (similarity / temperature).exp()
        yield votes.scatter_add_(1, labels.gather(1, nearest), weights)


def _nearest(
    queries: torch.Tensor, bank: torch.Tensor, bank_labels: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarity and label (Q, k) of the nearest in this rank's part; where it has fewer, others
    that are infinitely far.
    """
    # neighbours are told apart by more than bf16's 3 digits
    with torch.autocast(queries.device.type, enabled=False):
        similarity, nearest = (queries @ bank.T).topk(min(k, len(bank)), dim=1)
    missing = (0, k - similarity.shape[1])
    return F.pad(similarity, missing, value=-torch.inf), F.pad(bank_labels[nearest], missing)


def _returned(found: torch.Tensor, shares: list[int], rank: int) -> torch.Tensor:
    """What all ranks have ``found`` (Q, k) of this rank's queries, (own, ranks * k), sent to where
    they came from.
    """
    own, ranks = shares[rank], len(shares)
    received = all_to_all_rows(found, shares, [own] * ranks)
    return received.view(ranks, own, found.shape[1]).transpose(0, 1).flatten(1)
