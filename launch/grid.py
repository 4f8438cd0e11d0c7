"""Pipelines with parameters: one YAML file stands for a pipeline for each combination of its
parameters' values.

    name: "{data}_{variant}_{ratio}"                 # of each member
    description: "{variant} on {data}, ratio {ratio}"
    parameters:                                     # values, or values with more words for braces
      data: {cifar10_lt: {pool: ti.pickle}, svhn_lt: {pool: extra}}
      variant: [ce, ldam_drw]
      ratio: [100, 50]
    reference:                                      # top-1 errors in %; some may lack
      cifar10_lt: {ce: {100: 29.64}}
    compare: {pre-training: [pretrained, scratch]}  # in the report: the stage with it, and without
    stages: ...

References are nested in the order of the parameters. In braces also stand ``sets``, the folder of
data sets, ``here``, the pipeline's own, and in a stage those of the stages before it.
"""

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lt_train.config.load import read_yaml
from lt_train.errors import UserError

KEYS = {
    "name": str,
    "description": str,
    "parameters": dict,
    "reference": dict,
    "compare": dict,
    "stages": dict,
}
TYPES = {str: "text", dict: "'key: value' lines", list: "a list", int: "a number"}


@dataclass(frozen=True)
class Member:
    """A pipeline: a file's only one, or one of those that it stands for.

    ``values``: of the parameters, by name; ``choices``: all of them. ``words``: what stands in
    braces. ``reference``: top-1 error in %, if one is published. ``compare``: what -> two stages.
    """

    name: str
    description: str
    path: Path
    values: dict[str, str]
    choices: dict[str, list[str]]
    words: dict[str, str]
    reference: float | None
    compare: dict[str, Any]
    stages: dict[str, Any]


def read_members(path: Path) -> list[Member]:
    """The pipelines that a YAML file stands for, in the order of its values."""
    where, content = f"pipeline {path.stem}", read_yaml(path)
    check_keys(content, KEYS, where)
    if not content.get("stages"):
        raise UserError(f"{where} has no stages")
    given = content.get("parameters", {})
    parameters = {name: _choices(name, values, where) for name, values in given.items()}
    if parameters and "name" not in content:
        example = "_".join(f"{{{name}}}" for name in parameters)
        raise UserError(
            f'{where} has parameters and needs a name with them in braces, such as "{example}"'
        )
    _check_reference(content.get("reference", {}), parameters, where)
    choices = {name: list(found) for name, found in parameters.items()}
    members = []
    for combination in itertools.product(*parameters.values()):
        values = dict(zip(parameters, combination))
        words = {"sets": _sets(), **values}
        for name, value in values.items():
            more = parameters[name][value]
            words |= {key: fill(word, words, where) for key, word in more.items()}
        title = fill(content["name"], words, where) if parameters else path.stem
        words["here"] = f"runs/{title}"
        description = fill(content.get("description", ""), words, where)
        reference = _look_up(content.get("reference", {}), values)
        told = content.get("compare", {}), content["stages"]
        members.append(Member(title, description, path, values, choices, words, reference, *told))
    return members


def list_members(folder: Path) -> list[Member]:
    """All pipelines of a folder's files; their names differ."""
    found: dict[str, Member] = {}
    for path in sorted(folder.glob("*.yaml")):
        for member in read_members(path):
            if member.name in found:
                raise UserError(
                    f"pipelines {found[member.name].path.stem} and {path.stem} both have a member"
                    f" '{member.name}': names must differ"
                )
            found[member.name] = member
    return list(found.values())


def find_member(folder: Path, name: str) -> Member | None:
    """The pipeline of this name; None if there is none."""
    path = folder / f"{name}.yaml"
    is_file = os.path.isfile(path)  # false for a name that is too long, where pathlib raises
    members = read_members(path) if is_file else list_members(folder)
    found = next((member for member in members if member.name == name), None)
    if found is None and is_file:
        raise UserError(
            f"'{name}' stands for {len(members)} pipelines: name one, such as {members[0].name};"
            " python launch/local.py --list shows all"
        )
    return found


def fill(text: str, words: dict[str, str], where: str) -> str:
    """``text`` with the word of each ``{name}``."""
    try:
        return text.format_map(words)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{where}: cannot fill in '{text}': {{...}} must be a parameter or a stage before it,"
            f" of {', '.join(words)}"
        ) from error


def is_wanted(condition: dict[str, Any], member: Member, where: str) -> bool:
    """Whether a stage's ``when``, parameter -> list of values, holds for this member."""
    for name, values in condition.items():
        if name not in member.values or not isinstance(values, list):
            raise UserError(
                f"{where}: when must give lists of values by the names of parameters, not '{name}:"
                f" {values}'"
            )
        wrong = [value for value in values if str(value) not in member.choices[name]]
        if wrong:
            raise UserError(f"{where}: '{wrong[0]}' in its when is no value of {name}")
    return all(member.values[name] in map(str, values) for name, values in condition.items())


def check_keys(content: Any, known: dict[str, type], where: str) -> None:
    """A :class:`UserError` for unknown keys and values of the wrong type."""
    if not isinstance(content, dict):
        raise UserError(f"{where} does not hold 'key: value' lines")
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'; known: {', '.join(sorted(known))}")
        if not isinstance(value, known[key]):
            raise UserError(f"{where}: {key} must be {TYPES[known[key]]}, not '{value}'")


def _sets() -> str:
    folder = os.environ.get("LT_TRAIN_DATA", "data")
    if re.search(r"[\s'\"\\]", folder):
        raise UserError(
            f"LT_TRAIN_DATA='{folder}' stands in commands, which spaces and quotes in it would cut"
            " up: name another path to it"
        )
    return folder


def _choices(name: str, values: Any, where: str) -> dict[str, dict[str, str]]:
    """Value -> the words that come with it."""
    if isinstance(values, list):
        values = {str(value): {} for value in values}
    has_words = isinstance(values, dict) and all(isinstance(own, dict) for own in values.values())
    if not values or not has_words:
        raise UserError(
            f"{where}: parameter {name} must be a list of values, or have 'word: text' lines for"
            " each of them"
        )
    found: dict[str, dict[str, str]] = {}
    for value, words in values.items():
        found[str(value)] = {key: str(word) for key, word in words.items()}
    return found


def _check_reference(reference: Any, parameters: dict[str, dict], where: str) -> None:
    """A :class:`UserError` for an entry that no member would ever find."""
    if isinstance(reference, int | float):
        return
    name = next(iter(parameters), None)
    known = parameters.get(name, {})
    wrong = [reference]
    if isinstance(reference, dict):
        wrong = [key for key in reference if str(key) not in known]
    if wrong:
        what = f"no value of {name}" if name else "no number"
        raise UserError(f"{where}: '{wrong[0]}' in its reference is {what}")
    rest = {other: choices for other, choices in parameters.items() if other != name}
    for below in reference.values():
        _check_reference(below, rest, where)


def _look_up(reference: Any, values: dict[str, str]) -> float | None:
    for value in values.values():
        if isinstance(reference, dict):
            reference = {str(key): below for key, below in reference.items()}.get(value)
    return None if isinstance(reference, dict) else reference
