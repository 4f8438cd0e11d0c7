"""What a command has understood, in a line each, before anything of it takes time."""

import logging
from collections.abc import Iterable
from pathlib import Path

from lt_train.config.schema import Config, has_start, labeled_batch
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.methods.base import Method
from lt_train.training.optim import Schedule

log = logging.getLogger(__name__)


def tell_data(data: RunData, splits: Iterable[str]) -> None:
    """The sets that are trained on, and the ``splits`` that will be evaluated."""
    first, second, splits = data.train_set, data.unlabeled_set, list(splits)
    parts = [
        f"{first.split} {describe(first)}{_of_all(first)}",
        *(_count(data, split) for split in splits),
    ]
    rejected = first.dataset.splits[first.split].rejected
    if rejected:
        parts.append(f"{rejected:,} left out by data_prep, see rejected.jsonl")
    log.info("data: %s, %s", data.config.data.root, "; ".join(parts))
    if not splits:
        log.info(
            "accuracy is not measured: %s has neither a split '%s' nor '%s'; --val-fraction 0.1 of "
            "data_prep gives it one",
            data.config.data.root,
            data.config.data.val_split,
            data.config.data.test_split,
        )
    if second is not None:
        log.info("second set: %s", _describe_second(data.config, second))


def tell_evaluation(data: RunData, splits: Iterable[str]) -> None:
    """What a finished run is evaluated on, and where."""
    parts = "; ".join(_count(data, split) for split in splits)
    log.info("data: %s, %s; %s", data.config.data.root, parts, hardware(data.config, data.world))


def tell_schedule(config: Config, world: World, schedule: Schedule, last_step: int) -> None:
    """Device, ranks, batches and steps; and what of the schedule never comes."""
    batch, a_rank = config.global_batch_size, ""
    if world.size > 1:
        a_rank = f" ({'' if batch % world.size == 0 else 'about '}{batch / world.size:.4g} a rank)"
    steps = f"{schedule.total_steps:,} steps in {config.epochs:g} epochs"
    if last_step < schedule.total_steps:
        steps += f", of which max_steps allows {last_step:,}"
    log.info(
        "%s, %s: batches of %d%s, %.4g steps an epoch, %s",
        hardware(config, world),
        config.engine.name,
        batch,
        a_rank,
        schedule.steps_per_epoch,
        steps,
    )
    optim = config.optim
    late = [f"{epoch:g}" for epoch in optim.step_epochs if epoch >= config.epochs]
    if optim.schedule == "step" and late:
        log.warning(
            "optim.step_epochs: what is set for epoch %s never comes within %g epochs; a share, "
            "such as 80%%, would",
            " and ".join(late),
            config.epochs,
        )
    if optim.warmup_epochs >= config.epochs:
        log.warning(
            "optim.warmup_epochs=%g does not end within %g epochs; a share, such as 5%%, would",
            optim.warmup_epochs,
            config.epochs,
        )


def tell_folder(folder: Path, step: int | None, last_step: int) -> None:
    """Where everything goes, and whether a run is there already."""
    state = "a new run" if step is None else f"goes on from step {step:,} of {last_step:,}"
    log.info("run.dir: %s, %s", folder, state)


def tell_method(config: Config, method: Method) -> None:
    """The networks, and how much of them is trained."""
    sizes = [(each.numel(), each.requires_grad) for each in method.parameters()]
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, is_trained in sizes if is_trained)
    share = f"{100 * trained / total:.3g}%"
    part = "" if trained == total else f", {_short(trained)} of them trained ({share})"
    network = f"{config.method} on {config.model.backbone}"
    log.info("method: %s, %s parameters%s", network, _short(total), part)
    model = config.model
    if model.trainable != "all" and not has_start(model):
        log.warning(
            "model.trainable=%s without model.init_from: what is frozen of the backbone is random",
            model.trainable,
        )


def hardware(config: Config, world: World) -> str:
    """Ranks, their device, and the precision."""
    ranks = "1 rank" if world.size == 1 else f"{world.size} ranks"
    return f"{ranks} on {world.device.type}, {config.engine.precision}"


def describe(manifest: Manifest) -> str:
    """Images, classes and how uneven they are."""
    counts = manifest.class_counts[manifest.class_counts > 0]
    images = f"{len(manifest):,} images"
    if not len(counts):
        return f"{images} without labels"
    largest, smallest = int(counts.max()), int(counts.min())
    empty, without = manifest.num_classes - len(counts), len(manifest) - int(counts.sum())
    return (
        f"{images}{f' ({without:,} without a label)' if without else ''} of "
        f"{manifest.num_classes:,} classes{f' ({empty:,} without images)' if empty else ''}, "
        f"{largest:,} to {smallest:,} a class (imbalance ratio {largest / smallest:.4g})"
    )


def _of_all(part: Manifest) -> str:
    whole = part.dataset.splits[part.split].samples
    return f", of {whole:,} that there are" if len(part) < whole else ""


def _describe_second(config: Config, pool: Manifest) -> str:
    unlabeled = config.unlabeled
    labels = f"; labels from {unlabeled.label_column}" if unlabeled.label_column else ""
    share = config.global_batch_size - labeled_batch(config)
    use = f"{share} of each batch" if share else "sampled with the first set as one"
    return f"{unlabeled.root}, {pool.split} {describe(pool)}{_of_all(pool)}{labels}; {use}"


def _count(data: RunData, split: str) -> str:
    return f"{split} {len(data.manifest(split)):,} images"


def _short(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number >= 10_000 else f"{number:,}"
