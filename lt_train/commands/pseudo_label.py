"""``python -m lt_train pseudo_label RUN_DIR --data DIR``: what a classifier thinks of a set's
samples, as columns of its manifest.

Yang and Xu 2020, section 3: a classifier trained on the long-tailed labeled set labels the
unlabeled one, on which, with it, the next classifier is trained (method semi). Ranks share the
samples; memory holds one part of them at a time.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lt_train import distributed
from lt_train.commands.open_run import check_classifier, open_run, state_digest
from lt_train.commands.score import predict_labels
from lt_train.config.schema import Config
from lt_train.console import say, setup_logging
from lt_train.data.batch_plan import EvalPlan
from lt_train.data.manifest import MANIFEST_SCHEMA, UNLABELED, Manifest, add_columns, read_dataset
from lt_train.data.run_data import make_loader
from lt_train.distributed import World, gather_objects
from lt_train.errors import UserError
from lt_train.files import file_sha256
from lt_train.training.engine import autocast

SAMPLES_AT_ONCE = 1 << 16
KEPT_COLUMNS = (*MANIFEST_SCHEMA.names, "hidden_label")


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    taken = {arguments.column, arguments.confidence_column} & set(KEPT_COLUMNS)
    if taken or arguments.column == arguments.confidence_column:
        raise UserError(
            "--column and --confidence-column must be two names of their own"
            + (f", not the manifest's '{taken.pop()}'" if taken else "")
        )
    world = distributed.start()
    setup_logging(world.is_main)
    config, method = open_run(arguments.run, arguments.overrides, world, arguments.step)
    check_classifier(arguments.run, config)
    manifest = Manifest(arguments.data, arguments.split)
    if (
        manifest.classes and manifest.classes != read_dataset(config.data.root).classes
    ):  # a pool of any images has none
        raise UserError(
            f"'{arguments.data}' was made for other classes than {config.data.root}, on which"
            f" {arguments.run} was trained"
        )
    digest = f"weights {state_digest(method)[:16]}"
    if not arguments.replace and _has_columns(manifest, arguments, digest):
        say(
            f"{arguments.data}/{arguments.split} has the column {arguments.column} of these very"
            " weights already"
        )
        return 0

    def score(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        confidence, labels = method.predict(images).float().softmax(1).max(1)
        return labels, confidence

    started = time.monotonic()
    start, stop = (len(manifest) * part // world.size for part in (world.rank, world.rank + 1))
    labels, confidences = _predict(config, world, score, manifest, start, stop)
    labels, confidences = (
        np.concatenate(parts) for parts in zip(*gather_objects((labels, confidences)))
    )
    if world.is_main:
        seconds = time.monotonic() - started
        columns = {
            arguments.column: pa.array(labels, pa.int32()),
            arguments.confidence_column: pa.array(confidences, pa.float32()),
        }
        try:
            add_columns(
                arguments.data,
                arguments.split,
                columns,
                f"lt_train pseudo_label {arguments.run}, {digest}",
            )
        except OSError as error:
            remedy = "make room or permit it, and give the same command again"
            raise UserError(
                f"cannot write to '{arguments.data}': {error.strerror or error}; {remedy}"
            ) from error
        known = (
            manifest.column("hidden_label")
            if "hidden_label" in manifest.columns
            else manifest.labels
        )
        say(
            f"{len(labels):,} samples of {arguments.data}/{arguments.split} labeled in"
            f" {seconds:.1f} s; columns {', '.join(columns)}{_judged(labels, known)}"
        )
    world.barrier()
    distributed.stop()
    return 0


def _has_columns(manifest: Manifest, arguments: argparse.Namespace, digest: str) -> bool:
    """Whether both columns are there, of these weights; refuses to replace those of others unasked."""
    wanted, split = (
        {arguments.column, arguments.confidence_column},
        manifest.dataset.splits[manifest.split],
    )
    table = f"{manifest.split}.arrow"
    if wanted - split.added_columns.keys() and file_sha256(
        manifest.root / table
    ) != split.tables.get(table):
        return False  # an earlier call was killed before it could write dataset.json
    made_by = {
        name: split.added_columns.get(name, "data_prep") for name in wanted & set(manifest.columns)
    }
    others = [
        f"'{name}' by {origin}"
        for name, origin in sorted(made_by.items())
        if not origin.endswith(digest)
    ]
    if others:
        raise UserError(
            f"'{arguments.data}' has a column {others[0]} already; --replace makes it anew,"
            " --column and --confidence-column name other ones"
        )
    return len(made_by) == len(wanted)


def _predict(
    config: Config, world: World, score: Callable, manifest: Manifest, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 and confidences float32 of samples [start, stop); UNLABELED and 0 for damaged
    ones.
    """
    parts = [(np.zeros(0, np.int32), np.zeros(0, np.float32))]
    for first in range(start, stop, SAMPLES_AT_ONCE):
        part = manifest.subset(slice(first, min(first + SAMPLES_AT_ONCE, stop)))
        loader = make_loader(
            EvalPlan(
                part, config.eval_view, config.data.eval_batch_size, World(device=world.device)
            ),
            config,
            world,
        )
        with torch.inference_mode(), autocast(config, world):
            parts.append(predict_labels(score, loader, len(part)))
        if world.is_main and stop - start > SAMPLES_AT_ONCE:
            say(f"{first + len(part) - start:,} of this rank's {stop - start:,} samples")
    return tuple(np.concatenate(column) for column in zip(*parts))


def _judged(labels: np.ndarray, known: np.ndarray) -> str:
    """How many pseudo-labels are right, where that is known."""
    judged = (known != UNLABELED) & (labels != UNLABELED)
    return (
        f"; {100 * (labels == known)[judged].mean():.1f} % of them are right"
        if judged.any()
        else ""
    )


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lt_train pseudo_label",
        description=(
            "Label a prepared set with a trained classifier: adds a column of labels and one of"
            " confidences to its manifest. Also under torchrun."
        ),
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="a classifier's run, finished or not"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="of the run's config, e.g. data.eval_batch_size=512",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the set to label, as data_prep writes it",
    )
    parser.add_argument("--split", default="train", metavar="NAME")
    parser.add_argument("--column", default="pseudo_label", metavar="NAME")
    parser.add_argument("--confidence-column", default="confidence", metavar="NAME")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="make columns anew that other weights, or data_prep, have made",
    )
    parser.add_argument(
        "--step",
        type=int,
        help="of the checkpoint (default: what the run ended with, or its newest)",
    )
    return parser.parse_intermixed_args(words)
