"""An experiment as ordered stages: a config is a pipeline of one."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.grid import Member, check_keys, fill, find_member, is_wanted, list_members
from lt_train.config.load import (
    CONFIG_DIR,
    find_config,
    list_configs,
    list_variants,
    load_config,
    to_dict,
    to_yaml,
)
from lt_train.config.run_name import override_name
from lt_train.config.schema import Config
from lt_train.errors import UserError
from lt_train.files import read_sealed
from lt_train.run_files import read_result

PIPELINE_DIR = CONFIG_DIR / "pipelines"
# the key that a stage has -> its kind
KINDS = {"config": "train", "prepare": "prepare", "score": "score", "run": "run"}
STAGE_KEYS = {
    **dict.fromkeys(KINDS, str),
    "why": str,
    "after": list,
    "set": dict,
    "when": dict,
    "dir": str,
    "tasks": int,
    "resources": dict,
}
ON_RANKS = ("evaluate", "posthoc", "pseudo_label")  # commands of lt_train that a run stage can be
# kinds whose ``words`` are a command -> its module
# of data_prep: what is made does not depend on these
OPERATIONAL = ("--out", "--workers", "--task", "--max-rejected", "--dali-index")
LENGTH = ("max_steps", "epochs", "compress", "global_batch_size")  # what a run's steps follow from
COMMANDS = {"prepare": "data_prep", "run": "lt_train"}


@dataclass(frozen=True)
class StageJob:
    """One stage of an experiment.

    ``kind``: train (``config``, with ``overrides``), score (the same, its pool in array tasks),
    prepare (``words`` of data_prep) or run (``words`` of another command of lt_train). ``tasks``:
    array jobs that share a prepare or score stage on a cluster. ``resources``: what differs from
    the site's. ``why``: what it is for, in words; or empty.
    """

    name: str
    kind: str
    run_dir: str
    why: str = ""
    after: tuple[str, ...] = ()
    config: str = ""
    overrides: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tasks: int = 1
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, and what it is for."""
        return f"{self.name} - {self.why}" if self.why else self.name

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments of ``python -m lt_train`` (or, of a prepare stage, of ``python -m
        data_prep``).
        """
        if self.kind in COMMANDS:
            return self.words
        command = ("score",) if self.kind == "score" else ()
        return (*command, self.config, *self.overrides)

    def resolve(self) -> Config:
        """The config of a train or score stage, with the overrides."""
        return load_config(self.config, list(self.overrides))

    def is_finished(self) -> bool:
        """Whether it has left its last file, with this very command or config: else its own command
        decides what is left to do, and whether it may.
        """
        if self.kind == "prepare":
            made_by = shlex.split(self._made_by())[3:]
            return bool(made_by) and _options(self.words) == _options(made_by)
        if self.kind != "train":
            return False
        try:
            result = read_result(Path(self.run_dir))
            saved = Path(self.run_dir, "config.yaml").read_text("utf-8")
        except (OSError, ValueError, UserError):
            return False
        config = self.resolve()
        # of a run that was prolonged and has not come to its end, both are there
        made, now = result.get("config"), to_dict(config)
        made = made if isinstance(made, dict) else now  # of an earlier version
        as_long = all(made.get(key) == now[key] for key in LENGTH)
        return "steps" in result and as_long and saved == to_yaml(config)

    def _made_by(self) -> str:
        """``python -m data_prep ...``, as the finished data set of a prepare stage has it."""
        try:
            return str(read_sealed(Path(self.run_dir, "dataset.json"), "")["made_by"]["command"])
        except (OSError, UserError, KeyError, TypeError):
            return ""


def _options(words: Sequence[str]) -> set[tuple[str, ...]]:
    """The command of data_prep and its options, each with its values, that decide what is made."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    return {tuple(group) for group in groups if group and group[0] not in OPERATIONAL}


@dataclass(frozen=True)
class Experiment:
    name: str
    root: str  # the folder of everything that it writes
    stages: tuple[StageJob, ...]  # each after those it depends on
    has_report: bool  # whether a pipeline's report goes to its folder
    compare: tuple[tuple[str, str, str], ...] = ()  # what, and the stages with it and without

    @property
    def report(self) -> list[str]:
        """The arguments of ``python -m lt_train report``: the pipeline's runs, those that it shares
        with others, and what is compared.
        """
        shared = [
            stage.run_dir
            for stage in self.stages
            if stage.kind == "train" and Path(self.root) not in Path(stage.run_dir).parents
        ]
        told = [self.root, *shared, "--out", self.root]
        for words in self.compare:
            told += ["--compare", *words]
        return told


