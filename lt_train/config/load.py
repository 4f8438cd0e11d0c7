"""Typed configuration: YAML files and overrides, validated against frozen dataclasses.

A config file may name another as its ``base``; ``configs/<name>.yaml`` is found by its bare name.
The resolved config is one immutable :class:`Config`, saved with every run. Errors are
:class:`~lt_train.errors.UserError` with one line.
"""

import copy
import dataclasses
import functools
import importlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_train.config.checks import check
from lt_train.config.schema import Config, ViewConfig
from lt_train.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
# an installed package has the configs inside, a checkout beside it
CONFIG_DIR = next(
    folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()
)
VARIANT_DIR = CONFIG_DIR / "variants"  # sets of keys that go over any config: +NAME
RENAMED = {  # keys of earlier versions -> what to write now
    "stage": "method",
    "decoupled.method": "method=crt or method=lws",
    "data.stage_to": "data.cache_dir",
}

KEPT_TAGS = ("bool", "null", "merge")  # of YAML 1.1; numbers are our own, see _Loader

Layer = tuple[str, dict[str, Any]]  # what to put before an error, and keys with values


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Resolve a config: defaults, its ``base`` files, itself, then the overrides in order.

    ``name`` is a path to a YAML file or the bare name of one in ``configs/``. An override is
    ``key=value``, or ``+NAME``: the keys that configs/variants/NAME.yaml sets.
    """
    path = find_config(name)
    layers = _read_layers(path)
    for override in overrides:
        layers += _read_override(override)
    resolved = _merge(layers, path)
    if not resolved.run.dir:
        variants = "".join(override for override in overrides if override.startswith("+"))
        run = dataclasses.replace(resolved.run, dir=f"runs/{path.stem}{variants}")
        resolved = dataclasses.replace(resolved, run=run)
    import_modules(resolved.imports, "imports")
    check(resolved)
    return _compressed(resolved)


def import_modules(names: Iterable[str], key: str) -> None:
    """Import the user's own modules, from the working directory too, as ``python -m`` would."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError) as error:
            raise UserError(
                f"{key}: cannot import '{name}': {error}; "
                "it must lie in the working directory or on PYTHONPATH"
            ) from error


def _merge(layers: list[Layer], path: Path) -> Config:
    config = copy.deepcopy(_structured())
    for origin, layer in layers:
        try:
            if layer.get("second_view") and config.second_view is None:
                # it starts as the first view, with what this layer says of that
                others = {key: value for key, value in layer.items() if key != "second_view"}
                config = OmegaConf.unsafe_merge(config, others)
                config.second_view = OmegaConf.to_object(config.view)
                OmegaConf.set_readonly(config.second_view, False)
            config = OmegaConf.unsafe_merge(config, layer)  # no copy of everything for each layer
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}{_explain(error, layer)}") from error
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error


def _compressed(config: Config) -> Config:
    """``config`` with every number of epochs divided by ``compress``."""
    by = config.compress
    optim = dataclasses.replace(
        config.optim,
        warmup_epochs=config.optim.warmup_epochs / by,
        step_epochs=tuple(epoch / by for epoch in config.optim.step_epochs),
    )
    loss = dataclasses.replace(config.loss, weights_from_epoch=config.loss.weights_from_epoch / by)
    run = dataclasses.replace(config.run, evaluate_every=config.run.evaluate_every / by)
    return dataclasses.replace(
        config, compress=1.0, epochs=config.epochs / by, optim=optim, loss=loss, run=run
    )


def find_variant(word: str) -> Path:
    """The YAML file that ``+NAME`` means, or a :class:`UserError` that names the nearest."""
    path = VARIANT_DIR / f"{word.removeprefix('+')}.yaml"
    if not path.is_file():
        known = [name for name, _ in list_variants()]
        near = nearest(word.removeprefix("+"), known)
        raise UserError(f"no variant '{word}'{near}; known: +{', +'.join(known)}")
    return path


