"""List files of ``path label`` lines: reading, checking, and telling the published ones."""

import hashlib
import os
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from data_prep.reading.many_files import ask
from lt_train.errors import UserError, unreadable

# git blob SHA-1 (or its start) of the lists of Liu et al. 2019 and Kang et al. 2020, by file name
PUBLISHED = {
    "ImageNet_LT_train.txt": "a063f095fcd475db4cf8b0658c4b73955535bbf9",
    "ImageNet_LT_val.txt": "3ed3188b2f44829ce2dec1cc27040d8d40984088",
    "ImageNet_LT_test.txt": "76a2fb97",
    "iNaturalist18_train.txt": "4accdb7584d2f0a5106c40a33ed6afa392189bcc",
    "iNaturalist18_val.txt": "4c23900857fd0f5adcd4cc0dffef345039eeb05f",
    "Places_LT_train.txt": "6392252f8ae867bc8a5e841cc1b29e5b8ef4b636",
    "Places_LT_val.txt": "b93a2ca5",
    "Places_LT_test.txt": "e732e58b",
}
NAMED = 10  # missing images named in an error
# a label; far larger ones are refused as out of range, or as no number
NUMBER = re.compile(r"[0-9]{1,20}")
ROW = re.compile(r"(.+)[ \t]([0-9]{1,20})")
META = re.compile(r"^__(?=[^/]*__(/|$))")  # what webdataset takes for a member about the tar

Rows = tuple[list[str], np.ndarray]  # paths relative to the source folder, and their labels


def read_list(file: Path) -> Rows:
    """The paths and labels of a list, with spaces or tabs between them; a :class:`UserError` names
    the line that is none or that leaves the source folder.
    """
    try:
        # not splitlines, which also splits at what a name may hold
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error, f"cannot read the list '{file}': {error}") from error
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue
        row = ROW.fullmatch(line)
        if not row:
            raise UserError(
                f"{file}, line {number}: '{line[:80]}' is not 'path label' with a label of 0 or"
                " more"
            )
        name, label = row.groups()
        check_inside(name, f"{file}, line {number}")
        names.append(name.rstrip())
        labels.append(as_label(label))
    if not names:
        raise UserError(f"the list '{file}' is empty")
    return names, np.array(labels, np.int64)


def read_lists(root: Path, files: dict[str, Path]) -> tuple[list[str], dict[str, Rows], list[str]]:
    """Classes, rows by split, and notes on which of the lists are published ones."""
    found = {split: relative(read_list(file), root) for split, file in files.items()}
    number = check_labels(found, f"'{files['train']}'")
    notes = check_published(files.values())
    return class_names(*found["train"], number), found, notes


def as_label(number: str) -> int:
    """The text of a NUMBER as a label, cut where a manifest's labels end."""
    return min(int(number), np.iinfo(np.int32).max)


def check_inside(name: str, where: str) -> None:
    """Refuse a path with ``..`` in it."""
    if ".." in name.split("/"):
        raise UserError(
            f"{where}: the path '{name[:80]}' leaves the source folder; give --source a folder that"
            " holds all images"
        )


def relative(rows: Rows, root: Path) -> Rows:
    """Rows with absolute paths inside ``root`` made relative to it; others are refused.

    Of two spellings of a path, ``a/b`` remains.
    """
    prefix = os.path.join(os.path.abspath(root), "")
    names = [os.path.normpath(name) for name in rows[0]]
    for name in names:
        if name.startswith("/") and not name.startswith(prefix):
            raise UserError(
                f"the path '{name[:80]}' lies outside '{root}'; give --source a folder that holds"
                " all images"
            )
    return [name.removeprefix(prefix) for name in names], rows[1]


def check_published(files: Iterable[Path]) -> list[str]:
    """Notes for the user: which are published lists, and which only have the name of one."""
    notes = []
    for file in files:
        content = file.read_bytes()
        sha = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        is_it = [name for name, published in PUBLISHED.items() if sha.startswith(published)]
        if is_it:
            notes.append(f"{file.name} is the published {is_it[0].removesuffix('.txt')} list")
        elif file.name in PUBLISHED:
            notes.append(
                f"{file.name} is NOT the published list of that name (git blob {sha[:8]}, not"
                f" {PUBLISHED[file.name][:8]}): numbers will not compare"
            )
    return notes


def check_labels(found: dict[str, Rows], where: str) -> int:
    """Refuse training labels with gaps and labels of any split out of their range; returns the
    number of classes.
    """
    present = np.unique(found["train"][1])
    gaps = np.setdiff1d(np.arange(min(present[-1] + 1, len(present) + 1)), present)
    if len(gaps):
        raise UserError(
            f"{where}: no training image has label {gaps[0]}, though labels go up to {present[-1]};"
            " labels must be 0, 1, 2, ... without gaps"
        )
    for split, (names, labels) in found.items():
        beyond = np.flatnonzero((labels < 0) | (labels > present[-1]))
        if len(beyond):
            raise UserError(
                f"{where}: {len(beyond)} {split} image(s) have a label out of range, first"
                f" {labels[beyond[0]]} ({names[beyond[0]]}); training labels go from 0 to"
                f" {present[-1]}"
            )
    return len(present)


