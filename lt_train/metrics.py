"""Accuracy over a split that is spread over ranks: exact counts, then rates.

Many-, medium- and few-shot classes are those with more than 100, 20 to 100 and fewer than 20 *training* images (Liu et al.
2019); a group's accuracy is the mean over its classes' samples.
"""

import torch

from lt_train.data.manifest import shot_groups
from lt_train.distributed import all_gather_rows, all_reduce_, gather_counts


class Accuracy:
    """Counts of correct top-1 and top-5 predictions per class, on the device until :meth:`compute`."""

    def __init__(self, class_counts: torch.Tensor, device: torch.device):
        """``class_counts`` (C,): training samples of each class."""
        self.class_counts = class_counts
        # rows: samples, top-1 correct, top-5 correct
        self.counts = torch.zeros(3, len(class_counts), dtype=torch.int64, device=device)

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: ``scores`` (B, C), higher is better; ``labels`` (B,)."""
        top = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        hits = torch.stack([torch.ones_like(labels, dtype=torch.bool), top[:, 0], top.any(1)])
        self.counts.scatter_add_(1, labels.expand(3, -1), hits.long())

    def compute(self) -> dict:
        """Percentages over all ranks: top1, top5, many_shot, medium_shot, few_shot, per_class; and ``samples``.

        A group without evaluated samples is None. Collective: every rank must call it.
        """
        samples, top1, top5 = all_reduce_(self.counts.clone()).cpu().double()
        groups = {name: torch.from_numpy(members) for name, members in shot_groups(self.class_counts.numpy()).items()}
        return {
            "samples": int(samples.sum()),
            "top1": _percent(top1.sum(), samples.sum()),
            "top5": _percent(top5.sum(), samples.sum()),
            **{name: _percent(top1[group].sum(), samples[group].sum()) for name, group in groups.items()},
            "per_class": [_percent(hit, total) for hit, total in zip(top1, samples)],
        }


def _percent(hits: torch.Tensor, total: torch.Tensor) -> float | None:
    return round(100 * float(hits) / float(total), 4) if total else None


@torch.no_grad()
def knn_scores(
    features: torch.Tensor, bank: torch.Tensor, bank_labels: torch.Tensor, num_classes: int, k: int, temperature: float
) -> torch.Tensor:
    """Weighted k-NN votes (B, num_classes) of unit ``features`` (B, D) among unit ``bank`` (N, D), after Wu et al. 2018."""
    with torch.autocast(features.device.type, enabled=False):  # neighbours are told apart by more than bf16's 3 digits
        similarity, nearest = (features @ bank.T).topk(min(k, len(bank)), dim=1)
    votes = similarity.new_zeros(len(features), num_classes)
    return votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """All ranks' rows, in rank order, whatever each one's number."""
    return all_gather_rows(rows, gather_counts(len(rows), rows.device))
