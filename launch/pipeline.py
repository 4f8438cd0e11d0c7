"""An experiment as ordered stages: a config is a pipeline of one."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lt_train.config import CONFIG_DIR, find_config, list_configs, load_config, read_yaml, to_yaml
from lt_train.errors import UserError

PIPELINE_DIR = CONFIG_DIR / "pipelines"
KEYS = {"description": str, "stages": dict}
STAGE_KEYS = {"config": str, "prepare": str, "score": str, "after": list, "set": dict, "tasks": int, "resources": dict}
TYPES = {str: "text", dict: "'key: value' lines", list: "a list", int: "a number"}
KINDS = {"config": "train", "prepare": "prepare", "score": "score"}  # the key that a stage has -> its kind


@dataclass(frozen=True)
class StageJob:
    """One stage of an experiment.

    ``kind``: train (``config``, with ``overrides``), score (the same, its pool in array tasks) or prepare (``words`` of data_prep).
    ``tasks``: array jobs that share a prepare or score stage on a cluster. ``resources``: what differs from the site's.
    """

    name: str
    kind: str
    run_dir: str
    after: tuple[str, ...] = ()
    config: str = ""
    overrides: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tasks: int = 1
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments of ``python -m lt_train`` (or, of a prepare stage, of ``python -m data_prep``)."""
        return self.words if self.kind == "prepare" else (*(("score",) if self.kind == "score" else ()), self.config, *self.overrides)

    def is_finished(self) -> bool:
        """Whether it has left its last file, and a training run the very config: else its own command decides what is left to do."""
        if self.kind == "prepare":
            return Path(self.run_dir, "dataset.json").is_file()
        if self.kind == "score":
            return False
        try:
            has_result = "steps" in json.loads(Path(self.run_dir, "result.json").read_text())
            saved = Path(self.run_dir, "config.yaml").read_text()
        except (OSError, ValueError):
            return False
        return has_result and saved == to_yaml(load_config(self.config, list(self.overrides)))


@dataclass(frozen=True)
class Experiment:
    name: str
    root: str  # the folder of everything that it writes
    stages: tuple[StageJob, ...]  # each after those it depends on
    has_report: bool  # whether a pipeline's report goes to its folder


def list_pipelines() -> list[tuple[str, str]]:
    """(name, one-line description) of every pipeline."""
    return list_configs(PIPELINE_DIR)


def load_experiment(name: str, overrides: list[str], suffix: str = "") -> Experiment:
    """The pipeline or config ``name``, checked whole before anything runs.

    Overrides are ``key=value`` for every stage, or ``STAGE:key=value`` for one. ``suffix`` sets this one's folder apart from others'.
    """
    if not (PIPELINE_DIR / f"{name}.yaml").is_file():
        find_config(name, [pipeline for pipeline, _ in list_pipelines()])
        run_dir = load_config(name, overrides).run.dir + suffix
        stage = StageJob(Path(name).stem, "train", run_dir, config=name, overrides=(*overrides, f"run.dir={run_dir}"))
        return Experiment(Path(name).stem + suffix, run_dir, (stage,), False)
    content = read_yaml(PIPELINE_DIR / f"{name}.yaml")
    _check_keys(content, KEYS, f"pipeline {name}")
    root = f"runs/{name}{suffix}"
    stages: dict[str, StageJob] = {}
    if not content.get("stages"):
        raise UserError(f"pipeline {name} has no stages")
    for stage, about in content["stages"].items():
        where = f"pipeline {name}, stage {stage}"
        if not isinstance(stage, str) or not re.fullmatch(r"[\w-]+", stage):
            raise UserError(f"{where}: the name of a stage is made of letters, digits, - and _")
        _check_keys(about, STAGE_KEYS, where)
        unknown = [other for other in about.get("after", []) if other not in stages]
        if unknown:
            raise UserError(f"{where} comes after '{unknown[0]}', which is not a stage before it")
        stages[stage] = _make_stage(stage, about, where, f"{root}/{stage}", stages, overrides)
    for item in overrides:
        target, colon, _ = item.split("=")[0].partition(":")
        if colon and target not in stages:
            raise UserError(f"'{item}': pipeline {name} has no stage '{target}'; it has {', '.join(stages)}")
        if colon and stages[target].kind == "prepare":
            raise UserError(f"'{item}': stage {target} is a command of data_prep, which has no config keys")
    return Experiment(name + suffix, root, tuple(stages.values()), True)


def _make_stage(name: str, about: dict[str, Any], where: str, run_dir: str, before: dict[str, StageJob], overrides: list[str]) -> StageJob:
    kinds = [key for key in KINDS if key in about]
    if len(kinds) != 1:
        raise UserError(f"{where} must have one of {', '.join(KINDS)}")
    folders = {other: job.run_dir for other, job in before.items()}
    common = {"after": tuple(about.get("after", [])), "tasks": about.get("tasks", 1), "resources": about.get("resources", {})}
    if common["tasks"] < 1 or common["tasks"] > 1 and kinds == ["config"]:
        raise UserError(f"{where}: tasks must be at least 1, and only prepare and score can share their work among more")
    if kinds == ["prepare"]:
        if "set" in about:
            raise UserError(f"{where}: 'set' is for configs; data_prep takes options in its command")
        try:
            words = shlex.split(_fill(about["prepare"], folders, where))
        except ValueError as error:
            raise UserError(f"{where}: cannot read '{about['prepare']}': {error}") from error
        if "--out" not in words[:-1]:
            raise UserError(f"{where}: its data_prep command has no --out")
        return StageJob(name, "prepare", words[words.index("--out") + 1], words=tuple(words), **common)
    settings = [f"{key}={_fill(str(value), folders, where)}" for key, value in about.get("set", {}).items()]
    own = [item.removeprefix(f"{name}:") for item in overrides if ":" not in item.split("=")[0] or item.startswith(f"{name}:")]
    if any(item.startswith("run.dir=") for item in own):
        raise UserError(f"the stages of a pipeline live in {run_dir}, where later ones look for them; run.dir cannot be changed")
    if kinds == ["config"]:
        settings.insert(0, f"run.dir={run_dir}")
    config = about[kinds[0]]
    resolved = load_config(config, [*settings, *own])
    return StageJob(name, KINDS[kinds[0]], resolved.run.dir, config=config, overrides=(*settings, *own), **common)


def _fill(text: str, folders: dict[str, str], where: str) -> str:
    """``text`` with the folder of a stage for each ``{stage}``."""
    try:
        return text.format_map(folders)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{where}: cannot fill in '{text}': {{...}} must name a stage before it, of {', '.join(folders) or 'which there is none'}") from error


def _check_keys(content: Any, known: dict[str, type], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where} does not hold 'key: value' lines")
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'; known: {', '.join(sorted(known))}")
        if not isinstance(value, known[key]):
            raise UserError(f"{where}: {key} must be {TYPES[known[key]]}, not '{value}'")
