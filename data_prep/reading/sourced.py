"""The unlabeled images that a sourcing classifier takes for members of the labeled classes: the
likeliest of a scored pool, without near-duplicates of the test set (Carmon et al. 2019).
"""

import io
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.reading.near_duplicates import NearDuplicates
from data_prep.reading.pools import WITHDRAWN, Pool
from lt_train.data.dataset import read_dataset
from lt_train.data.image_files.places import TarImages
from lt_train.data.manifest import Manifest
from lt_train.data.scores import SPLIT, ScoreStore
from lt_train.errors import UserError, unreadable

COMPARED_AT_ONCE = 4096  # images; what is held of them is bounded
LOG_EVERY = 16  # times so many

log = logging.getLogger("lt_train." + __name__)


def pool_of_scores(
    root: Path, scores_dir: Path, test_set: Path, classes: list[str], per_class: int
) -> Pool:
    """The ``per_class`` likeliest images of each class in the sharded pool ``root``, by the scores
    in ``scores_dir``, that are no near-duplicates of the test split of ``test_set``.
    """
    dataset = read_dataset(root)
    store = ScoreStore(scores_dir, dataset)
    pool = Manifest(root, SPLIT)
    shards = [str(root / shard.name) for shard in pool.shards]
    test = Manifest(test_set, "test")
    test_images = (bytes(test.read_or_replace(index)[1]) for index in range(len(test)))
    is_near = NearDuplicates(_stacked(test_images, test_set))

    def near_duplicates(ids: np.ndarray) -> np.ndarray:
        images = TarImages(shards, pool.places(ids))
        return is_near(_stacked((images.read(index) for index in range(len(ids))), root))

    started = time.monotonic()
    best = Sourced(store, len(classes), per_class, near_duplicates)
    ids, labels, scores = best.select()
    seconds = time.monotonic() - started
    log.info("selected %d of %d images, %.0f s in all", len(ids), len(pool), seconds)
    compare_rate = best.compared / max(best.compare_seconds, 1e-9)
    note = (
        f"{len(ids):,} images kept of {len(pool):,} scored ({best.read_rate:,.0f} images/s);"
        f" {best.duplicates:,} near-duplicates of the test set left out, {best.compared:,}"
        f" images compared ({compare_rate:,.0f} images/s)"
    )
    files = [root / "dataset.json", scores_dir / "scores.json", test_set / "dataset.json"]
    return Pool(
        classes,
        TarImages(shards, pool.places(ids)),
        [pool.key(index) for index in ids],
        labels,
        scores,
        list(map(str, files)),
        [WITHDRAWN, note],
    )


class Sourced:
    """The ``per_class`` likeliest images of each class that are no near-duplicates, in memory that
    does not grow with the pool.
    """

    def __init__(
        self,
        store: ScoreStore,
        num_classes: int,
        per_class: int,
        near_duplicates: Callable[[np.ndarray], np.ndarray],
    ):
        self.store = store
        self.num_classes = num_classes
        self.per_class = per_class
        self.near_duplicates = near_duplicates
        self.known: dict[int, bool] = {}  # sample_id -> whether it is a near-duplicate
        self.compared = self.duplicates = 0
        self.read_rate = self.compare_seconds = 0.0

    def select(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample ids, ascending, with their labels and scores."""
        number = self.per_class
        while True:
            candidates = self._top(number)
            self._compare(np.concatenate([ids for ids, _ in candidates]))
            found = [self._clean(ids, scores) for ids, scores in candidates]
            missing = 0
            for (ids, _), (clean, _) in zip(candidates, found):
                if len(ids) == number:  # the class has more
                    missing = max(missing, self.per_class - len(clean))
            if not missing:
                break
            number += 2 * missing  # near-duplicates took places: look further down
        found = [(ids[: self.per_class], scores[: self.per_class]) for ids, scores in found]
        ids = np.concatenate([ids for ids, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        labels = np.repeat(np.arange(self.num_classes), [len(ids) for ids, _ in found])
        order = np.argsort(ids)
        return ids[order], labels[order], scores[order]

    def _clean(self, ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those that are no near-duplicates."""
        clean = np.array([not self.known[index] for index in ids.tolist()], bool)
        return ids[clean], scores[clean]

    def _top(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and scores of each class's ``number`` best, best first; of equal scores, the lower
        id.
        """
        started, seen = time.monotonic(), 0
        best = [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in range(self.num_classes)]
        for first, labels, scores in self.store.read(self.num_classes):
            seen += len(labels)
            for label in range(self.num_classes):
                here = np.flatnonzero(labels == label)
                ids = np.concatenate([best[label][0], first + here])
                values = np.concatenate([best[label][1], scores[here]])
                # not every time: what is kept between is bounded all the same
                if len(ids) > 2 * number:
                    ids, values = _best(ids, values, number)
                best[label] = ids, values
        self.read_rate = seen / max(time.monotonic() - started, 1e-9)
        return [_best(ids, values, number) for ids, values in best]

    def _compare(self, ids: np.ndarray) -> None:
        new = np.array([index for index in ids.tolist() if index not in self.known], np.int64)
        started = time.monotonic()
        for turn, start in enumerate(range(0, len(new), COMPARED_AT_ONCE), 1):
            part = new[start : start + COMPARED_AT_ONCE]
            self.known.update(zip(part.tolist(), self.near_duplicates(part).tolist()))
            if turn % LOG_EVERY == 0:
                log.info("compared %d of %d images with the test set", start + len(part), len(new))
        self.compared += len(new)
        self.duplicates = sum(self.known.values())
        self.compare_seconds += time.monotonic() - started


def _best(ids: np.ndarray, scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))[:number]
    return ids[order], scores[order]


def _stacked(contents: Iterable[bytes], root: Path) -> np.ndarray:
    try:
        return np.stack([_pixels(content) for content in contents])
    except (OSError, SyntaxError, ValueError) as error:
        message = f"cannot read an image of '{root}': {error}"
        raise unreadable(
            error, f"{message}; python -m data_prep verify {root} tells more"
        ) from error


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        if image.size != (32, 32):
            raise UserError(
                f"near-duplicates are compared at 32 x 32 pixels, but an image has {image.size[0]}"
                f" x {image.size[1]}"
            )
        return np.asarray(image.convert("RGB"))
