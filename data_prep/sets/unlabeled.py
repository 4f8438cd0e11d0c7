"""D_U, the imbalanced unlabeled sets of Yang and Xu 2020: drawn from a scored pool, a published
pickle, SVHN's extra images, or the training images that a long-tailed labeled set leaves.

The class by which images are drawn (of SVHN's extra images the true one) goes to the column
``sourced_label`` only: to training, the set is unlabeled. Of left training images it goes to
``hidden_label`` instead, so that nothing takes the truth for a pseudo-label.
"""

import argparse
import io
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.reading.images import Picked, PngArray, TarImages
from data_prep.reading.near_duplicates import NearDuplicates
from data_prep.reading.pickles import load_pickle, text_keys
from data_prep.reading.source import Images, Recipe, Source, SourceSplit
from data_prep.reading.subsets import (
    Draw,
    add_imbalance_arguments,
    imbalanced_counts,
    unlabeled_counts,
    unpublished,
)
from data_prep.sets import cifar, svhn
from data_prep.sets.tinyimages import WITHDRAWN
from lt_train.data.manifest import Manifest, read_dataset
from lt_train.data.scores import SPLIT, ScoreStore
from lt_train.errors import UserError

log = logging.getLogger("lt_train." + __name__)


@dataclass(frozen=True)
class Labeled:
    """The labeled set that D_U goes with, as far as the draw depends on it."""

    name: str
    classes: list[str] | None  # None: as its source names them, which is the only pool then
    order: list[int]  # of the classes, largest first
    largest: int
    sizes: list[int]  # training images of the classes before the draw, by label
    pools: str  # for the help
    source: cifar.Cifar | None = None  # whose unused training images are a pool


SCORED = (
    "a pool that data_prep tinyimages has sharded (with --scores), or ti_80M_selected.pickle or"
    " ti_500K_pseudo_labeled.pickle"
)
REST = "{} itself (the --source of cifar{}_lt): its training images outside the labeled set"
CIFAR10 = Labeled(
    "cifar10",
    cifar.CIFAR10_CLASSES,
    list(range(10)),
    5000,
    [5000] * 10,
    f"{SCORED}; or {REST.format('CIFAR-10', 10)}",
    cifar.CIFAR10,
)
CIFAR100 = Labeled(
    "cifar100",
    None,
    list(range(100)),
    500,
    [500] * 100,
    REST.format("CIFAR-100", 100),
    cifar.CIFAR100,
)
EXTRA = "a folder with SVHN's extra_32x32.mat (or class folders extra/0 ...)"
SVHN = Labeled(
    "svhn", svhn.CLASSES, svhn.ORDER, svhn.LARGEST, svhn.TRAIN_COUNTS, f"{SCORED}; or {EXTRA}"
)


@dataclass(frozen=True)
class Pool:
    """Images with the class by which they are drawn, which goes to ``column``, and the score if
    there is one.
    """

    classes: list[str]
    images: Images
    keys: list[str]
    labels: np.ndarray
    scores: np.ndarray | None
    files: list[str]
    notes: list[str]
    column: str = "sourced_label"
    remedy: str = "lower --size-factor or enlarge the pool"  # where a class has too few images
    places: np.ndarray | None = (
        None  # in the published file, whose order published pseudo-labels follow
    )


