"""D_U, the imbalanced unlabeled sets of Yang and Xu 2020: drawn from a scored pool, a published
pickle, SVHN's extra images, or the training images that a long-tailed labeled set leaves.

The class by which images are drawn (of SVHN's extra images the true one) goes to the column
``sourced_label`` only: to training, the set is unlabeled. Of left training images it goes to
``hidden_label`` instead, so that nothing takes the truth for a pseudo-label.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.reading.images import Picked
from data_prep.reading.pools import Pool, numbered, pool_of_pickle, read_pseudo_labels
from data_prep.reading.source import Recipe, Source, SourceSplit
from data_prep.reading.sourced import pool_of_scores
from data_prep.reading.subsets import (
    Draw,
    add_imbalance_arguments,
    draw_labeled,
    imbalanced_counts,
    keys_of,
    unlabeled_counts,
    unpublished,
)
from data_prep.sets import cifar, svhn
from lt_train.errors import UserError


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
EXTRA = "a folder with SVHN's extra_32x32.mat (or class folders extra/0 ...)"
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
SVHN = Labeled(
    "svhn", svhn.CLASSES, svhn.ORDER, svhn.LARGEST, svhn.TRAIN_COUNTS, f"{SCORED}; or {EXTRA}"
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
    notes = list(pool.notes)
    if arguments.all:
        chosen = np.arange(len(pool.labels))
    else:
        chosen = _draw(which, pool, arguments)
        notes += unpublished(arguments.seed, arguments.largest, which.largest)
    columns = {pool.column: pool.labels[chosen].astype(np.int32)}
    if pool.scores is not None:
        columns["score"] = pool.scores[chosen].astype(np.float32)
    if which.classes is not None and arguments.pseudo_labels is not None:
        columns["pseudo_label"] = read_pseudo_labels(arguments.pseudo_labels, pool)[chosen]
        pool.files.append(str(arguments.pseudo_labels))
    keys = [pool.keys[index] for index in chosen.tolist()]
    images = Picked(pool.images, chosen)
    split = SourceSplit(None, keys, images, columns, deal_by=columns[pool.column])
    name, splits = f"unlabeled_{which.name}", {"train": split}
    return Source(name, pool.classes, splits, pool.files, notes, pool.passed)


def _draw(which: Labeled, pool: Pool, arguments: argparse.Namespace) -> np.ndarray:
    """Indices of D_U in the pool, as the published code draws it."""
    labeled = _labeled_counts(which, arguments)
    ratio = arguments.imbalance_ratio_unlabeled
    if ratio is None:
        ratio = arguments.imbalance_ratio
    number = len(pool.classes)
    counts = unlabeled_counts(sum(labeled), number, ratio, arguments.size_factor)
    have = np.bincount(pool.labels, minlength=number)
    for label, count in zip(which.order, counts):
        if have[label] < count:
            raise UserError(
                f"the pool has {have[label]} images of class '{pool.classes[label]}' and"
                f" {count} are needed; {pool.remedy}"
            )
    draw = Draw(arguments.seed)
    # the published code draws the labeled set first
    draw.skip([which.sizes[label] for label in which.order])
    return draw.subset(pool.labels, counts, which.order)


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
        return pool_of_pickle(path, which.classes)
    if (path / "dataset.json").is_file():
        if arguments.scores is None or arguments.test_set is None:
            raise UserError(
                "a sharded pool needs --scores DIR (from python -m lt_train score) and --test-set"
                " DIR (the labeled set, for near-duplicates)"
            )
        return pool_of_scores(
            path, arguments.scores, arguments.test_set, which.classes, arguments.per_class
        )
    if which is SVHN and path.is_dir():
        return _extra(path)
    other = "SVHN's extra images" if which is SVHN else which.source.folder
    raise UserError(
        f"'{path}' is neither a pickle nor a pool that data_prep has sharded nor {other}"
    )


def _extra(path: Path) -> Pool:
    """SVHN's extra images, by their true class."""
    extra = svhn.read_split(path, "extra")
    places = np.arange(len(extra.labels))
    notes = []
    if not (path / "extra_32x32.mat").is_file():
        notes = [
            "class folders have lost the order of extra_32x32.mat: this is not the published draw"
        ]
    return Pool(
        svhn.CLASSES,
        extra.images,
        numbered("extra", len(places)),
        extra.labels,
        None,
        extra.files,
        notes,
        places=places,
        total=len(places),
        passed=extra.passed,
    )


def _rest(which: Labeled, source: cifar.Cifar, arguments: argparse.Namespace) -> Pool:
    """The training images outside the labeled set that ``source`` gives with the same options."""
    classes, splits = cifar.read_splits(source, arguments.pool, ["train"])
    train = splits["train"]
    counts = _labeled_counts(which, arguments)
    labeled = draw_labeled(source.name, classes, train.labels, counts, arguments.seed, which.order)
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
    return Pool(
        classes,
        Picked(train.images, rest),
        keys_of(train.labels, rest, classes),
        train.labels[rest],
        None,
        train.files,
        notes,
        "hidden_label",
        remedy,
        passed=train.passed,
    )


RECIPES = {
    f"unlabeled_{which.name}": Recipe(
        f"the unlabeled set D_U for {which.name}: from {pools}",
        partial(add_arguments, which),
        partial(make_source, which),
    )
    for which, pools in [
        (
            CIFAR10,
            "a scored pool, a published pickle or the training images that cifar10_lt leaves",
        ),
        (CIFAR100, "the training images that cifar100_lt leaves"),
        (SVHN, "a scored pool, a published pickle or SVHN's extra images"),
    ]
}
