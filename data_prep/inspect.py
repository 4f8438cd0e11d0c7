"""Looking at a prepared data set: ``verify`` reads every byte of it, ``info`` tells and draws what
is in it.
"""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lt_train.console import working
from lt_train.data.dataset import Dataset, read_dataset
from lt_train.data.manifest import Manifest, shot_groups
from lt_train.data.tables import (
    class_problems,
    digest_problems,
    is_half_replaced,
    open_tables,
    place_problems,
)
from lt_train.errors import MachineFault, UserError, is_fault, unreadable
from lt_train.files import file_sha256, write_atomically

BAR = 40  # characters, the longest bar of the histogram
# characters that a table may take: a narrower terminal breaks its lines, but no number is cut off
WIDTH = 120
PAGES = (".html", ".htm")  # suffixes


def verify(root: Path) -> int:
    """``python -m data_prep verify``: a line for everything that is wrong, which is an error."""
    # what the manifest warns of is among the problems
    logging.getLogger("lt_train").setLevel(logging.ERROR)
    logging.getLogger("lt_train.console").setLevel(logging.INFO)  # that it is not silent for long
    number = 0
    with working(f"verifying {root}"):
        for problem in problems(root):
            sys.stdout.write(f"{problem}\n")
            number += 1
    if number:
        raise UserError(
            f"{root} is damaged: {number} problem(s), listed above; prepare it again into another"
            " folder"
        )
    sys.stdout.write(f"{root}: all shards, checksums, counts and indices are as written\n")
    return 0


def info(root: Path, plot_file: Path | None) -> int:
    """``python -m data_prep info``; ``plot_file``: where to draw, ``.``: where plots of a data set
    belong.
    """
    show(root, Console(width=max(Console().width, WIDTH)))
    if plot_file is not None:
        file = root / "class_counts.png" if plot_file == Path() else plot_file
        plot(root, file)
        sys.stdout.write(f"drawn: {file}\n")
    return 0


def problems(root: Path) -> Iterator[str]:
    """Everything that is wrong with the data set in ``root``, a line each; nothing if it is as
    data_prep left it.
    """
    dataset = read_dataset(root)
    for name in dataset.splits:
        try:
            yield from _split_problems(root, dataset, name)
        except MachineFault:  # is no damage
            raise
        except UserError as error:
            yield str(error)
        except Exception as error:  # Arrow and NumPy raise many things about damaged columns
            yield f"{name}.arrow or {name}.class_index.arrow is damaged: {error}"


def _split_problems(root: Path, dataset: Dataset, name: str) -> Iterator[str]:
    split = dataset.splits[name]
    yield from digest_problems(root, split)
    if is_half_replaced(root, split):
        yield f"{name}.arrow has columns of a call that was killed; give it again"
    tables = open_tables(root, name)
    misplaced = list(place_problems(tables.manifest, name, split))
    yield from misplaced
    yield from class_problems(tables, name, dataset)
    manifest = Manifest(root, name, check="nothing")
    start = 0
    for shard in split.shards:
        rows, start = slice(start, start + shard.samples), start + shard.samples
        try:
            if file_sha256(root / shard.name) != shard.sha256:
                size = (root / shard.name).stat().st_size
                yield (
                    f"{shard.name} is not as it was written ({size} bytes, {shard.bytes} expected;"
                    " sha256 differs)"
                )
        except FileNotFoundError:
            yield f"{shard.name} is missing"
        except OSError as error:
            problem = f"{shard.name} cannot be read: {error.strerror or error}"
            if is_fault(error):
                raise MachineFault(f"{root}/{problem}; that is no damage: try again") from error
            yield problem
        else:
            if not misplaced:
                yield from _bad_samples(manifest, rows)


def _bad_samples(manifest: Manifest, rows: slice) -> Iterator[str]:
    part = manifest.subset(rows)
    for sample_id in range(len(part)):
        part.read(sample_id)
    for sample_id, reason in part.bad.items():
        yield (
            f"sample {part.key(sample_id)} (sample_id {rows.start + sample_id}) of"
            f" {manifest.split}: {reason}"
        )


