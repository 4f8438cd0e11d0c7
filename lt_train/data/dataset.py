"""dataset.json: what a prepared data set is made of, checked before anything is built upon it."""

import os
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from lt_train.data.origin import RemoteFolder
from lt_train.errors import DamagedFile, UserError
from lt_train.files import file_sha256, is_url, read_sealed, seal, unseal, write_atomically

FORMAT_VERSION = 1
LARGEST = 2**63 - 1
COPY_AGAIN = "copy it again or prepare it anew into another folder"
LONGEST_NAME = 200  # bytes of a file's name, which is at most 255 with what is appended to it
ROW_BYTES = 100  # of a sample in the tables, about


@dataclass(frozen=True)
class Shard:
    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    samples: int
    class_counts: list[int]
    shards: list[Shard]
    rejected: int = 0
    # file name of the manifest and of the class index -> sha256
    tables: dict[str, str] = field(default_factory=dict)
    # columns that the manifest got after it was prepared: name -> what made it
    added_columns: dict[str, str] = field(default_factory=dict)
    # file name of a table that is being replaced -> sha256 of the one to come
    replacing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """The content of dataset.json."""

    name: str
    classes: list[str]
    splits: dict[str, Split]
    # command, version, seed
    made_by: dict[str, str | int | float | None] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class SetFile:
    """A file of a prepared set, beside dataset.json. ``bytes``: of a table, about.

    ``sha256``: what it may be, if that is known.
    """

    name: str
    bytes: int
    sha256: tuple[str, ...]

    def may_be(self, path: Path) -> bool:
        """Whether a file is there that has the size of this one, which only a shard's is known."""
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        return size == self.bytes or self.name.endswith(".arrow")

    def is_copied_to(self, path: Path) -> bool:
        """Whether a file is there that is this one for certain."""
        return bool(self.sha256) and path.is_file() and file_sha256(path) in self.sha256


def files_of(dataset: Dataset) -> list[SetFile]:
    """All files that belong to a prepared set, but for dataset.json: no listing is needed."""
    found = []
    for name, split in dataset.splits.items():
        found += [SetFile(shard.name, shard.bytes, (shard.sha256,)) for shard in split.shards]
        for table in (f"{name}.arrow", f"{name}.class_index.arrow"):
            known = dict.fromkeys(part.get(table) for part in (split.tables, split.replacing))
            sha256 = tuple(filter(None, known))
            found.append(SetFile(table, split.samples * ROW_BYTES // 2, sha256))
    return found


def write_dataset(root: Path, dataset: Dataset) -> None:
    """Write dataset.json, sealed; it is written last, so a folder that has one is complete."""
    content = asdict(dataset)
    for split in content["splits"].values():
        if not split["replacing"]:  # a key that earlier versions refuse to read
            del split["replacing"]
    write_atomically(root / "dataset.json", seal(content))


def read_dataset(root: str | Path) -> Dataset:
    """Read dataset.json, or raise a :class:`UserError` that says what the folder lacks, or what is
    behind the URL.

    Whatever is in it is of its type, numbers are 0 or more, and what names a file names one beside
    dataset.json.
    """
    path = f"{root}/dataset.json"
    content = _content(root)
    try:
        version = content.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer version of data_prep; update lt-train")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is not {FORMAT_VERSION}")
        dataset = _typed(Dataset, content, "")
        _check(dataset)
        return dataset
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged: {error}; {COPY_AGAIN}") from error


def _content(root: str | Path) -> dict[str, Any]:
    """What is in dataset.json, if it is as it was written."""
    if is_url(str(root)):
        content = RemoteFolder(str(root)).read("dataset.json")
        try:
            return unseal(content)
        except ValueError as error:
            message = f"{root}/dataset.json is damaged: {error}; copy the set there again"
            raise DamagedFile(message) from error
    path = Path(root) / "dataset.json"
    if not os.path.isfile(path):  # false also for a name that is too long, where pathlib raises
        what = "there is no such folder"
        if os.path.isdir(root):
            what = "it has no dataset.json (was data_prep interrupted?)"
        raise UserError(
            f"'{root}' is not a prepared data set: {what}; make one with python -m data_prep"
        )
    return read_sealed(path, COPY_AGAIN)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """``value``, as JSON has it, as ``kind``; a ValueError that names the place if it is not."""
    within, parts = f"{where}." if where else "", get_args(kind)
    if is_dataclass(kind):
        return _built(kind, _typed(dict, value, where), where)
    if get_origin(kind) is list:
        items = enumerate(_typed(list, value, where))
        return [_typed(parts[0], item, f"{within}{index}") for index, item in items]
    if get_origin(kind) is dict:
        items = _typed(dict, value, where).items()
        return {name: _typed(parts[1], item, f"{within}{name}") for name, item in items}
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{where} is no whole number")
    if kind is int and not 0 <= value <= LARGEST:
        raise ValueError(f"{where} is not from 0 to {LARGEST}")
    if not isinstance(value, kind):
        names = {str: "text", list: "a list", dict: "a group of keys"}
        raise ValueError(f"{where or 'what it holds'} is not {names.get(kind, 'text or a number')}")
    return value


def _built(kind: type, content: dict, where: str) -> Any:
    """The dataclass ``kind`` from ``content``, which must have its fields and no others."""
    within = f"{where}." if where else ""
    wanted = {entry.name: entry for entry in fields(kind)}
    for name in content.keys() - wanted.keys():
        raise ValueError(f"{within}{name} is no key that is known")
    for name in wanted.keys() - content.keys():
        if wanted[name].default is MISSING and wanted[name].default_factory is MISSING:
            raise ValueError(f"{within}{name} is missing")
    values = content.items()
    return kind(**{key: _typed(wanted[key].type, value, within + key) for key, value in values})


def _check(dataset: Dataset) -> None:
    """A ValueError about what no type tells."""
    if not dataset.splits:
        raise ValueError("it has no splits")
    names: list[str] = []
    for name, split in dataset.splits.items():
        if not is_file_name(name):
            raise ValueError(f"the split {name[:LONGEST_NAME]!r} is no plain file name")
        if len(split.class_counts) != len(dataset.classes):
            raise ValueError(f"splits.{name}.class_counts is not of {len(dataset.classes)} classes")
        tables = {f"{name}.arrow", f"{name}.class_index.arrow"}
        if not split.tables.keys() | split.replacing.keys() <= tables:
            raise ValueError(f"splits.{name}.tables names other files than {name}'s")
        names += [shard.name for shard in split.shards]
    for name in names:
        if not (is_file_name(name) and name.endswith(".tar")):
            raise ValueError(f"the shard {name[:LONGEST_NAME]!r} is no plain file name of a .tar")
    if len(set(names)) != len(names):
        raise ValueError("it names a shard twice")


def is_file_name(name: str) -> bool:
    """Whether it can only mean a file in the very folder: others may have written it."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    plain = not any(character in name for character in "/\\\0")
    return plain and not name.startswith(".") and 0 < size <= LONGEST_NAME
