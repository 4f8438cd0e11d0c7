"""``python -m lt_train predict RUN_DIR SOURCE``: the likeliest classes of any images, by a
classifier's run.

Images need not be prepared: each is read as data_prep would have stored it, and seen as evaluation
sees a split. Ranks share the images, and rank 0 writes a table in the source's order. Memory holds
what is written, and a few batches.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.collectives import from_main, gather_objects, gather_rows, on_every_rank, on_main
from lt_train.commands.evaluate import check_crops
from lt_train.commands.image_scorer import (
    POSTHOC,
    Scorer,
    make_scorer,
    needs_data,
    parse_classifier,
)
from lt_train.commands.open_run import CROPS, STEP, check_classifier, class_names, open_run
from lt_train.commands.prediction_table import FORMATS, Predictions, write_table
from lt_train.config.schema import Config
from lt_train.console import say, setup_logging, working
from lt_train.data.batch import Loader
from lt_train.data.dataset import read_dataset
from lt_train.data.image_files.found import FoundImages, find_images
from lt_train.data.image_files.walk import PassedOver
from lt_train.data.manifest import Manifest
from lt_train.data.photos import Photos, loaders_of
from lt_train.data.run_data import RunData, open_together
from lt_train.data.tables import UNLABELED
from lt_train.distributed import World, rank_share
from lt_train.errors import UserError
from lt_train.files import is_url
from lt_train.training.precision import autocast


@dataclass(frozen=True)
class Asked:
    """What is predicted: a prepared set's ``manifest``, or else ``found`` images."""

    source: str
    manifest: Manifest | None = None
    found: FoundImages | None = None

    def __len__(self) -> int:
        return len(self.found.names if self.manifest is None else self.manifest)

    def name(self, index: int) -> str:
        return self.found.names[index] if self.manifest is None else self.manifest.key(index)

    def loaders(
        self, share: range, config: Config, world: World, crops: int
    ) -> Iterator[tuple[np.ndarray, Photos | Manifest, Loader]]:
        """See :func:`loaders_of`; places in ``share`` stand for sample ids."""
        if self.manifest is None:
            part = Photos(self.found.images, np.asarray(share), self.source)
        else:
            part = self.manifest.subset(slice(share.start, share.stop))
        return loaders_of(part, config, world, crops)


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    if arguments.out is not None:
        _check_out(arguments.out)
    with distributed.joined() as world:
        setup_logging(world.is_main)
        _predict(arguments, world)
    return 0


def _predict(arguments: argparse.Namespace, world: World) -> None:
    with_data = needs_data(arguments)
    config, method = open_run(
        arguments.run, arguments.overrides, world, arguments.step, with_data=with_data
    )
    check_classifier(arguments.run, config)
    if arguments.crops > 1:
        check_crops(arguments.run, config)
    classes, asked = class_names(config), _asked(arguments, config, world)
    data = RunData(config, world) if with_data else None
    with torch.inference_mode(), autocast(config, world):
        scorer = make_scorer(arguments, method, data, autocast(config, world), world)
        started = time.monotonic()
        predictions = predict(asked, scorer, arguments, config, world, classes)

    def write() -> None:
        write_table(arguments.out, predictions)
        _tell(predictions, scorer, arguments, time.monotonic() - started)

    on_main(write)


def _asked(arguments: argparse.Namespace, config: Config, world: World) -> Asked:
    """What is at the source. Collective."""
    source = arguments.source
    if is_url(source):
        raise UserError(f"predict reads images where they lie: copy {source} to a folder first")
    if os.path.isfile(os.path.join(source, "dataset.json")):
        split = arguments.split or _default_split(source, config)
        manifest = open_together(Path(source), split, world)
        if not len(manifest):
            raise UserError(f"the split '{split}' of {source} has no images")
        return Asked(source, manifest=manifest)
    if arguments.split is not None:
        raise UserError(f"--split is for prepared sets, and '{source}' has no dataset.json")

    def find() -> FoundImages:
        passed = PassedOver()
        with working(f"looking for images in {source}"):
            found = find_images(source, passed)
        if passed.told():
            say(passed.told())
        return found

    return Asked(source, found=from_main(find))


def _default_split(source: str, config: Config) -> str:
    splits = list(read_dataset(source).splits)
    if config.data.test_split in splits:
        return config.data.test_split
    if len(splits) > 1:
        raise UserError(f"'{source}' has the splits {', '.join(splits)}; name one with --split")
    return splits[0]


