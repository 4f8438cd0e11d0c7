"""Looking at a prepared data set: ``verify`` reads every byte of it, ``info`` tells what is in it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lt_train.data.manifest import Dataset, Manifest, file_sha256, read_dataset, shot_groups
from lt_train.errors import UserError

BAR = 40  # characters, the longest bar of the histogram


def problems(root: Path) -> Iterator[str]:
    """Everything that is wrong with the data set in ``root``, a line each; nothing if it is as data_prep left it."""
    dataset = read_dataset(root)
    for name in dataset.splits:
        yield from _split_problems(root, dataset, name)


def _split_problems(root: Path, dataset: Dataset, name: str) -> Iterator[str]:
    split = dataset.splits[name]
    try:
        manifest = Manifest(root, name)
    except UserError as error:
        yield str(error)
        return
    if len(manifest) != split.samples:
        yield f"{name}.arrow has {len(manifest)} rows, dataset.json says {split.samples}"
    counts = np.bincount(manifest.labels, minlength=len(dataset.classes))
    if counts.tolist() != split.class_counts:
        yield f"{name}.arrow has other class counts than dataset.json"
    by_class = np.argsort(manifest.labels, kind="stable")
    if not (np.array_equal(manifest.class_ids, by_class) and np.array_equal(manifest.class_counts, counts)):
        yield f"{name}.class_index.arrow does not agree with {name}.arrow"
    for shard in split.shards:
        path = root / shard.name
        if not path.is_file():
            yield f"{shard.name} is missing"
            continue
        if file_sha256(path) != shard.sha256:
            yield f"{shard.name} is not as it was written ({path.stat().st_size} bytes, {shard.bytes} expected; sha256 differs)"
    for sample_id in range(len(manifest)):
        try:
            manifest.read(sample_id)
        except UserError:  # a missing shard, named above
            continue
    for sample_id, reason in manifest.bad.items():
        yield f"sample {manifest.key(sample_id)} (sample_id {sample_id}) of {name}: {reason}"


def show(root: Path, console: Console) -> None:
    """Print counts, shard sizes, shot groups and a histogram of the training classes."""
    dataset = read_dataset(root)
    console.print(f"[bold]{dataset.name}[/bold]: {len(dataset.classes)} classes, made by: {dataset.made_by.get('command')}", highlight=False)
    table = Table("split", "samples", "largest class", "smallest class", "ratio", "shards", "MB", "MB a shard", "rejected")
    for name, split in dataset.splits.items():
        counts = [count for count in split.class_counts if count] or [0]
        size = sum(shard.bytes for shard in split.shards) / 1e6
        ratio = f"{max(counts) / max(min(counts), 1):.1f}"
        each = f"{size / max(len(split.shards), 1):.1f}"
        table.add_row(
            name, f"{split.samples:,}", f"{max(counts):,}", f"{min(counts):,}", ratio, str(len(split.shards)), f"{size:,.1f}", each, str(split.rejected)
        )
    console.print(table)
    if "train" in dataset.splits:
        counts = np.array(dataset.splits["train"].class_counts)
        groups = ", ".join(f"{name.replace('_', '-')} {int(members.sum())}" for name, members in shot_groups(counts).items())
        console.print(f"training classes: {groups}", highlight=False)
        _histogram(counts, dataset.classes, console)


def _histogram(counts: np.ndarray, classes: list[str], console: Console) -> None:
    """One bar a class, largest first; of many classes, evenly spaced ones."""
    order = np.argsort(-counts, kind="stable")
    for position in np.unique(np.linspace(0, len(order) - 1, min(len(order), 20)).astype(int)):
        label = order[position]
        bar = "█" * max(1, round(BAR * counts[label] / counts.max())) if counts[label] else ""
        console.print(f"{classes[label][:24]:>24} {counts[label]:>7,} {bar}", highlight=False, markup=False)