def show(root: Path, console: Console) -> None:
    """Print counts, shard sizes, shot groups and a histogram of the training classes."""
    dataset = read_dataset(root)
    about = f"{len(dataset.classes)} classes, made by: {dataset.made_by.get('command')}"
    console.print(
        f"[bold]{escape(dataset.name)}[/bold]: {escape(about)}", highlight=False, soft_wrap=True
    )
    table = Table(
        "split",
        "samples",
        "largest",
        "smallest",
        "ratio",
        "shards",
        "MB",
        "MB/shard",
        "rejected",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, split in dataset.splits.items():
        counts = [count for count in _class_counts(root, dataset, name)[0] if count] or [0]
        size = sum(shard.bytes for shard in split.shards) / 1e6
        ratio = f"{max(counts) / max(min(counts), 1):.1f}"
        each = f"{size / max(len(split.shards), 1):.1f}"
        table.add_row(
            name,
            f"{split.samples:,}",
            f"{max(counts):,}",
            f"{min(counts):,}",
            ratio,
            str(len(split.shards)),
            f"{size:,.1f}",
            each,
            str(split.rejected),
        )
    console.print(table)
    if "train" in dataset.splits and dataset.classes:
        counts, what = _class_counts(root, dataset, "train")
        groups = ", ".join(
            f"{name.replace('_', '-')} {int(members.sum())}"
            for name, members in shot_groups(counts).items()
        )
        console.print(f"{what}: {groups}", highlight=False, soft_wrap=True)
        _histogram(counts, dataset.classes, console)


def plot(root: Path, file: Path) -> None:
    """Draw the class counts of all splits, each sorted by the training split's, as PNG; or write a
    page about the set, if ``file`` is called so.
    """
    dataset, is_page = read_dataset(root), file.suffix.lower() in PAGES
    if not dataset.classes and not is_page:
        raise UserError(
            f"{root} is unlabeled: it has no class counts to draw; --plot FILE.html shows its"
            " images"
        )
    counts = {}
    if dataset.classes:
        counts = {name: _class_counts(root, dataset, name)[0] for name in dataset.splits}
    # only now: matplotlib is slow to import
    from data_prep.set_page import draw_counts, set_page

    if is_page:
        content = set_page(root, dataset, counts).encode()
    else:
        buffer, figure = io.BytesIO(), draw_counts(dataset, counts)
        figure.suptitle(dataset.name, parse_math=False)  # a $ in it is no formula
        figure.savefig(buffer, dpi=120, format="png")
        content = buffer.getvalue()
    try:
        write_atomically(file, content)
    except OSError as error:
        message = f"cannot write {file}: {error.strerror or error}"
        raise unreadable(error, f"{message}; name another with --plot FILE") from error


def _class_counts(root: Path, dataset: Dataset, name: str) -> tuple[np.ndarray, str]:
    """Samples a class, (C,), and what they count: an unlabeled set may know by which class its
    images were drawn, or their true one.
    """
    counts = np.array(dataset.splits[name].class_counts, np.int64)
    if not counts.any() and dataset.classes:
        manifest = Manifest(root, name)
        for column in ("sourced_label", "hidden_label"):
            if column in manifest.columns:
                known = manifest.column(column)
                if known.dtype.kind not in "iu" or known.max(initial=0) >= len(counts):
                    raise UserError(
                        f"the column {column} of {root}/{name}.arrow does not hold labels of"
                        f" {len(counts)} classes; python -m data_prep verify {root}"
                    )
                counts = np.bincount(known[known >= 0], minlength=len(counts))
                return counts, f"classes by {column} (the set is unlabeled)"
    return counts, "training classes"


def _histogram(counts: np.ndarray, classes: list[str], console: Console) -> None:
    """One bar a class, largest first; of many classes, evenly spaced ones."""
    order = np.argsort(-counts, kind="stable")
    for position in np.unique(np.linspace(0, len(order) - 1, min(len(order), 20)).astype(int)):
        label = order[position]
        bar = "█" * max(1, round(BAR * counts[label] / counts.max())) if counts[label] else ""
        console.print(
            f"{classes[label][:24]:>24} {counts[label]:>7,} {bar}", highlight=False, markup=False
        )
