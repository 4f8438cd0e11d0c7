"""An experiment as ordered stages: a config is a pipeline of one."""

from dataclasses import dataclass
from pathlib import Path

from lt_train.config import CONFIG_DIR, find_config, list_configs, load_config, read_yaml
from lt_train.errors import UserError

PIPELINE_DIR = CONFIG_DIR / "pipelines"
KEYS = {"description", "prepare", "stages"}
STAGE_KEYS = {"config", "after", "set"}


@dataclass(frozen=True)
class StageJob:
    """One stage: its config, what it waits for, and its overrides."""

    name: str
    config: str
    run_dir: str
    after: tuple[str, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    name: str
    prepare: tuple[str, ...]  # data_prep command lines, run when their --out is not complete
    stages: tuple[StageJob, ...]  # each after those it depends on
    report_dir: str | None  # where a pipeline's report goes


def list_pipelines() -> list[tuple[str, str]]:
    """(name, one-line description) of every pipeline."""
    return list_configs(PIPELINE_DIR)


def load_experiment(name: str, overrides: list[str]) -> Experiment:
    """The pipeline or config ``name``, checked whole before anything runs.

    Overrides are ``key=value`` for every stage, or ``STAGE:key=value`` for one.
    """
    if not (PIPELINE_DIR / f"{name}.yaml").is_file():
        find_config(name, [pipeline for pipeline, _ in list_pipelines()])
        config = load_config(name, overrides)
        return Experiment(name, (), (StageJob(Path(name).stem, name, config.run.dir, (), tuple(overrides)),), None)
    content = read_yaml(PIPELINE_DIR / f"{name}.yaml")
    _check_keys(content, KEYS, f"pipeline {name}")
    root = f"runs/{name}"
    stages: dict[str, StageJob] = {}
    for stage, about in content["stages"].items():
        _check_keys(about, STAGE_KEYS, f"pipeline {name}, stage {stage}")
        after = tuple(about.get("after", []))
        unknown = [other for other in after if other not in stages]
        if unknown:
            raise UserError(f"pipeline {name}: stage {stage} comes after '{unknown[0]}', which is not a stage before it")
        folders = {other: job.run_dir for other, job in stages.items()}
        settings = [f"{key}={str(value).format_map(folders)}" for key, value in about.get("set", {}).items()]
        own = [item.removeprefix(f"{stage}:") for item in overrides if ":" not in item.split("=")[0] or item.startswith(f"{stage}:")]
        if any(item.startswith("run.dir=") for item in own):
            raise UserError(f"the stages of pipeline {name} live in {root}/STAGE, where later ones look for them; run.dir cannot be changed")
        run_dir = f"{root}/{stage}"
        stages[stage] = StageJob(stage, about["config"], run_dir, after, (f"run.dir={run_dir}", *settings, *own))
        load_config(about["config"], list(stages[stage].overrides))
    for item in overrides:
        target = item.split("=")[0].partition(":")
        if target[1] and target[0] not in stages:
            raise UserError(f"'{item}': pipeline {name} has no stage '{target[0]}'; it has {', '.join(stages)}")
    return Experiment(name, tuple(content.get("prepare", [])), tuple(stages.values()), root)


def _check_keys(content: dict, known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'; known: {', '.join(sorted(known))}")
