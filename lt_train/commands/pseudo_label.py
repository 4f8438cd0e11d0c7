"""``python -m lt_train pseudo_label RUN_DIR --data DIR``: what a classifier thinks of a set's
samples, as columns of its manifest.

Yang and Xu 2020, section 3: a classifier trained on the long-tailed labeled set labels the
unlabeled one, on which, with it, the next classifier is trained (method semi). Ranks share the
samples; memory holds one part of them at a time.
"""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.collectives import gather_rows, on_every_rank, on_main
from lt_train.commands.open_run import STEP, check_classifier, open_run, state_digest
from lt_train.commands.score import Score, predict_labels
from lt_train.config.schema import Config
from lt_train.console import say, setup_logging, working
from lt_train.data.batch_plan import EvalPlan
from lt_train.data.columns import slices
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import make_loader, open_together
from lt_train.data.tables import MANIFEST_SCHEMA, UNLABELED, add_columns, is_half_replaced
from lt_train.distributed import World, rank_share
from lt_train.errors import UserError, unreadable
from lt_train.files import is_url
from lt_train.methods.base import Method
from lt_train.training.precision import autocast
from lt_train.training.preface import hardware

log = logging.getLogger(__name__)
SAMPLES_AT_ONCE = 1 << 16  # of a rank
KEPT_COLUMNS = (*MANIFEST_SCHEMA.names, "hidden_label")  # never written by this command


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    _check_names(arguments)
    with distributed.joined() as world:
        setup_logging(world.is_main)
        _label(arguments, world)
    return 0


def _label(arguments: argparse.Namespace, world: World) -> None:
    """Write the columns, unless they are there. Collective."""
    config, method = open_run(arguments.run, arguments.overrides, world, arguments.step)
    check_classifier(arguments.run, config)
    manifest = open_together(arguments.data, arguments.split, world)
    # a pool of any images has no classes
    if manifest.classes and manifest.classes != read_dataset(config.data.root).classes:
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
        return
    started = time.monotonic()
    where = f"labeling {arguments.data}/{arguments.split}, {len(manifest):,} samples"
    log.info("%s, %s", where, hardware(config, world))
    with working(where):
        predicted = predict_split(config, world, method, manifest)

    def write() -> None:
        labels, confidences = predicted
        seconds = time.monotonic() - started
        columns = {
            arguments.column: pa.array(labels, pa.int32()),
            arguments.confidence_column: pa.array(confidences, pa.float32()),
        }
        with working(f"writing {', '.join(columns)} of {arguments.data}/{arguments.split}"):
            _write_columns(arguments, columns, digest)
        say(
            f"{len(labels):,} samples of {arguments.data}/{arguments.split} labeled in"
            f" {seconds:.1f} s; columns {', '.join(columns)}{_share_right(labels, manifest)}"
        )

    on_main(write)


def _check_names(arguments: argparse.Namespace) -> None:
    taken = {arguments.column, arguments.confidence_column} & set(KEPT_COLUMNS)
    if taken or arguments.column == arguments.confidence_column:
        raise UserError(
            "--column and --confidence-column must be two names of their own"
            + (f", not the manifest's '{taken.pop()}'" if taken else "")
        )


def _has_columns(manifest: Manifest, arguments: argparse.Namespace, digest: str) -> bool:
    """Whether both columns are there, made with these weights.

    A :class:`UserError` if one is there that was made otherwise.
    """
    wanted = {arguments.column, arguments.confidence_column}
    split = manifest.dataset.splits[manifest.split]
    if is_half_replaced(manifest.root, split):
        return False  # an earlier call was killed before it could write dataset.json
    there = sorted(wanted & set(manifest.columns))
    made_by = {name: split.added_columns.get(name, "data_prep") for name in there}
    for name, origin in made_by.items():
        if not origin.endswith(digest):
            raise UserError(
                f"'{arguments.data}' has a column '{name}' by {origin} already; --replace makes it"
                " anew, --column and --confidence-column name other ones"
            )
    return len(made_by) == len(wanted)


def predict_split(
    config: Config, world: World, method: Method, manifest: Manifest
) -> tuple[np.ndarray, np.ndarray] | None:
    """The likeliest class (N,) int32 of every sample, and its probability (N,) float32; UNLABELED
    and 0 for damaged ones. On rank 0, which takes 8 bytes a sample; None on the others, which hold
    their own part. Collective.
    """

    def score(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        confidence, labels = method.predict(images).float().softmax(1).max(1)
        return labels, confidence

    shares = [rank_share(len(manifest), rank, world.size) for rank in range(world.size)]
    counts = [len(share) for share in shares]
    own = on_every_rank(lambda: _predict(config, world, score, manifest, shares[world.rank]))
    labels, confidences = (gather_rows(torch.from_numpy(rows), counts) for rows in own)
    return None if labels is None else (labels.numpy(), confidences.numpy())


def _predict(
    config: Config, world: World, score: Score, manifest: Manifest, samples: range
) -> tuple[np.ndarray, np.ndarray]:
    """This rank's part of :func:`predict_split`."""
    labels = np.empty(len(samples), np.int32)
    confidences = np.empty(len(samples), np.float32)
    alone = World(device=world.device)
    for first in range(samples.start, samples.stop, SAMPLES_AT_ONCE):
        part = manifest.subset(slice(first, min(first + SAMPLES_AT_ONCE, samples.stop)))
        plan = EvalPlan(part, config.eval_view, config.data.eval_batch_size, alone)
        loader = make_loader(plan, config, world)
        with torch.inference_mode(), autocast(config, world):
            own = slice(first - samples.start, first - samples.start + len(part))
            labels[own], confidences[own] = predict_labels(score, loader, len(part))
        if world.is_main and len(samples) > SAMPLES_AT_ONCE:
            say(f"{own.stop:,} of this rank's {len(samples):,} samples")
    return labels, confidences


def _write_columns(
    arguments: argparse.Namespace, columns: dict[str, pa.Array], digest: str
) -> None:
    origin = f"lt_train pseudo_label {arguments.run}, {digest}"
    try:
        add_columns(arguments.data, arguments.split, columns, origin)
    except OSError as error:
        message = f"cannot write to '{arguments.data}': {error.strerror or error}"
        raise unreadable(
            error, f"{message}; make room or permit it, and give the same command again"
        ) from error


def _share_right(labels: np.ndarray, manifest: Manifest) -> str:
    """How many pseudo-labels are right, where the true ones are known."""
    hidden = "hidden_label" in manifest.columns
    true = manifest.column("hidden_label") if hidden else manifest.labels
    known = right = 0
    for rows in slices(len(labels)):
        compared = (true[rows] != UNLABELED) & (labels[rows] != UNLABELED)
        known += np.count_nonzero(compared)
        right += np.count_nonzero(compared & (true[rows] == labels[rows]))
    return f"; {100 * right / known:.1f} % of them are right" if known else ""


def _folder(text: str) -> Path:
    if is_url(text):
        raise UserError(
            f"pseudo_label writes columns beside a set's shards: copy {text} to a folder, and name "
            "that"
        )
    return Path(text)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
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
        type=_folder,
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
    parser.add_argument("--step", **STEP)
    return parser.parse_intermixed_args(words)