def find_config(name: str, pipelines: list[str] = ()) -> Path:
    """The YAML file that ``name`` means.

    A :class:`UserError` names the nearest config, or one of ``pipelines``.
    """
    for candidate in (Path(name), CONFIG_DIR / f"{name}.yaml"):
        if candidate.suffix in (".yaml", ".yml") and candidate.is_file():
            return candidate
    known = [*pipelines, *sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))]
    what = "config or pipeline" if pipelines else "config"
    lists = "python launch/local.py --list" if pipelines else "python -m lt_train --help"
    raise UserError(
        f"no {what} '{name}' in {CONFIG_DIR.name}/{nearest(name, known)}; "
        f"{lists} shows all {len(known)}"
    )


def list_configs() -> list[tuple[str, str]]:
    """(name, one-line description) of every config."""
    return [
        (path.stem, str(read_yaml(path).get("description", "")))
        for path in sorted(CONFIG_DIR.glob("*.yaml"))
    ]


def list_variants() -> list[tuple[str, str]]:
    """(name, one-line description) of every +NAME: the comment that its file begins with."""
    return [
        (path.stem, path.read_text("utf-8").partition("\n")[0].lstrip("# "))
        for path in sorted(VARIANT_DIR.glob("*.yaml"))
    ]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, without interpolations resolved."""
    try:
        text = path.read_text("utf-8")
        OmegaConf.create(text)  # refuses keys that stand twice, and aliases without end
        content = yaml.load(text, _Loader)
        if isinstance(content, dict):
            content = OmegaConf.to_container(OmegaConf.create(content))
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} does not hold 'key: value' lines")
    return content or {}


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


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text, in the order of the dataclasses."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def to_dict(config: Config) -> dict[str, Any]:
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


@functools.cache
def _structured() -> Any:
    """The schema, not to be changed.

    OmegaConf makes frozen dataclasses read-only, which merging has to lift.
    """
    config = OmegaConf.structured(Config)
    OmegaConf.set_readonly(config, False)
    for section in dataclasses.fields(Config):
        if OmegaConf.is_config(config[section.name]):
            OmegaConf.set_readonly(config[section.name], False)
    return config


def _read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """The file's chain of bases, lowest first, and itself."""
    if path in seen:
        raise UserError(f"{path}: the chain of 'base' files comes back to itself")
    layer = read_yaml(path)
    base = layer.pop("base", None)
    layers = []
    if base is not None:
        base_path = path.parent / f"{base}.yaml"
        if not base_path.is_file():
            raise UserError(f"{path}: its base '{base}' is not at {base_path}")
        layers = _read_layers(base_path, (*seen, path))
    return [*layers, (f"{path}: ", layer)]


def _read_override(override: str) -> list[Layer]:
    if override.startswith("+"):
        return _read_layers(find_variant(override))
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not of the form key=value")
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        reason = _first_line(error)
        raise UserError(f"cannot read the override '{override}': {reason}") from error
    return [(f"'{override}': ", content)]


def _explain(error: OmegaConfBaseException, layer: dict[str, Any]) -> str:
    """One line for a merge error; for an unknown key, the nearest valid one."""
    valid = flatten(to_dict(Config(second_view=ViewConfig())))
    sections = {key.partition(".")[0] for key in valid}
    for key, value in flatten(layer).items():
        if key not in valid and not (value is None and key in sections):
            if key in sections:
                return f"'{key}' is a group of keys, not a value; use {key}.NAME=VALUE"
            if key in RENAMED:
                return f"unknown key '{key}', which is {RENAMED[key]} now"
            return f"unknown key '{key}'{nearest(key, [*valid, *sections])}"
    key, line = getattr(error, "full_key", None), _first_line(error)
    if "$VALUE" in line:  # OmegaConf fills its template for single values only
        line = "one of its values has the wrong type"
    return f"{key}: {line}" if key else line


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
