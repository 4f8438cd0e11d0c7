"""``python -m lt_train score CONFIG --pool DIR``: what a trained sourcing classifier thinks of
every image of a pool.

Ranks (torchrun, srun) and array tasks (``--task I/N``) each take a slice of the pool's shards and
need nothing of each other. A shard's scores are written when it is done, so the same command again
goes on there. Memory holds two shards, whatever the pool's size.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.commands.open_run import open_method, state_digest
from lt_train.config.load import load_config
from lt_train.config.schema import METHODS, Config
from lt_train.console import Every, say, setup_logging, working
from lt_train.data.batch import Loader
from lt_train.data.batch_plan import EvalPlan
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import make_loader
from lt_train.data.scores import SPLIT, ScoreStore
from lt_train.data.tables import UNLABELED
from lt_train.distributed import World
from lt_train.errors import UserError, parse_task, unreadable
from lt_train.files import is_url
from lt_train.methods.base import Method
from lt_train.run_files import read_result
from lt_train.training.precision import autocast, decided
from lt_train.training.preface import hardware

# images (B, 3, H, W) -> labels (B,), scores (B,)
Score = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    config = load_config(arguments.config, arguments.overrides)
    with distributed.joined(join=False) as world:
        setup_logging(True)
        _score(arguments, decided(config, World(device=world.device)), world)
    return 0


def _score(arguments: argparse.Namespace, config: Config, world: World) -> None:
    pool = arguments.pool or config.unlabeled.root
    if is_url(pool):
        raise UserError(f"score reads a pool where it lies: copy {pool} to a folder, and name that")
    pool = Path(pool)
    method, classes = open_sourcing(config, World(device=world.device))
    folder = arguments.out or Path(config.run.dir) / "scores"
    store = ScoreStore(folder, read_dataset(pool))
    try:
        store.begin(classes, state_digest(method))
        index, count = arguments.task
        part, parts = index * world.size + world.rank, count * world.size
        own = range(len(store.shards))[part::parts]
        prefix = f"part {part} of {parts}: " if parts > 1 else ""
        score_pool(config, world, method, pool, store, own, prefix)
    except OSError as error:
        message = f"cannot write scores to '{folder}': {error.strerror or error}"
        raise unreadable(error, f"{message}; the same command again goes on from there") from error


def open_sourcing(config: Config, world: World) -> tuple[Method, list[str]]:
    """The finished run's method, ready to score, and the names of its known classes."""
    if not METHODS[config.method].scores_pools:
        able = [name for name, traits in METHODS.items() if traits.scores_pools]
        raise UserError(
            f"scoring needs a config of the {' or '.join(able)} method, not of '{config.method}'"
        )
    result = read_result(Path(config.run.dir))
    if "classes" not in result:
        raise UserError(
            f"{config.run.dir} is not a finished run: no readable result.json; "
            "train it first, or set run.dir"
        )
    return open_method(config, world), result["classes"]


def score_pool(
    config: Config,
    world: World,
    method: Method,
    pool: Path,
    store: ScoreStore,
    shards: range,
    prefix: str,
) -> None:
    """Score the given shards, but for those that are done, and say how fast.

    ``prefix`` stands before every line.
    """
    waiting = [shard for shard in shards if not store.is_done(shard)]
    started, line = time.monotonic(), Every()
    scored = unreadable = 0
    shares = f"{len(waiting)} of {len(shards)} shards"
    say(f"{prefix}scoring {shares} of {pool}, {hardware(config, world)}")
    for place, (shard, size, loader) in enumerate(_ahead(config, world, pool, store, waiting), 1):
        with (
            working(f"{prefix}shard {place}/{len(waiting)}"),
            torch.inference_mode(),
            autocast(config, world),
        ):
            labels, scores = predict_labels(method.score, loader, size)
        store.write(shard, labels, scores)
        scored, unreadable = scored + size, unreadable + int((labels == UNLABELED).sum())
        if line.due():
            seconds = time.monotonic() - started
            rate, left = scored / seconds, seconds / place * (len(waiting) - place)
            say(f"{prefix}shard {place}/{len(waiting)}, {rate:,.0f} images/s, {left:.0f} s left")
    seconds = time.monotonic() - started
    rate, done_before = scored / max(seconds, 1e-9), len(shards) - len(waiting)
    before = f"; {done_before} shards were scored before" if done_before else ""
    bad = f"; {unreadable} unreadable" if unreadable else ""
    say(
        f"{prefix}{scored:,} images scored in {seconds:.1f} s ({rate:,.0f} images/s)"
        f"{before}{bad}: {store.folder}"
    )


def _ahead(
    config: Config, world: World, pool: Path, store: ScoreStore, shards: list[int]
) -> Iterator[tuple[int, int, Loader]]:
    """(shard, its samples, a loader over them), each shard read while the one before is scored."""
    starts = np.concatenate([[0], np.cumsum([shard.samples for shard in store.shards])]).tolist()
    alone, whole = World(device=world.device), Manifest(pool, SPLIT)

    def load(shard: int) -> tuple[int, int, Loader]:
        part = whole.subset(slice(starts[shard], starts[shard + 1]))
        plan = EvalPlan(part, config.eval_view, config.data.eval_batch_size, alone)
        return shard, len(part), make_loader(plan, config, world)

    with ThreadPoolExecutor(1) as reader:
        following = None
        for shard in shards:
            current, following = following, reader.submit(load, shard)
            if current is not None:
                yield current.result()
        if following is not None:
            yield following.result()


def predict_labels(score: Score, loader: Loader, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 and scores float32 (``size``,) of what ``loader`` yields, by sample_id;
    UNLABELED and 0 for what it leaves out.
    """
    labels, scores = np.full(size, UNLABELED, np.int32), np.zeros(size, np.float32)
    found = [(batch.sample_id, *score(batch.views[0])) for batch in loader]
    for ids, batch_labels, batch_scores in found:  # only now does the host wait for the device
        ids = ids.cpu().numpy()
        labels[ids], scores[ids] = batch_labels.cpu().numpy(), batch_scores.cpu().numpy()
    return labels, scores


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lt_train score",
        description=(
            "Score a pool of unlabeled images with a trained sourcing classifier. Also under"
            " torchrun or srun. The same command again goes on."
        ),
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="the sourcing run's config; its run.dir holds the trained classifier",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument(
        "--pool",
        metavar="DIR",
        help="a pool that data_prep has sharded (default: the config's unlabeled.root)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the scores go (default: scores/ in the run's folder)",
    )
    parser.add_argument(
        "--task",
        type=parse_task,
        default=(0, 1),
        metavar="I/N",
        help="do only part I (0 ... N-1) of N, as one of N array jobs",
    )
    return parser.parse_intermixed_args(words)
