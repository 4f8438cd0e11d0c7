"""YAML as people mean it, in files and in ``key=value``: numbers are numbers, and a key whose type
is text gets its text as typed.
"""

import dataclasses
import functools
import json
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from lt_train.errors import UserError, unreadable

LARGEST = 2**20  # bytes of a file
DEEPEST = 50  # levels of lists and mappings
MOST_VALUES = 100_000  # with those that aliases repeat

KEPT_TAGS = ("bool", "null", "merge")  # of YAML 1.1; numbers are our own, see _Loader
SINGLE = ("bool", "null", "int", "float", "str")
FORMS = {"map": "a mapping", "seq": "a list"}


def read_yaml(path: Path, kind: Any = None) -> dict[str, Any]:
    """A YAML file's mapping, without interpolations resolved; all keys are texts.

    ``kind``: a dataclass whose fields say which values are texts. A :class:`UserError` says what is
    wrong with the file, and where.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UserError(f"cannot read {path}: it is larger than {LARGEST >> 10} KiB")
        content = parse(raw.decode("utf-8-sig"), kind)
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read {path}: it is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise unreadable(error, f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} does not hold 'key: value' lines")
    return content or {}


def parse(text: str, kind: Any = None) -> Any:
    """The plain value that YAML says, as a ``kind`` wants it; ``yaml.YAMLError`` if it cannot."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Builder(loader).build(node, kind)
    except RecursionError as error:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels") from error
    finally:
        loader.dispose()


def parse_override(value: str, kind: Any) -> Any:
    """What stands behind ``key=``: for a key of type text the text itself, unless it is quoted."""
    if not is_text(kind) or value[:1] in ("'", '"'):
        return parse(value, kind)
    if value in ("null", "~") or (not value and is_optional(kind)):
        return None
    return value


def first_line(error: Exception) -> str:
    """What went wrong in one line; of YAML, with the line where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dicts and lists, as read back by :func:`read_yaml`."""
    # tuples become lists, as YAML has them
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` -> ``{"optim.lr": 1}``."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def kind_of(kind: Any, key: str) -> Any:
    """The type of ``key`` in a dataclass or dict, without its Optional; None if it has none."""
    kind = bare(kind)
    if dataclasses.is_dataclass(kind):
        return _hints(kind).get(key)
    if typing.get_origin(kind) is dict:
        return typing.get_args(kind)[1]
    return None


def is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def bare(kind: Any) -> Any:
    """``X`` of ``Optional[X]``."""
    return typing.get_args(kind)[0] if is_optional(kind) else kind


def is_text(kind: Any) -> bool:
    kind = bare(kind)
    return kind is str or typing.get_origin(kind) is typing.Literal


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _without_numbers(resolvers: dict[str, list]) -> dict[str, list]:
    """PyYAML's table of what unquoted text means, without YAML 1.1's numbers and dates."""
    kept = {}
    for first, found in resolvers.items():
        kept[first] = [(tag, text) for tag, text in found if tag.rpartition(":")[2] in KEPT_TAGS]
    return kept


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML with the numbers that people mean: 1e-3 is one, and 12:30:00 and dates are text."""

    yaml_implicit_resolvers = _without_numbers(yaml.SafeLoader.yaml_implicit_resolvers)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?([0-9][0-9_]*)?\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"  # .5, 1.5e3
        r"|[-+]?[0-9][0-9_]*(\.|\.?[eE][-+]?[0-9]+)"  # 1., 1e-3
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


class _Builder:
    """Plain values of YAML's nodes, each by the type of its key."""

    def __init__(self, loader: _Loader):
        self.loader = loader
        self.values = 0

    def build(self, node: yaml.Node, kind: Any, depth: int = 0) -> Any:
        self.values += 1
        if depth > DEEPEST:
            raise _error(node, f"recursive aliases, or nested deeper than {DEEPEST} levels")
        if self.values > MOST_VALUES:
            raise _error(node, f"more than {MOST_VALUES} values, with those of aliases")
        tag = node.tag.rpartition(":")[2]
        if isinstance(node, yaml.ScalarNode):
            return self._single(node, tag, kind)
        expected = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if tag != expected:
            raise _error(node, f"{FORMS[expected]} cannot be tagged '{tag}'")
        if expected == "map":
            return self._mapping(node, kind, depth)
        inner = bare(kind)
        item = typing.get_args(inner)[0] if typing.get_origin(inner) is tuple else None
        return [self.build(child, item, depth + 1) for child in node.value]

    def _mapping(self, node: yaml.MappingNode, kind: Any, depth: int) -> dict[str, Any]:
        merged, own = {}, {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error(key, "a key must be text, not a list or a mapping")
            if key.tag.endswith(":merge"):
                merged = {**self._merge(value, kind, depth), **merged}
                continue
            if key.value in own:
                raise _error(key, f"found duplicate key {key.value}")
            own[key.value] = self.build(value, kind_of(kind, key.value), depth + 1)
        return {**merged, **own}

    def _merge(self, node: yaml.Node, kind: Any, depth: int) -> dict[str, Any]:
        """What ``<<: *name`` or ``<<: [*name, ...]`` brings; of several the first wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged = {}
        for part in parts:
            found = self.build(part, kind, depth + 1)
            if not isinstance(found, dict):
                raise _error(part, "expected a mapping to merge")
            merged = {**found, **merged}
        return merged

    def _single(self, node: yaml.ScalarNode, tag: str, kind: Any) -> Any:
        if tag not in SINGLE:
            known = tag in FORMS
            problem = f"expected {FORMS[tag]}" if known else f"the tag '{tag}' means nothing here"
            raise _error(node, problem)
        if is_text(kind):
            absent = tag == "null" and (node.value or is_optional(kind))
            return None if absent else node.value
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError, IndexError) as error:
            raise _error(node, f"'{node.value}' is no {tag}") from error


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)