def add_arguments(which: Labeled, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", type=Path, required=True, metavar="PATH", help=which.pools)
    if which.classes is not None:
        parser.add_argument(
            "--scores", type=Path, metavar="DIR", help="of the pool, by python -m lt_train score"
        )
        parser.add_argument(
            "--test-set",
            type=Path,
            metavar="DIR",
            help=(
                "prepared labeled set: near-duplicates of its test split are left out (needed with"
                " --scores)"
            ),
        )
        parser.add_argument(
            "--per-class",
            type=int,
            default=50_000,
            help="with --scores: keep the so many likeliest images a class (default: 50000)",
        )
        parser.add_argument(
            "--pseudo-labels",
            type=Path,
            metavar="FILE",
            help=(
                "pseudo_labeled_*.pickle that goes with the pool's pickle, or with extra_32x32.mat:"
                " becomes the column pseudo_label"
            ),
        )
    add_imbalance_arguments(parser, 50.0, which.largest)
    parser.add_argument(
        "--imbalance-ratio-unlabeled",
        type=float,
        default=None,
        metavar="R",
        help="of the unlabeled set (default: that of the labeled set)",
    )
    parser.add_argument(
        "--size-factor", type=float, default=5.0, help="unlabeled over labeled images (default: 5)"
    )
    parser.add_argument("--all", action="store_true", help="no draw: keep all images of the pool")


def make_source(which: Labeled, arguments: argparse.Namespace) -> Source:
    pool = _load_pool(which, arguments)
    number, chosen, notes = len(pool.classes), np.arange(len(pool.labels)), list(pool.notes)
    if not arguments.all:
        labeled = _labeled_counts(which, arguments)
        ratio = (
            arguments.imbalance_ratio
            if arguments.imbalance_ratio_unlabeled is None
            else arguments.imbalance_ratio_unlabeled
        )
        counts = unlabeled_counts(sum(labeled), number, ratio, arguments.size_factor)
        have = np.bincount(pool.labels, minlength=number)
        for label, count in zip(which.order, counts):
            if have[label] < count:
                raise UserError(
                    f"the pool has {have[label]} images of class '{pool.classes[label]}' and"
                    f" {count} are needed; {pool.remedy}"
                )
        draw = Draw(arguments.seed)
        draw.skip(
            [which.sizes[label] for label in which.order]
        )  # the published code draws the labeled set first
        chosen = draw.subset(pool.labels, counts, which.order)
        notes += unpublished(arguments.seed, arguments.largest, which.largest)
    columns = {pool.column: pool.labels[chosen].astype(np.int32)}
    if pool.scores is not None:
        columns["score"] = pool.scores[chosen].astype(np.float32)
    if which.classes is not None and arguments.pseudo_labels is not None:
        columns["pseudo_label"] = _read_pseudo_labels(arguments.pseudo_labels, pool)[chosen]
        pool.files.append(str(arguments.pseudo_labels))
    keys = [pool.keys[index] for index in chosen.tolist()]
    split = SourceSplit(
        None, keys, Picked(pool.images, chosen), columns, deal_by=columns[pool.column]
    )
    return Source(f"unlabeled_{which.name}", pool.classes, {"train": split}, pool.files, notes)


def _labeled_counts(which: Labeled, arguments: argparse.Namespace) -> list[int]:
    """Labeled images of the classes, in the order of ``which``."""
    return imbalanced_counts(
        arguments.largest, len(which.order), arguments.imbalance_ratio, arguments.imbalance_type
    )


def _load_pool(which: Labeled, arguments: argparse.Namespace) -> Pool:
    path: Path = arguments.pool
    if which.source is not None and cifar.is_source(which.source, path):
        return _rest(which, which.source, arguments)
    if which.classes is None:
        raise UserError(
            f"'{path}' holds neither {which.source.folder}/ or its files nor train/ with class"
            " folders"
        )
    if path.is_file():
        return _from_pickle(which, path)
    if (path / "dataset.json").is_file():
        if arguments.scores is None or arguments.test_set is None:
            raise UserError(
                "a sharded pool needs --scores DIR (from python -m lt_train score) and --test-set"
                " DIR (the labeled set, for near-duplicates)"
            )
        return _from_scores(which, path, arguments)
    if which is SVHN and path.is_dir():
        extra = svhn.read_split(path, "extra")
        notes = (
            []
            if (path / "extra_32x32.mat").is_file()
            else [
                "class folders have lost the order of extra_32x32.mat: this is not the published"
                " draw"
            ]
        )
        places = np.arange(len(extra.labels))
        return Pool(
            which.classes,
            extra.images,
            _numbered("extra", len(places)),
            extra.labels,
            None,
            extra.files,
            notes,
            places=places,
        )
    other = "SVHN's extra images" if which is SVHN else which.source.folder
    raise UserError(
        f"'{path}' is neither a pickle nor a pool that data_prep has sharded nor {other}"
    )


def _rest(which: Labeled, source: cifar.Cifar, arguments: argparse.Namespace) -> Pool:
    """The training images outside the labeled set that ``source`` gives with the same options."""
    classes, splits = cifar.read_splits(source, arguments.pool, ["train"])
    train = splits["train"]
    labeled = cifar.draw_labeled(
        source.name,
        classes,
        train.labels,
        _labeled_counts(which, arguments),
        arguments.seed,
        which.order,
    )
    rest = np.setdiff1d(np.arange(len(train.labels)), labeled)
    options = " ".join(
        f"--{name.replace('_', '-')} {getattr(arguments, name):g}"
        for name in ("imbalance_ratio", "largest", "seed")
    )
    notes = [
        f"{len(rest):,} training images lie outside the {len(labeled):,} labeled ones of"
        f" {source.name} {options} --imbalance-type {arguments.imbalance_type}, the labeled set to"
        " train with; this is not the published D_U"
    ]
    remedy = (
        f"lower --size-factor ({arguments.size_factor:g}) or --largest ({arguments.largest}), or"
        " take all that is left with --all"
    )
    keys = cifar.keys_of(train.labels, rest, classes)
    return Pool(
        classes,
        Picked(train.images, rest),
        keys,
        train.labels[rest],
        None,
        train.files,
        notes,
        "hidden_label",
        remedy,
    )


def _from_pickle(which: Labeled, path: Path) -> Pool:
    content = load_pickle(path)
    try:
        content = text_keys(content)
        pixels, labels = (
            np.asarray(content["data"]),
            np.asarray(content["extrapolated_targets"]).astype(np.int64).ravel(),
        )
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 4
            or pixels.shape[3] != 3
            or len(pixels) != len(labels)
        ):
            raise ValueError(
                f"data is {pixels.dtype} of shape {pixels.shape}, with {len(labels)}"
                " extrapolated_targets"
            )
        if len(labels) and labels.max() >= len(which.classes):
            raise ValueError(f"extrapolated_targets go up to {labels.max()}")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"'{path}' does not hold 'data' (N, 32, 32, 3) uint8 and 'extrapolated_targets' (N,):"
            f" {error}"
        ) from error
    kept = np.flatnonzero(labels >= 0)
    keys = _numbered("ti", len(labels))
    keys = [keys[index] for index in kept.tolist()]
    return Pool(
        which.classes,
        Picked(PngArray(pixels), kept),
        keys,
        labels[kept],
        None,
        [str(path)],
        [WITHDRAWN],
        places=kept,
    )


