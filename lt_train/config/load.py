"""Typed configuration: YAML files and overrides, validated against frozen dataclasses.

A config file may name another as its ``base``; ``configs/<name>.yaml`` is found by its bare name.
The resolved config is one immutable :class:`Config`, saved with every run. Errors are
:class:`~lt_train.errors.UserError` with one line.
"""

import copy
import dataclasses
import difflib
import functools
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from lt_train.config.checks import check
from lt_train.config.epochs import compressed, with_shares
from lt_train.config.families import family_of
from lt_train.config.keys import takes, typed
from lt_train.config.ranges import check_ranges
from lt_train.config.reading import (
    bare,
    first_line,
    flatten,
    is_optional,
    kind_of,
    parse_override,
    read_yaml,
    to_dict,
)
from lt_train.config.run_name import override_name
from lt_train.config.schema import Config, ViewConfig
from lt_train.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
# an installed package has the configs inside, a checkout beside it
CONFIG_DIR = next(
    folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir()
)
VARIANT_DIR = CONFIG_DIR / "variants"  # sets of keys that go over any config: +NAME
SUFFIXES = (".yaml", ".yml")
RENAMED = {  # keys of earlier versions -> what to write now
    "stage": "method",
    "decoupled.method": "method=crt or method=lws",
    "data.stage_to": "data.cache_dir",
}

SYNONYMS = {  # names by which others know keys -> ours; the last part of what was written counts
    **dict.fromkeys(("learning_rate", "base_lr", "initial_lr"), "optim.lr"),
    **dict.fromkeys(("batch_size", "batchsize", "bs", "batch"), "global_batch_size"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "total_epochs"), "epochs"),
    **dict.fromkeys(("steps", "num_steps", "max_iters", "iterations"), "max_steps"),
    **dict.fromkeys(("arch", "architecture", "network", "encoder"), "model.backbone"),
    **dict.fromkeys(("weights", "init"), "model.init_from"),
    **dict.fromkeys(("pretrained", "use_pretrained"), "model.pretrained"),
    **dict.fromkeys(("wd", "decay", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("scheduler", "lr_schedule", "lr_scheduler"), "optim.schedule"),
    **dict.fromkeys(("warmup", "lr_warmup"), "optim.warmup_epochs"),
    **dict.fromkeys(("milestones", "lr_steps"), "optim.step_epochs"),
    **dict.fromkeys(("grad_clip", "clip_grad", "max_grad_norm"), "optim.clip_grad_norm"),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "data_root"), "data.root"),
    **dict.fromkeys(("workers", "num_workers", "threads"), "data.decode_threads"),
    **dict.fromkeys(("img_size", "image_size", "input_size", "crop_size"), "view.size"),
    **dict.fromkeys(("out", "output", "output_dir", "save_dir", "log_dir", "out_dir"), "run.dir"),
    **dict.fromkeys(("eval_every", "val_every", "eval_interval"), "run.evaluate_every"),
    **dict.fromkeys(("save_every", "checkpoint_interval"), "run.checkpoint_every"),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype", "mixed_precision"), "engine.precision"),
    **dict.fromkeys(("random_seed", "rng_seed"), "seed"),
    **dict.fromkeys(("criterion", "loss_fn", "loss_name"), "loss.name"),
}
PATHS = (
    "run.dir",
    "data.root",
    "data.cache_dir",
    "unlabeled.root",
    "model.init_from",
    "classifier.init",  # if it is none of the words that it can be
)

# what texts of a config may refer to: another key, and one variable of the environment, which
# config.yaml then holds the value of
REFERENCE = re.compile(r"\$\{([A-Za-z_.][\w.]*|oc\.env:LT_TRAIN_DATA(,[^${}]*)?)\}", re.ASCII)