def predict(
    asked: Asked,
    scorer: Scorer,
    arguments: argparse.Namespace,
    config: Config,
    world: World,
    classes: list[str],
) -> Predictions | None:
    """The predictions of all images, on rank 0; None on the others. Collective."""
    shares = [rank_share(len(asked), rank, world.size) for rank in range(world.size)]
    top, share, done = min(arguments.top, len(classes)), shares[world.rank], 0
    best = np.full((len(share), top), -1, np.int32)
    values = np.zeros((len(share), top), np.float32)
    errors: dict[int, str] = {}

    def predict_share() -> None:
        nonlocal done
        for ids, part, loader in asked.loaders(share, config, world, arguments.crops):
            found = []
            for batch in loader:
                found.append((batch.sample_id, *scorer.best(batch, top)))
                done += len(batch)
            for batch_ids, *pair in found:  # only now does the host wait for the device
                rows = ids[batch_ids.cpu().numpy()]
                best[rows], values[rows] = (rows_of.cpu().numpy() for rows_of in pair)
            errors.update({share[ids[place]]: reason for place, reason in part.bad.items()})

    with ExitStack() as stack:
        stack.enter_context(working(lambda: f"predicted {done:,} of this rank's {len(share):,}"))
        on_every_rank(predict_share if len(share) else lambda: None)
    counts = [len(each) for each in shares]
    gathered = [gather_rows(torch.from_numpy(rows), counts) for rows in (best, values)]
    all_errors: dict[int, str] = {}
    for of_rank in gather_objects(errors):
        all_errors |= of_rank
    if len(all_errors) == len(asked):
        raise UserError(
            f"none of the {len(asked):,} images of {asked.source} can be used; the first,"
            f" {asked.name(0)}: {all_errors[0]}"
        )
    if not world.is_main:
        return None
    return Predictions(
        names=[asked.name(index) for index in range(len(asked))],
        classes=classes,
        best=gathered[0].numpy(),
        values=gathered[1].numpy(),
        value_name="score" if scorer.temperature is None else "probability",
        errors=all_errors,
        labels=_labels(asked),
    )


def _labels(asked: Asked) -> list[str | None] | None:
    """The classes that a prepared set says, by its own names; None where it says none."""
    manifest = asked.manifest
    if manifest is None or not manifest.class_counts.any():
        return None
    labels = np.asarray(manifest.labels).tolist()
    return [None if label == UNLABELED else manifest.classes[label] for label in labels]


def _tell(
    predictions: Predictions, scorer: Scorer, arguments: argparse.Namespace, seconds: float
) -> None:
    number, bad = len(predictions.names), len(predictions.errors)
    parts = [f"{number:,} images in {seconds:.1f} s ({number / max(seconds, 1e-9):,.0f} images/s)"]
    if bad:
        parts.append(f"{bad:,} cannot be used, the column error says why")
    parts += scorer.about
    share = predictions.share_right()
    if share is not None:
        parts.append(f"top-1 {100 * share:.2f} %")
    if arguments.out is not None:
        parts.append(str(arguments.out))
    say("; ".join(parts))


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def _check_out(path: Path) -> None:
    """Refuse now what would be found out when all images are predicted."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path} must end in {' or '.join(FORMATS)}")
    if not os.path.isdir(path.parent):
        raise UserError(f"--out {path}: there is no folder {path.parent}")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lt_train predict",
        description=(
            "The likeliest classes of images, prepared or not, by a classifier's run. Also under"
            " torchrun. Writes a line an image, in the source's order: path, class and probability"
            " 1 ... K, and why an image could not be used, if so."
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=(
            "an image, a folder (and all below it), a .txt of image paths, an uncompressed .tar, a"
            " quoted pattern of these, or a prepared set"
        ),
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="of the run's config, e.g. data.eval_batch_size=512",
    )
    _add_options(parser)
    return parser.parse_intermixed_args(words)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a .csv or .parquet, there whole or not at all (default: CSV to stdout)",
    )
    parser.add_argument(
        "--top", type=_count, default=5, metavar="K", help="classes an image (default: 5)"
    )
    parser.add_argument("--crops", **CROPS)
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="probabilities by the temperature that fits the run's validation split best",
    )
    parser.add_argument(
        "--classifier",
        type=parse_classifier,
        metavar="NAME[=TAU]",
        help=(
            f"in place of the trained one: {', '.join(POSTHOC)}; tau is given for the first two, or"
            " the one that posthoc has chosen"
        ),
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of a prepared set (default: its test split, or only one)"
    )
    parser.add_argument("--step", **STEP)