def _read_pseudo_labels(path: Path, pool: Pool) -> np.ndarray:
    """The pseudo-labels (N,) int32 that the authors' gen_pseudolabels.py wrote for the published
    file of the pool.
    """
    if pool.places is None:
        raise UserError(
            "--pseudo-labels goes with a published pickle, or with SVHN's extra images; label other"
            " sets with python -m lt_train pseudo_label"
        )
    content = load_pickle(path)
    try:
        labels = np.asarray(text_keys(content)["extrapolated_targets"]).astype(np.int32).ravel()
        if len(labels) <= pool.places.max(initial=-1):
            raise ValueError(
                f"it has {len(labels)} labels, and the pool at least {pool.places.max() + 1} images"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(pool.classes):
            raise ValueError(f"its labels go from {labels.min()} to {labels.max()}")
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"'{path}' does not hold 'extrapolated_targets', a class for each image of the pool:"
            f" {error}"
        ) from error
    return labels[pool.places]


def _numbered(prefix: str, number: int) -> list[str]:
    return [f"{prefix}_{index:07d}" for index in range(number)]


def _from_scores(which: Labeled, root: Path, arguments: argparse.Namespace) -> Pool:
    dataset = read_dataset(root)
    store = ScoreStore(arguments.scores, dataset)
    pool = Manifest(root, SPLIT)
    shards = [str(root / shard.name) for shard in pool.shards]
    test = Manifest(arguments.test_set, "test")
    is_near = NearDuplicates(
        _stacked(
            (bytes(test.read_or_replace(index)[1]) for index in range(len(test))),
            arguments.test_set,
        )
    )

    def near_duplicates(ids: np.ndarray) -> np.ndarray:
        images = TarImages(shards, pool.places(ids))
        return is_near(_stacked((images.read(index) for index in range(len(ids))), root))

    started = time.monotonic()
    best = Sourced(store, len(which.classes), arguments.per_class, near_duplicates)
    ids, labels, scores = best.select()
    log.info(
        "selected %d of %d images, %.0f s in all", len(ids), len(pool), time.monotonic() - started
    )
    notes = [
        WITHDRAWN,
        (
            f"{len(ids):,} images kept of {len(pool):,} scored ({best.read_rate:,.0f} images/s);"
            f" {best.duplicates:,} near-duplicates of the test set left out, {best.compared:,}"
            f" images compared ({best.compared / max(best.compare_seconds, 1e-9):,.0f} images/s)"
        ),
    ]
    files = [
        str(root / "dataset.json"),
        str(arguments.scores / "scores.json"),
        str(arguments.test_set / "dataset.json"),
    ]
    return Pool(
        which.classes,
        TarImages(shards, pool.places(ids)),
        [pool.key(index) for index in ids],
        labels,
        scores,
        files,
        notes,
    )