def list_pipelines() -> list[tuple[str, str]]:
    """(name, one-line description) of every pipeline."""
    return [(member.name, member.description) for member in list_members(PIPELINE_DIR)]


def listing() -> str:
    """Every pipeline with its reference error, every config and every variant, a line each."""
    lines = ["pipelines, with the top-1 error in % that is published for them:"]
    for member in list_members(PIPELINE_DIR):
        reference = "-" if member.reference is None else f"{member.reference:.2f}"
        lines.append(f"  {member.name:44} {reference:>6}  {member.description}")
    lines += ["", "configs:"]
    lines += [f"  {name:44} {description}" for name, description in list_configs()]
    lines += [
        "",
        "variants, which go over any config and, as a word beside key=value, over every stage of a"
        " pipeline:",
    ]
    lines += [f"  +{name:43} {description}" for name, description in list_variants()]
    return "\n".join([*lines, ""])


def load_experiment(name: str, overrides: list[str], more: Sequence[str] = ()) -> Experiment:
    """The pipeline or config ``name``, checked whole before anything runs.

    Overrides are ``key=value`` for every stage, or ``STAGE:key=value`` for one. ``more`` of them
    set this one's folder apart from others', also where run.dir is given.
    """
    member, told = find_member(PIPELINE_DIR, name), [*overrides, *more]
    if member is not None:
        return make_experiment(member, told)
    find_config(name, [pipeline for pipeline, _ in list_pipelines()])
    run_dir = load_config(name, told).run.dir
    if more and run_dir == load_config(name, overrides).run.dir:
        run_dir += override_name(more)
    words = (*told, f"run.dir={run_dir}")
    stage = StageJob(Path(name).stem, "train", run_dir, config=name, overrides=words)
    return Experiment(Path(name).stem + override_name(told), run_dir, (stage,), False)


def make_experiment(member: Member, overrides: list[str]) -> Experiment:
    """A pipeline's experiment; see :func:`load_experiment`."""
    name = member.name
    root = f"runs/{name}{override_name(overrides)}"
    wanted = {
        stage: about for stage, about in member.stages.items() if _check_stage(stage, about, member)
    }
    trained = [stage for stage, about in wanted.items() if "config" in about]
    stages: dict[str, StageJob] = {}
    for stage, about in wanted.items():
        where = f"pipeline {name}, stage {stage}"
        unknown = [other for other in about.get("after", []) if other not in stages]
        if unknown:
            raise UserError(f"{where} comes after '{unknown[0]}', which is not a stage before it")
        folders = {other: made.run_dir for other, made in stages.items()}
        words = {**member.words, "here": root, **folders}
        run_dir = f"{root}/{stage}"
        if "dir" in about:
            run_dir = fill(about["dir"], words, where)
            run_dir += override_name(_overrides_before(stage, wanted, overrides))
        own = _overrides_of(stage, overrides)
        if any(item.startswith("run.dir=") for item in own):
            raise UserError(
                f"the stages of a pipeline live in {root}, where later ones look for them; run.dir"
                " cannot be changed"
            )
        if stage in trained[-1:]:  # what a pipeline with parameters is for
            own = [*_what_it_is(member, own), *own]
        stages[stage] = _make_stage(stage, about, where, run_dir, words, own)
    _check_targets(overrides, name, stages)
    compare = _compared(member, trained)
    return Experiment(Path(root).name, root, tuple(stages.values()), True, compare)


def _compared(member: Member, trained: list[str]) -> tuple[tuple[str, str, str], ...]:
    """What the report is to say of pairs of runs: what, and the stages with it and without."""
    found = []
    for what, pair in member.compare.items():
        names = pair if isinstance(pair, list) else [pair]
        unknown = [stage for stage in names if stage not in trained]
        if len(names) != 2 or unknown:
            raise UserError(
                f"pipeline {member.name}: compare must give two stages with a config, [with it,"
                f" without], by what is compared, not '{what}: {pair}'"
            )
        found.append((what, *names))
    return tuple(found)


def _overrides_before(stage: str, stages: dict[str, Any], overrides: list[str]) -> list[str]:
    """Those that concern the stage or any that it builds on, as they were given: what others of
    this pipeline change makes no difference to a folder that pipelines share.
    """
    concerned = {stage, *stages[stage].get("after", [])}
    for other in reversed(stages):
        if other in concerned:
            concerned |= {*stages[other].get("after", [])}
    return [item for item in overrides if _target_of(item) in {"", *concerned}]


