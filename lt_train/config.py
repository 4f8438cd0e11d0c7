"""Typed configuration: YAML files and ``key=value`` overrides, validated against frozen dataclasses.

A config file may name another as its ``base``; ``configs/<name>.yaml`` is found by its bare name. The resolved config is
one immutable :class:`Config`, saved with every run. Errors are :class:`~lt_train.errors.UserError` with one line.
"""

import copy
import dataclasses
import difflib
import functools
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._yaml import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from lt_train.checks import check
from lt_train.errors import UserError
from lt_train.schema import Config, ViewConfig

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
METHOD_DIR = CONFIG_DIR / "methods"  # sets of keys that go over any config: +METHOD


def load_config(name: str, overrides: list[str] = ()) -> Config:
    """Resolve a config: dataclass defaults, then its ``base`` files, then itself, then the overrides in their order.

    ``name`` is a path to a YAML file or the bare name of one in ``configs/``. An override is ``key=value``, or ``+METHOD``: the keys
    that configs/methods/METHOD.yaml sets.
    """
    path = find_config(name)
    layers = _read_layers(path)
    methods = [override for override in overrides if override.startswith("+")]
    for override in overrides:
        layers += _read_layers(find_method(override)) if override in methods else [(f"'{override}': ", _parse_override(override))]
    config = copy.deepcopy(_structured())
    for origin, layer in layers:
        try:
            if layer.get("second_view") and config.second_view is None:  # it starts as the first view
                config = OmegaConf.unsafe_merge(config, {key: value for key, value in layer.items() if key != "second_view"})
                config.second_view = OmegaConf.to_object(config.view)
                OmegaConf.set_readonly(config.second_view, False)
            config = OmegaConf.unsafe_merge(config, layer)  # no copy of everything for each layer
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}{_explain(error, layer)}") from error
    try:
        resolved = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    if not resolved.run.dir:
        resolved = dataclasses.replace(resolved, run=dataclasses.replace(resolved.run, dir=f"runs/{path.stem}{''.join(methods)}"))
    check(resolved)
    return _compressed(resolved)


def _compressed(config: Config) -> Config:
    """``config`` with every number of epochs divided by ``compress``."""
    by = config.compress
    optim = dataclasses.replace(
        config.optim, warmup_epochs=config.optim.warmup_epochs / by, step_epochs=tuple(epoch / by for epoch in config.optim.step_epochs)
    )
    loss = dataclasses.replace(config.loss, weights_from_epoch=config.loss.weights_from_epoch / by)
    run = dataclasses.replace(config.run, evaluate_every=config.run.evaluate_every / by)
    return dataclasses.replace(config, compress=1.0, epochs=config.epochs / by, optim=optim, loss=loss, run=run)


def find_method(word: str) -> Path:
    """The YAML file that ``+METHOD`` means, or a :class:`UserError` that names the nearest."""
    path = METHOD_DIR / f"{word.removeprefix('+')}.yaml"
    if not path.is_file():
        known = [name for name, _ in list_methods()]
        raise UserError(f"no method '{word}'{nearest(word.removeprefix('+'), known)}; known: +{', +'.join(known)}")
    return path


def find_config(name: str, pipelines: list[str] = ()) -> Path:
    """The YAML file that ``name`` means, or a :class:`UserError` that names the nearest config (or one of ``pipelines``)."""
    for candidate in (Path(name), CONFIG_DIR / f"{name}.yaml"):
        if candidate.suffix in (".yaml", ".yml") and candidate.is_file():
            return candidate
    known = [*pipelines, *sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))]
    what = "config or pipeline" if pipelines else "config"
    lists = "python launch/local.py --list" if pipelines else "python -m lt_train --help"
    raise UserError(f"no {what} '{name}' in {CONFIG_DIR.name}/{nearest(name, known)}; {lists} shows all {len(known)}")


def list_configs() -> list[tuple[str, str]]:
    """(name, one-line description) of every config."""
    return [(path.stem, str(read_yaml(path).get("description", ""))) for path in sorted(CONFIG_DIR.glob("*.yaml"))]


def list_methods() -> list[tuple[str, str]]:
    """(name, one-line description) of every +METHOD: the comment that its file begins with, as its keys go over others' description."""
    return [(path.stem, path.read_text("utf-8").partition("\n")[0].lstrip("# ")) for path in sorted(METHOD_DIR.glob("*.yaml"))]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, without interpolations resolved."""
    try:
        content = yaml.load(path.read_text("utf-8"), _yaml_loader())
        content = OmegaConf.to_container(OmegaConf.create(content)) if isinstance(content, dict) else content
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} does not hold 'key: value' lines")
    return content or {}


def _yaml_loader() -> Any:
    """OmegaConf's own, but 12:30:00 stays text: YAML 1.1 takes it for a number to the base of 60."""
    loader = get_yaml_loader()  # a new class at every call
    loader.add_constructor("tag:yaml.org,2002:int", lambda self, node: node.value if ":" in node.value else self.construct_yaml_int(node))
    return loader


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text, in the order of the dataclasses."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dicts and lists, as read back by :func:`read_yaml`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as YAML has them


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` -> ``{"optim.lr": 1}``."""
    flat = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


@functools.cache
def _structured() -> Any:
    """The schema, not to be changed; OmegaConf makes frozen dataclasses read-only, which merging has to lift."""
    config = OmegaConf.structured(Config)
    OmegaConf.set_readonly(config, False)
    for section in dataclasses.fields(Config):
        if OmegaConf.is_config(config[section.name]):
            OmegaConf.set_readonly(config[section.name], False)
    return config


def _read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The file's chain of bases, lowest first, and itself: (what to put before an error, content)."""
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


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not of the form key=value")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"cannot read the override '{override}': {_first_line(error)}") from error


def _explain(error: OmegaConfBaseException, layer: dict[str, Any]) -> str:
    """One line for a merge error; for an unknown key, the nearest valid one."""
    valid = flatten(to_dict(Config(second_view=ViewConfig())))
    sections = {key.partition(".")[0] for key in valid}
    for key, value in flatten(layer).items():
        if key not in valid and not (value is None and key in sections):
            if key in sections:
                return f"'{key}' is a group of keys, not a value; use {key}.NAME=VALUE"
            return f"unknown key '{key}'{nearest(key, [*valid, *sections])}"
    key, line = getattr(error, "full_key", None), _first_line(error)
    if "$VALUE" in line:  # OmegaConf fills its template for single values only
        line = "one of its values has the wrong type"
    return f"{key}: {line}" if key else line


def nearest(word: str, choices: list[str]) -> str:
    """``, did you mean '...'?`` with the choice most like ``word``, or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if not close:  # a right name in the wrong group: compare the last parts alone
        last = {choice.rpartition(".")[2]: choice for choice in choices}
        close = [last[match] for match in difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.6)]
    return f", did you mean '{close[0]}'?" if close else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