def check_files(root: str | Path, names: Sequence[str], where: str) -> None:
    """Refuse missing files: all are counted, the first ten named."""

    def missing_of(part: Sequence[str]) -> list[str]:
        return [name for name in part if not os.path.isfile(os.path.join(root, name))]

    missing = list(ask(missing_of, names))
    report_missing(missing, len(names), f"under '{root}'", where)


def report_missing(missing: Sequence[str], total: int, place: str, where: str) -> None:
    """Raise for images that a list names and the source lacks."""
    if missing:
        more = ", ..." if len(missing) > NAMED else ""
        raise UserError(
            f"{len(missing)} of the {total} images of {where} do not exist {place}:"
            f" {', '.join(missing[:NAMED])}{more}"
        )


def class_names(names: Sequence[str], labels: np.ndarray, number: int) -> list[str]:
    """The folders' names where each class has one folder of its own, else the labels."""
    folders: dict[int, set[str]] = {}
    for name, label in zip(names, labels.tolist()):
        folders.setdefault(label, set()).add(os.path.basename(os.path.dirname(name)))
    own = [folders[label].pop() for label in range(number) if len(folders.get(label, ())) == 1]
    if all(own) and len(own) == len(set(own)) == number:
        return own
    return [str(label) for label in range(number)]


def make_keys(names: Sequence[str]) -> list[str]:
    """Class folder and file name without suffix; more of the path, and the suffix, where files
    differ in nothing else.

    A webdataset key ends at its first dot, so dots become underscores; a first folder like
    ``__x__``, which webdataset would pass over, loses two. Where that makes two keys the same, the
    changed one ends in a checksum of its name. A :class:`UserError` names files that would share a
    key all the same.
    """
    refuse_strange(names)
    stems = [os.path.splitext(name)[0] for name in names]
    distinct = len(set(stems))
    parts = [stem.strip("/").split("/") for stem in stems]
    plain = list(map(plain_key, _tails(parts, plain_key, distinct)))
    keys = _with_suffix(plain, plain, names)
    if len(set(keys)) < len(keys):  # dots are all that tells some files apart
        tails = _tails(parts, str, distinct)
        keys = tell_apart(tails, list(map(plain_key, tails)), names)
    refuse_repeated(keys, names)
    return keys


def _tails(
    parts: Sequence[Sequence[str]], made: Callable[[str], str], distinct: int
) -> Sequence[str]:
    """The ends of paths, two parts or as many more as make ``distinct`` different keys of them;
    whole paths if none do.
    """
    tails: Sequence[str] = []
    for depth in range(2, max(map(len, parts), default=0) + 2):
        tails = ["/".join(part[-depth:]) for part in parts]
        if len(set(map(made, tails))) == distinct:
            break
    return tails


def plain_key(path: str) -> str:
    """A path without suffix as a key that webdataset reads whole."""
    return META.sub("_", path.replace(".", "_"))


def tell_apart(tails: Sequence[str], keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Keys made of ``tails``, paths without suffix, of the files ``names``: the suffix goes behind
    those with the same tail; of those that became the same, what was changed gets a checksum.
    """
    keys = _with_suffix(tails, keys, names)
    repeated = {key for key, count in Counter(keys).items() if count > 1}
    return [
        f"{key}_{zlib.crc32(name.encode()):08x}"
        if key in repeated and not key.startswith(tail)
        else key
        for tail, key, name in zip(tails, keys, names)
    ]


def _with_suffix(same: Sequence[str], keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Keys, with the suffix of the file's name behind each whose entry in ``same`` is repeated."""
    counts = Counter(same)
    return [
        f"{key}_{os.path.splitext(name)[1][1:]}" if counts[entry] > 1 else key
        for entry, key, name in zip(same, keys, names)
    ]


def refuse_strange(names: Iterable[str], what: str = "the file name") -> None:
    """A :class:`UserError` if a name is not UTF-8 or holds control characters."""
    for name in names:
        if name.isprintable():
            continue
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise UserError(f"{what} {ascii(name)} is not valid text; rename it")


def refuse_repeated(keys: Sequence[str], names: Iterable[str]) -> None:
    """A :class:`UserError` if two samples have the same key."""
    if len(set(keys)) == len(keys):
        return
    key, count = Counter(keys).most_common(1)[0]
    same = [name for name, other in zip(names, keys) if other == key]
    raise UserError(
        f"{count} images would have the same key '{key}': {', '.join(same[:3])}; list each once,"
        " under different names"
    )
