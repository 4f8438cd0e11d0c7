"""What tells the default folders of runs apart: the overrides that change what is learnt."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from lt_train.config.reading import flatten, kind_of, parse_override
from lt_train.config.schema import Config

# may change between a run and its resumption without changing what is learnt
FREE_KEYS = (
    "description",
    "reference_error",
    "max_steps",
    "compressed_by",  # the epochs are what it says something of
    "run.",
    "resume.",
    "data.decode",
    "data.decode_threads",
    "data.eval_batch_size",
    "data.cache_dir",
    "data.cache_gb",
    "data.features",
    "engine.cpu_threads",
    "engine.name",
    "engine.zero_stage",
    "engine.activation_checkpointing",
    "engine.cuda_graph",
)
# where things lie; a run knows its data wherever they lie, and refuses others
PLACES = ("data.root", "unlabeled.root", "imports")
UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)
LONGEST = 120  # characters


def override_name(overrides: Iterable[str]) -> str:
    """``+NAME,key=value,...`` of overrides: variants in their order, then keys in the alphabet's.

    The same for ``optim.lr=0.05`` and ``optim.lr=5e-2``. A pipeline's ``STAGE:key=value`` is
    ``STAGE@key=value``. What a folder's name cannot hold, or is too long, ends in a digest.
    """
    variants, values = "", {}
    for word in overrides:
        key, equals, text = word.partition("=")
        stage, colon, name = key.rpartition(":")
        target = stage + "@" * len(colon)
        if name.startswith("+"):
            variants += f"+{target}{name[1:]}"
        elif equals:
            for inner, value in _values(name, text).items():
                values[f"{target}{inner}"] = value
    watched = {key: value for key, value in values.items() if is_told(key.rpartition("@")[2])}
    name = variants + "".join(f",{key}={_safe(watched[key])}" for key in sorted(watched))
    return name if len(name) <= LONGEST else _cut(name)


def is_told(key: str) -> bool:
    """Whether the value of ``key`` changes what is learnt."""
    return not key.startswith(FREE_KEYS) and key not in PLACES


def _values(key: str, text: str) -> dict[str, Any]:
    """Values by their keys, which are several if ``text`` is a group's."""
    kind = Config
    for name in key.split("."):
        kind = kind_of(kind, name)
    try:
        return flatten({key: parse_override(text, kind)})
    except (yaml.YAMLError, ValueError):  # which is told when the config is read
        return {key: text}


def _safe(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(_safe, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value)
    safe = UNSAFE.sub("-", text)
    return safe if safe == text else f"{safe}-{_digest(text)}"


def _cut(name: str) -> str:
    return f"{name[: LONGEST - 9]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
