"""Every key of a config in words, read off the dataclasses; for --list-keys and docs/keys.md."""

import ast
import dataclasses
import fnmatch
import inspect
import io
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import dataclass

from lt_train.config.ranges import ANY, RANGES, VIEWS, of_first_view, range_of
from lt_train.config.reading import bare, is_optional, kind_of
from lt_train.config.schema import BACKBONES, LOSSES, METHODS, SAMPLERS, Config
from lt_train.errors import UserError, nearest

TABLES = {  # keys that name an entry of a table, which modules of one's own may add to
    "method": METHODS,
    "loss.name": LOSSES,
    "sampler.name": SAMPLERS,
    "model.backbone": BACKBONES,
}
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """A key of a config."""

    name: str  # such as optim.lr
    kind: str  # what it takes, in words
    default: str  # as it would be typed
    meaning: str  # the comment beside it; may be empty
    choices: tuple[str, ...] = ()  # the words that it takes, where these are all (or all of ours)

    @property
    def line(self) -> str:
        """``optim.lr=0.1  (number, 0 or more) for a global batch of lr_batch_size``."""
        return f"{self.name}={self.default}  ({self.kind}) {self.meaning}".rstrip()


def list_keys() -> list[Key]:
    """All of them, in the order of the dataclasses; those of ``second_view`` and ``eval_view``,
    which are those of ``view``, once.
    """
    return list(_keys_of(Config, Config(), ""))


def find_keys(pattern: str) -> list[Key]:
    """Those whose names match a shell pattern, or are within a section of that name."""
    keys = list_keys()
    found = [key for key in keys if fnmatch.fnmatchcase(key.name, pattern)]
    found = found or [key for key in keys if key.name.startswith(f"{pattern}.")]
    if not found:
        names = [key.name for key in keys]
        raise UserError(f"no key matches '{pattern}'{nearest(pattern, names)}; try 'optim.*'")
    return found


def takes(name: str) -> str:
    """What the key of this name takes, in words."""
    name = of_first_view(name)
    return next(key.kind for key in list_keys() if key.name == name)


def _keys_of(section: type, values: typing.Any, prefix: str) -> Iterator[Key]:
    comments = _comments(section)
    for field in dataclasses.fields(section):
        name, kind = prefix + field.name, kind_of(section, field.name)
        value, meaning = getattr(values, field.name), comments[field.name]
        if f"{name}." in VIEWS:
            yield Key(name, "a section with the keys of view", typed(value), meaning)
        elif dataclasses.is_dataclass(bare(kind)):
            yield from _keys_of(kind, value, f"{name}.")
        else:
            words, choices = _words(name, kind)
            yield Key(name, words, typed(value), meaning, choices)


def _comments(section: type) -> dict[str, str]:
    """What stands above each field, and beside it."""
    source = inspect.cleandoc("\n" + inspect.getsource(section))
    said, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            said[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    comments = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = (said.get(line, "") for line in range(first, node.end_lineno + 1))
            comments[node.target.id] = " ".join(filter(None, lines))
    return comments


def _words(name: str, kind: typing.Any) -> tuple[str, tuple[str, ...]]:
    """What a key of this type takes, and the choices that it leaves."""
    choices = tuple(TABLES.get(name, ()))
    plain, parts = bare(kind), typing.get_args(bare(kind))
    if typing.get_origin(plain) is typing.Literal:
        choices = parts
        words = " | ".join(parts)
    elif typing.get_origin(plain) is tuple:
        count = "any number" if parts[-1] is Ellipsis else str(len(parts))
        words = f"a list of {count}, each {KINDS[parts[0]]}"
    else:
        words = " | ".join(choices) or KINDS[plain]
    if plain is bool:
        choices = ("true", "false")
    allowed = range_of(name) if name in RANGES else ANY
    if allowed is not ANY:
        words += f", {allowed.words}"
    if is_optional(kind) and "null" not in words:
        words += ", or null"
    return words, choices


def typed(value: typing.Any) -> str:
    """A value as one would type it; of a section, whether it is there."""
    if dataclasses.is_dataclass(value):
        return "{...}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return f"[{','.join(map(typed, value))}]"
    return str(value)
