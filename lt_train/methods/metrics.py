"""Accuracy and calibration over a split that is spread over ranks: exact counts, then rates; and
the split's features.

Many-, medium- and few-shot classes are those with more than 100, 20 to 100 and fewer than 20
*training* images (Liu et al. 2019); a group's accuracy is the mean over its classes' samples.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from lt_train.collectives import all_gather_rows, all_reduce_, gather_counts
from lt_train.data.batch import Loader
from lt_train.data.manifest import shot_groups
from lt_train.run_files import PREDICTION

CALIBRATION_BINS = 15
MAX_CONFUSION_CLASSES = 100


class Accuracy:
    """Counts of correct predictions per class, on the device until :meth:`compute`."""

    def __init__(self, class_counts: torch.Tensor, device: torch.device, logits: bool = True):
        """``class_counts`` (C,): training samples of each class.

        ``logits``: scores are logits, whose softmax can be calibrated or not.
        """
        self.class_counts, self.logits = class_counts, logits
        classes = len(class_counts)
        # rows: samples, top-1 correct, top-5 correct
        self.counts = torch.zeros(3, classes, dtype=torch.int64, device=device)
        # rows: samples, sum of confidences, top-1 correct, by the confidence in the prediction
        self.bins = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=device)
        shown = classes if classes <= MAX_CONFUSION_CLASSES else 0
        # true class * C + predicted class
        self.confusion = torch.zeros(shown * shown, dtype=torch.int64, device=device)
        # (B, 4) float64 of each batch: the fields of PREDICTION
        self.by_image: list[torch.Tensor] = []

    def update(
        self, scores: torch.Tensor, labels: torch.Tensor, sample_ids: torch.Tensor | None = None
    ) -> None:
        """Count a batch: ``scores`` (B, C), higher is better; ``labels`` (B,).

        With ``sample_ids`` (B,), what each image was taken for is kept too, if scores are logits.
        """
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        top = best == labels[:, None]
        hits = torch.stack([torch.ones_like(labels, dtype=torch.bool), top[:, 0], top.any(1)])
        self.counts.scatter_add_(1, labels.expand(3, -1), hits.long())
        if len(self.confusion):
            classes = len(self.class_counts)
            # what is taken for none of the classes, such as sourcing's "other", has no column
            known = best[:, 0] < classes
            cell = labels * classes + best[:, 0].clamp(max=classes - 1)
            self.confusion.scatter_add_(0, cell, known.long())
        if self.logits:
            confidence = scores.float().softmax(1).amax(1).double()
            place = (confidence * CALIBRATION_BINS).ceil().long()  # bins are closed above
            place = place.clamp(1, CALIBRATION_BINS) - 1
            rows = [torch.ones_like(confidence), confidence, top[:, 0].double()]
            self.bins.scatter_add_(1, place.expand(3, -1), torch.stack(rows))
            if sample_ids is not None:
                self.by_image.append(torch.stack([sample_ids, labels, best[:, 0], confidence], 1))

    def compute(self) -> dict:
        """Metrics over all ranks. Collective: every rank must call it.

        In %: ``top1``, ``top5``, ``balanced`` (mean over classes), ``many_shot``, ``medium_shot``,
        ``few_shot``, ``per_class`` (a list), and of logits ``ece``, the expected calibration error
        (Guo et al. 2017); None for what has no samples. Also ``samples``, ``class_samples`` (a
        list), and ``confusion``, counts with a row a true class, of up to 100 classes; and with
        sample ids ``predictions``, (N,) PREDICTION in their order.
        """
        samples, top1, top5 = all_reduce_(self.counts.clone()).cpu().double()
        per_class = [_percent(hit, total) for hit, total in zip(top1, samples)]
        seen = [value for value in per_class if value is not None]
        metrics = {
            "samples": int(samples.sum()),
            "top1": _percent(top1.sum(), samples.sum()),
            "top5": _percent(top5.sum(), samples.sum()),
            "balanced": round(sum(seen) / len(seen), 4) if seen else None,
        }
        for name, members in shot_groups(self.class_counts.numpy()).items():
            group = torch.from_numpy(members)
            metrics[name] = _percent(top1[group].sum(), samples[group].sum())
        metrics["per_class"], metrics["class_samples"] = per_class, samples.long().tolist()
        if self.logits:
            number, confidence, right = all_reduce_(self.bins.clone()).cpu()
            metrics["ece"] = _percent((right - confidence).abs().sum(), number.sum())
        if len(self.confusion):
            confusion = all_reduce_(self.confusion.clone())
            metrics["confusion"] = confusion.view(len(samples), -1).tolist()
        # a rank may have no images: whether there are any at all, every rank must find alike
        if sum(counts := gather_counts(sum(map(len, self.by_image)), self.counts.device)):
            metrics["predictions"] = self._predictions(counts)
        return metrics

    def _predictions(self, counts: list[int]) -> np.ndarray:
        """Those of all ranks, which have so many. Collective."""
        none = torch.zeros(0, 4, dtype=torch.float64, device=self.counts.device)
        rows = all_gather_rows(torch.cat([none, *self.by_image]), counts).cpu().numpy()
        found = np.empty(len(rows), PREDICTION)
        for name, column in zip(PREDICTION.names, rows.T):
            found[name] = column
        return found[found["sample_id"].argsort(kind="stable")]


def _percent(hits: torch.Tensor, total: torch.Tensor) -> float | None:
    return round(100 * float(hits) / float(total), 4) if total else None


def feature_std(features: torch.Tensor) -> torch.Tensor:
    """Standard deviation of ``features`` (B, D) as unit vectors, the mean over dimensions: scalar.

    Spread evenly over the sphere, they have 1 / sqrt(D); collapsed to a single one, 0 (Chen and He
    2021).
    """
    return F.normalize(features.detach().float(), dim=1).std(0, correction=0).mean()


def collect_features(
    embed: Callable[[torch.Tensor], torch.Tensor], loader: Loader, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, ``width``) and labels (N,) of all images of this rank's ``loader``.

    ``embed``: images -> features.
    """
    # a rank may have no samples
    features = [torch.zeros(0, width, device=device)]
    labels = [torch.zeros(0, dtype=torch.int64, device=device)]
    for batch in loader:
        features.append(embed(batch.views[0]))
        labels.append(batch.label)
    return torch.cat(features), torch.cat(labels)


def class_means(
    embed: Callable[[torch.Tensor], torch.Tensor],
    loader: Loader,
    width: int,
    classes: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean feature (C, ``width``) float32 of each class, and its number of images (C,) int64.

    Over the labeled images of all ranks, without keeping their features; 0 for classes without
    any. Summed in float64, so that it hardly matters how the images lie on ranks. ``embed``: images
    -> features. Collective.
    """
    # the last column counts
    sums = torch.zeros(classes, width + 1, dtype=torch.float64, device=device)
    for batch in loader:
        labeled = batch.label >= 0
        features = F.pad(embed(batch.views[0]).double(), (0, 1), value=1.0)
        sums.index_add_(0, batch.label[labeled], features[labeled])
    all_reduce_(sums)
    counts = sums[:, -1:]
    return (sums[:, :-1] / counts.clamp(min=1)).float(), counts[:, 0].long()