Layer = tuple[str, dict[str, Any]]  # what to put before an error, and keys with values


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Resolve a config: defaults, its ``base`` files, itself, then the overrides in order.

    ``name`` is a path to a YAML file or the bare name of one in ``configs/``. An override is
    ``key=value``, or ``+NAME``: the keys that configs/variants/NAME.yaml sets.
    """
    for word in (name, *overrides):
        _check_text("the command line", word)
    path = find_config(name)
    layers = _read_layers(path)
    for override in overrides:
        layers += _read_override(override)
    resolved = _merge([*_of_backbone(layers), *layers], path)
    if not resolved.run.dir:
        folder = f"runs/{path.stem}{override_name(overrides)}"
        run = dataclasses.replace(resolved.run, dir=folder)
        resolved = dataclasses.replace(resolved, run=run)
    resolved = _with_homes(resolved)
    _check_texts(resolved)
    import_modules(resolved.imports, "imports")
    check(resolved)
    config = compressed(resolved)
    check_ranges(flatten(to_dict(config)))  # a quotient can be out of range, too
    return config


def _of_backbone(layers: list[Layer]) -> list[Layer]:
    """What a backbone of a family would have a config start from; the layers go over it."""
    groups = [layer.get("model") for _, layer in layers]
    named = [group["backbone"] for group in groups if group and "backbone" in group]
    family = family_of(str(named[-1])) if named else None
    if family is None:
        return []
    module, name = family
    return [(f"model.backbone={named[-1]}: ", module.defaults(name))]


def import_modules(names: Iterable[str], key: str) -> None:
    """Import the user's own modules, from the working directory too, as ``python -m`` would."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        if not all(name.split(".")):
            raise UserError(f"{key}: '{name}' is not the name of a module, such as my_parts")
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
        _check_layer(layer, origin)
        layer = with_shares(layer)
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
        raise UserError(f"{path}: {_explain(error)}") from error
    except RecursionError as error:
        raise UserError(f"{path}: keys refer to each other in a circle") from error


def _check_layer(content: dict[str, Any], origin: str, kind: Any = Config, above: str = "") -> None:
    """A :class:`UserError` for keys that are not there, and what their types do not tell."""
    for name, value in content.items():
        key, found = f"{above}{name}", kind_of(kind, name)
        if found is None:
            while isinstance(value, dict) and value:  # an unknown group: the key that it is for
                name, value = next(iter(value.items()))
                key = f"{key}.{name}"
            raise UserError(f"{origin}{_unknown(key)}")
        inner = bare(found)
        if dataclasses.is_dataclass(inner):
            if isinstance(value, dict):
                _check_layer(value, origin, inner, f"{key}.")
            elif value is not None or not is_optional(found):
                raise UserError(
                    f"{origin}'{key}' is a group of keys, not a value; use {key}.NAME=VALUE"
                )
            continue
        _check_value(value, inner, origin, key)


def _check_value(value: Any, kind: Any, origin: str, key: str) -> None:
    if isinstance(value, dict):
        raise UserError(f"{origin}'{key}' is a key, not a group of keys: give it a value")
    if kind is bool and isinstance(value, int) and value not in (0, 1):
        raise UserError(f"{origin}{key} must be true or false, not {value}")
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, list | dict):
            raise UserError(f"{origin}{key}: one of its values is a list or a mapping itself")
        if not isinstance(part, str):
            continue
        _check_text(f"{origin}{key}", part)
        if "${" in REFERENCE.sub("", part):
            raise UserError(
                f"{origin}{key}: '{part}' cannot be looked up: ${{...}} may hold another key, "
                "such as ${run.dir}, or oc.env:LT_TRAIN_DATA,DEFAULT, and no other variable"
            )


def _unknown(key: str) -> str:
    """One line for a key that is not there, with the one that may have been meant."""
    valid = flatten(to_dict(Config(second_view=ViewConfig())))
    group, _, name = key.rpartition(".")
    if key in valid:  # in a file
        return f"'{key}' is written as '{group}: {{{name}: VALUE}}' in a file"
    if key in RENAMED:
        return f"unknown key '{key}', which is {RENAMED[key]} now"
    if name in SYNONYMS:
        return f"unknown key '{key}', did you mean '{SYNONYMS[name]}'?"
    sections = {known.partition(".")[0] for known in valid}
    return f"unknown key '{key}'{nearest(key, [*valid, *sections])}"


def _with_homes(config: Config) -> Config:
    """``config`` with the ``~`` that paths begin with expanded."""
    for key in PATHS:
        group, _, name = key.partition(".")
        section = getattr(config, group)
        path = getattr(section, name)
        if path:
            section = dataclasses.replace(section, **{name: os.path.expanduser(path)})
            config = dataclasses.replace(config, **{group: section})
    return config


def _check_texts(config: Config) -> None:
    for key, value in flatten(to_dict(config)).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_text(key, text)
                if "${" in text:  # which config.yaml could not tell from a reference
                    raise UserError(f"{key} must not hold a literal '${{': '{text}'")