def _target_of(override: str) -> str:
    """The stage that it is for; "" if it is for all."""
    return override.split("=")[0].rpartition(":")[0]


def _overrides_of(stage: str, overrides: list[str]) -> list[str]:
    """Those for all stages, and the stage's own without its name."""
    wanted = [item for item in overrides if _target_of(item) in ("", stage)]
    return [item.removeprefix(f"{stage}:") for item in wanted]


def _check_targets(overrides: list[str], name: str, stages: dict[str, StageJob]) -> None:
    """A :class:`UserError` for an override of a stage that has no keys, or is not there."""
    for item in overrides:
        target, colon, _ = item.split("=")[0].partition(":")
        if colon and target not in stages:
            raise UserError(
                f"'{item}': pipeline {name} has no stage '{target}'; it has {', '.join(stages)}"
            )
        if colon and stages[target].kind in COMMANDS:
            raise UserError(
                f"'{item}': stage {target} is a command of {COMMANDS[stages[target].kind]}, which"
                " has no config keys"
            )


def _check_stage(stage: Any, about: Any, member: Member) -> bool:
    """Whether this member has the stage; refuses what is no stage."""
    where = f"pipeline {member.name}, stage {stage}"
    if not isinstance(stage, str) or not re.fullmatch(r"[\w-]+", stage):
        raise UserError(f"{where}: the name of a stage is made of letters, digits, - and _")
    if stage in member.words:
        raise UserError(
            f"{where}: {{{stage}}} is a parameter or a word already; give the stage another name"
        )
    check_keys(about, STAGE_KEYS, where)
    return is_wanted(about.get("when", {}), member, where)


def _what_it_is(member: Member, overrides: list[str]) -> list[str]:
    """Keys by which a run tells more than its config's own description does; a variant has not the
    published error.
    """
    other = any(item.startswith("+") for item in overrides)
    reference = [] if member.reference is None or other else [f"reference_error={member.reference}"]
    return [f"description={json.dumps(member.description)}", *reference] if member.values else []


def _make_stage(
    name: str,
    about: dict[str, Any],
    where: str,
    run_dir: str,
    words: dict[str, str],
    overrides: list[str],
) -> StageJob:
    kinds = [key for key in KINDS if key in about]
    if len(kinds) != 1:
        raise UserError(f"{where} must have one of {', '.join(KINDS)}")
    (key,) = kinds
    common = {
        "why": fill(about.get("why", ""), words, where),
        "after": tuple(about.get("after", [])),
        "tasks": about.get("tasks", 1),
        "resources": about.get("resources", {}),
    }
    if common["tasks"] < 1 or common["tasks"] > 1 and key not in ("prepare", "score"):
        raise UserError(
            f"{where}: tasks must be at least 1, and only prepare and score can share their work"
            " among more"
        )
    if "dir" in about and key != "config":
        raise UserError(f"{where}: only a stage with a config has a dir")
    if KINDS[key] in COMMANDS:
        if "set" in about:
            raise UserError(f"{where}: 'set' is for configs; a command takes options in its words")
        return _command_stage(name, key, fill(about[key], words, where), where, run_dir, common)
    config, *variants = fill(about[key], words, where).split() or [""]
    settings = [
        f"{option}={fill(str(value), words, where)}"
        for option, value in about.get("set", {}).items()
    ]
    folder = [f"run.dir={run_dir}"] if key == "config" else []
    told = (*folder, *variants, *settings, *overrides)
    run_dir = load_config(config, told).run.dir
    return StageJob(name, KINDS[key], run_dir, config=config, overrides=told, **common)


def _command_stage(
    name: str, key: str, text: str, where: str, run_dir: str, common: dict[str, Any]
) -> StageJob:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{where}: cannot read '{text}': {error}") from error
    if key == "run":
        if not words or words[0] not in ON_RANKS:
            raise UserError(
                f"{where}: run must be one of {', '.join(ON_RANKS)} with its arguments, such as"
                " 'evaluate {train}'"
            )
        return StageJob(name, "run", run_dir, words=tuple(words), **common)
    if "--out" not in words[:-1]:
        raise UserError(f"{where}: its data_prep command has no --out")
    return StageJob(name, "prepare", words[words.index("--out") + 1], words=tuple(words), **common)