def _stacked(contents: Iterable[bytes], root: Path) -> np.ndarray:
    try:
        return np.stack([_pixels(content) for content in contents])
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"cannot read an image of '{root}': {error}; python -m data_prep verify {root} tells"
            " more"
        ) from error


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        if image.size != (32, 32):
            raise UserError(
                f"near-duplicates are compared at 32 x 32 pixels, but an image has {image.size[0]}"
                f" x {image.size[1]}"
            )
        return np.asarray(image.convert("RGB"))


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
        self.store, self.num_classes, self.per_class, self.near_duplicates = (
            store,
            num_classes,
            per_class,
            near_duplicates,
        )
        self.known: dict[int, bool] = {}  # sample_id -> whether it is a near-duplicate
        self.compared = self.duplicates = 0
        self.read_rate = self.compare_seconds = 0.0

    def select(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample ids, ascending, with their labels and scores."""
        candidates = self.per_class
        while True:
            found = self._top(candidates)
            self._compare(np.concatenate([ids for ids, _ in found]))
            clean = [
                np.array([not self.known[index] for index in ids.tolist()], bool)
                for ids, _ in found
            ]
            lacking = [
                int(self.per_class - kept.sum())
                for (ids, _), kept in zip(found, clean)
                if len(ids) == candidates
            ]
            if max(lacking, default=0) <= 0:
                break
            candidates += 2 * max(lacking)  # near-duplicates took places: look further down
        ids = np.concatenate([ids[kept][: self.per_class] for (ids, _), kept in zip(found, clean)])
        scores = np.concatenate(
            [scores[kept][: self.per_class] for (_, scores), kept in zip(found, clean)]
        )
        labels = np.repeat(
            np.arange(self.num_classes), [min(int(kept.sum()), self.per_class) for kept in clean]
        )
        order = np.argsort(ids)
        return ids[order], labels[order], scores[order]

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
                ids, values = (
                    np.concatenate(pair) for pair in zip(best[label], (first + here, scores[here]))
                )
                if (
                    len(ids) > 2 * number
                ):  # not every time: what is kept between is bounded all the same
                    ids, values = _best(ids, values, number)
                best[label] = ids, values
        self.read_rate = seen / max(time.monotonic() - started, 1e-9)
        return [_best(ids, values, number) for ids, values in best]

    def _compare(self, ids: np.ndarray) -> None:
        new = np.array([index for index in ids.tolist() if index not in self.known], np.int64)
        started = time.monotonic()
        for start in range(0, len(new), 4096):
            part = new[start : start + 4096]
            self.known.update(zip(part.tolist(), self.near_duplicates(part).tolist()))
            if start // 4096 % 16 == 15:
                log.info("compared %d of %d images with the test set", start + len(part), len(new))
        self.compared += len(new)
        self.duplicates = sum(self.known.values())
        self.compare_seconds += time.monotonic() - started


def _best(ids: np.ndarray, scores: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores))[:number]
    return ids[order], scores[order]


RECIPES = {
    f"unlabeled_{which.name}": Recipe(
        f"the unlabeled set D_U for {which.name}: from {pools}",
        partial(add_arguments, which),
        partial(make_source, which),
    )
    for which, pools in (
        (
            CIFAR10,
            "a scored pool, a published pickle or the training images that cifar10_lt leaves",
        ),
        (CIFAR100, "the training images that cifar100_lt leaves"),
        (SVHN, "a scored pool, a published pickle or SVHN's extra images"),
    )
}