def _check_text(where: str, text: str) -> None:
    """A :class:`UserError` for what neither a file's name nor a YAML file can hold."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: {text!a} holds bytes that are not text in UTF-8")


def find_variant(word: str) -> Path:
    """The YAML file that ``+NAME`` means, or a :class:`UserError` that names the nearest."""
    name = word.removeprefix("+")
    path = VARIANT_DIR / f"{name}.yaml"
    known = [path.stem for path in sorted(VARIANT_DIR.glob("*.yaml"))]
    if name not in known:
        known = [f"+{name}" for name in known]
        raise UserError(f"no variant '{word}'{nearest(word, known)}; known: {', '.join(known)}")
    return path


def find_config(name: str, pipelines: list[str] = (), commands: Iterable[str] = ()) -> Path:
    """The YAML file that ``name`` means.

    A :class:`UserError` names the nearest config, or one of ``pipelines`` or ``commands``.
    """
    path = Path(os.path.expanduser(name))
    for candidate in (path, CONFIG_DIR / f"{name}.yaml"):
        if candidate.suffix in SUFFIXES and os.path.isfile(candidate):
            return candidate
    if os.path.isfile(path / "config.yaml"):
        raise UserError(f"'{name}' is a run's folder: name its config, {path / 'config.yaml'}")
    if os.path.isdir(path):
        raise UserError(f"'{name}' is a folder, not a config: name a YAML file")
    if os.path.isfile(path):
        raise UserError(f"'{name}' is not taken for a config, whose name ends in .yaml")
    if path.suffix in SUFFIXES:
        raise UserError(f"there is no file '{name}'")
    known = [*pipelines, *sorted(path.stem for path in CONFIG_DIR.glob("*.yaml")), *commands]
    also = " or pipeline" if pipelines else " or command" if commands else ""
    lists = "python launch/local.py --list" if pipelines else "python -m lt_train --help"
    raise UserError(
        f"no config{also} '{name}' in {CONFIG_DIR.name}/{nearest(name, known)}; "
        f"{lists} shows all {len(known)}"
    )


def list_configs() -> list[tuple[str, str]]:
    """(name, one-line description) of every config."""
    return [
        (path.stem, str(read_yaml(path, Config).get("description", "")))
        for path in sorted(CONFIG_DIR.glob("*.yaml"))
    ]


def list_variants() -> list[tuple[str, str]]:
    """(name, one-line description) of every +NAME: the comment that its file begins with."""
    return [
        (path.stem, path.read_text("utf-8").partition("\n")[0].lstrip("# "))
        for path in sorted(VARIANT_DIR.glob("*.yaml"))
    ]


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text, in the order of the dataclasses."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


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
    if path.resolve() in seen:
        raise UserError(f"{path}: the chain of 'base' files comes back to itself")
    layer = read_yaml(path, Config)
    base = layer.pop("base", None)
    layers = []
    if base is not None:
        layers = _read_layers(_find_base(str(base), path), (*seen, path.resolve()))
    return [*layers, (f"{path}: ", layer)]


def _find_base(base: str, path: Path) -> Path:
    """The file beside ``path``, or the config of that name; a file may be named as its base is."""
    beside, shipped = path.parent / f"{base}.yaml", CONFIG_DIR / f"{base}.yaml"
    for candidate in (beside, shipped):
        if os.path.isfile(candidate) and not os.path.samefile(candidate, path):
            return candidate
    if os.path.isfile(beside):
        return beside
    raise UserError(f"{path}: its base '{base}' is neither {beside} nor in {CONFIG_DIR.name}/")


def _read_override(override: str) -> list[Layer]:
    if override.startswith("+"):
        return _read_layers(find_variant(override))
    key, equals, text = override.partition("=")
    if not equals or not key:
        variants = [path.stem for path in VARIANT_DIR.glob("*.yaml")]
        close = difflib.get_close_matches(override, variants, n=1, cutoff=0.8)
        hint = f"; did you mean the variant +{close[0]}?" if close else ""
        raise UserError(f"'{override}' is not of the form key=value{hint}")
    names, kind = key.split("."), Config
    for name in names:
        kind = kind_of(kind, name)
    if kind is None:
        raise UserError(f"'{override}': {_unknown(key)}")
    try:
        content = parse_override(text, kind)
    except (yaml.YAMLError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"cannot read the override '{override}': {reason}") from error
    return [(f"'{override}': ", _nested(key, content))]


def _nested(key: str, value: Any) -> dict[str, Any]:
    """``{"optim": {"lr": value}}`` of ``optim.lr``."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _explain(error: OmegaConfBaseException, layer: Mapping[str, Any] = MappingProxyType({})) -> str:
    """One line for what OmegaConf refuses, with the key of ``layer`` that it is about."""
    refused = _refused_key(layer)
    if refused is not None and isinstance(error, ValidationError):
        value = flatten(layer)[refused]
        return f"{refused} takes {takes(refused)}, not '{typed(value)}'"
    line, key = first_line(error), getattr(error, "full_key", None) or refused
    return f"{key}: {line}" if key else line


def _refused_key(layer: Mapping[str, Any]) -> str | None:
    """The first key whose value OmegaConf refuses by itself; of a list it does not say which."""
    for key, value in flatten(layer).items():
        try:
            OmegaConf.merge(_structured(), _nested(key, value))
        except OmegaConfBaseException:
            return key
    return None
