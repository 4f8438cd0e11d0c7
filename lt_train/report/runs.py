"""Finished runs as the report reads them from their files."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lt_train.config.reading import flatten, read_yaml
from lt_train.errors import UserError, unreadable
from lt_train.files import read_sealed, unseal
from lt_train.run_files import (
    PREDICTIONS_FILE,
    RESULT_FILE,
    TRAIN_AGAIN,
    is_number,
    parse_log,
    read_predictions,
    read_result,
)

AS_TRAINED = "as trained"  # the entry of posthoc.json that a run's own row shows already
BALANCED_VOTES = "knn_cb_"  # prefix of the metrics of k-NN with class-balanced votes
RUN_FILES = (RESULT_FILE, "metrics.jsonl", "config.yaml")  # any of them makes a folder a run
SCALARS = ("top1", "balanced", "many_shot", "medium_shot", "few_shot", "ece")
NUMBER = (int, float)
NEEDED = {  # of result.json
    "method": str,
    "headline": str,
    "metrics": dict,
    "class_counts": list,
    "classes": list,
    "finished": str,
    "versions": dict,
    "steps": int,
    "epochs": NUMBER,
    "train_samples": int,
    "seconds": NUMBER,
    "ranks": int,
    "global_batch_size": int,
}
OPTIONAL = {
    "description": str,
    "seed": int,
    "reference_error": NUMBER,
    "selected_on": str,
    "outside_data": list,
}


@dataclass(frozen=True)
class Posthoc:
    """A classifier made after training: an entry of posthoc.json, or a second one by neighbours."""

    name: str
    parameter: str  # such as "tau 0.7", or empty
    split: str | None
    metrics: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    ``result``: its result.json. ``metrics``: those of ``split``, without the headline's prefix:
    SCALARS and "error" in % or None, "samples" or None, "per_class" (C,) float64 in % with NaN for
    classes without samples, "class_samples" (C,) int64 or empty, "confusion" (C, C) float64 or
    empty. ``config``: of keys with dots, as far as it is known. ``predictions``: what each image of
    the split was taken for, (N,) PREDICTION, or none. ``log``: the records of metrics.jsonl.
    ``warnings``: what its files tell of trouble.
    """

    name: str
    folder: Path
    result: dict[str, Any]
    split: str | None
    metrics: dict[str, Any]
    posthoc: tuple[Posthoc, ...]
    posthoc_selected_on: str
    config: dict[str, Any]
    predictions: np.ndarray | None
    log: tuple[dict, ...]
    warnings: tuple[str, ...]

    @property
    def class_counts(self) -> np.ndarray:
        return np.array(self.result["class_counts"], np.int64)

    @property
    def selected_on(self) -> str:
        return self.result.get("selected_on") or "last"

    def setting(self, key: str) -> Any:
        """What its config says; None where nobody knows."""
        return self.config.get(key)

    @property
    def trial(self) -> str:
        """What makes it a trial, in words; nothing if it was trained as long as its config says."""
        found = []
        by, epochs = self.setting("compressed_by"), self.setting("epochs")
        if _is_finite(by) and by != 1:
            found.append(f"its numbers of epochs were divided by {by:g}")
        if self.setting("max_steps") and _is_finite(epochs):
            done = self.result["epochs"]
            if done < epochs - done / max(1, self.result["steps"]):
                found.append(f"it was cut after {done:g} of {epochs:g} epochs")
        return " and ".join(found)

    @property
    def outside_data(self) -> tuple[str, ...]:
        """What it has learnt from beside its own training set, in words."""
        return tuple(map(str, self.result.get("outside_data") or ()))


# reading


def find_runs(folders: list[Path]) -> dict[str, Path]:
    """All runs in ``folders``, finished or not, by name: each folder itself, its sub-folders, and
    theirs.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder: name a run, or a folder of runs")
        root = folder.resolve()
        try:
            below = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))]
            runs = [folder for folder in below if _is_run(folder)]
        except OSError as error:
            raise unreadable(error, f"cannot read '{folder}': {error.strerror}") from error
        if not runs:
            raise UserError(
                f"there is no run in '{folder}' or the folders in it: name a run.dir, or a folder"
                " of them"
            )
        found |= dict.fromkeys(runs)
    base = folders[0].resolve()
    if len(folders) > 1:
        base = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    return {run.name if run == base else run.relative_to(base).as_posix(): run for run in found}


def _is_run(folder: Path) -> bool:
    return any((folder / file).is_file() for file in RUN_FILES)


def read_runs(folders: list[Path]) -> tuple[list[Run], dict[str, str]]:
    """The finished runs in ``folders``, folder by folder in the order in which they finished; and
    how far each other one is.
    """
    runs, unfinished = [], {}
    found = find_runs(folders)
    for name, folder in found.items():
        if (folder / RESULT_FILE).is_file():
            runs.append(_read_run(name, folder))
        else:
            unfinished[name] = _progress(folder)
    if not runs:
        states = "; ".join(f"{name}: {state}" for name, state in unfinished.items())
        raise UserError(
            f"no run has finished in {', '.join(map(str, folders))} ({states}); the same training"
            " command again goes on with it"
        )
    given = [folder.resolve() for folder in folders]

    def order(run: Run) -> tuple[int, str, str]:
        inside = [found[run.name].is_relative_to(root) for root in given]
        return inside.index(True), run.result["finished"], run.name

    return sorted(runs, key=order), unfinished


def _parse(path: Path, content: dict, parse: Callable[[dict], Any], advice: str) -> Any:
    """``parse`` of a file's ``content``; whatever is wrong with it is a :class:`UserError` that
    names the file.
    """
    try:
        return parse(content)
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}; {advice}") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}; {advice}") from error


def _read_run(name: str, folder: Path) -> Run:
    result, split, metrics, posthoc = _parse(
        folder / RESULT_FILE, read_result(folder), _checked, TRAIN_AGAIN
    )
    selected_on = "none"
    file, advice = folder / "posthoc.json", "make it again"
    if file.is_file():
        selected_on, found = _parse(file, read_sealed(file, advice), _posthoc, advice)
        posthoc += found
    file = folder / "evaluation.json"
    if file.is_file():
        posthoc += _parse(file, read_sealed(file, advice), partial(_crops, result), advice)
    log, odd = read_log(folder)
    warnings = []
    predictions = None
    try:
        predictions = read_predictions(folder, result).get(split)
    except (OSError, ValueError) as error:
        warnings.append(f"its {PREDICTIONS_FILE} is left out: {error}")
    if odd:
        warnings.append(f"{odd} unreadable line(s) in its metrics.jsonl are left out")
    if (folder / "nonfinite.json").is_file():
        warnings.append(
            f"its loss was not finite{_nonfinite_step(folder)}; nonfinite.json names the samples"
        )
    config = _config(folder, result)
    of_log = (tuple(log), tuple(warnings))
    of_split = (split, metrics, posthoc, selected_on)
    return Run(name, folder, result, *of_split, config, predictions, *of_log)


def _config(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The run's config, of keys with dots; earlier versions' results do not hold it."""
    content = result.get("config")
    try:
        return flatten(content if isinstance(content, dict) else read_yaml(folder / "config.yaml"))
    except UserError:
        return {}


def _checked(
    result: dict[str, Any],
) -> tuple[dict[str, Any], str | None, dict[str, Any], tuple[Posthoc, ...]]:
    """``result``, if it has what the report reads, and of it the split and metrics to report.

    With them the classifier by class-balanced votes of neighbours, where it has one.
    """
    if "stage" in result:  # what earlier versions called it
        result = {"method": result["stage"], **result}
    for key, kind in {**NEEDED, **OPTIONAL}.items():
        value = result[key] if key in NEEDED else result.get(key)
        if value is None and key in OPTIONAL:
            continue
        if not isinstance(value, kind) or kind in (int, NUMBER) and not _is_finite(value):
            raise TypeError(f"'{key}' cannot be {json.dumps(value)[:40]}")
    splits = result["metrics"]
    split, metrics = _reported(splits, result["headline"].removesuffix("top1"))
    by_votes = ()
    if f"{BALANCED_VOTES}top1" in splits.get(split, {}):
        reported = _reported(splits, BALANCED_VOTES)
        by_votes = (Posthoc("k-NN, class-balanced votes", "", *reported),)
    return result, split, metrics, by_votes


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _reported(splits: dict[str, dict], prefix: str) -> tuple[str | None, dict[str, Any]]:
    """The test split where there is one, else the last (the loop evaluates validation first), and
    its metrics as in :class:`Run`.
    """
    split = "test" if "test" in splits else next(reversed(splits), None)
    found = {
        key.removeprefix(prefix): value
        for key, value in splits.get(split, {}).items()
        if key.startswith(prefix)
    }
    scalars = {key: found.get(key) for key in SCALARS}
    metrics: dict[str, Any] = {
        key: None if value is None else float(value) for key, value in scalars.items()
    }
    odd = [key for key, value in metrics.items() if value is not None and not math.isfinite(value)]
    if odd:
        raise ValueError(f"its {odd[0]} is no percentage")
    samples = splits.get(split, {}).get("samples")
    metrics["samples"] = samples if is_number(samples) and samples > 0 else None
    metrics["error"] = None if metrics["top1"] is None else 100 - metrics["top1"]
    metrics["per_class"] = np.array(found.get("per_class") or [], np.float64).ravel()
    confusion = np.array(found.get("confusion") or np.zeros((0, 0)), np.float64)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError("its confusion matrix is not square")
    if not np.isfinite(confusion).all() or np.isinf(metrics["per_class"]).any():
        raise ValueError("its confusion matrix or an accuracy of a class is not finite")
    metrics["confusion"] = confusion
    metrics["class_samples"] = _class_samples(found, metrics)
    # results from before it was written
    if metrics["balanced"] is None and np.isfinite(metrics["per_class"]).any():
        metrics["balanced"] = float(np.nanmean(metrics["per_class"]))
    return split, metrics


def _class_samples(found: dict[str, Any], metrics: dict[str, Any]) -> np.ndarray:
    """Images of each class that were evaluated, (C,) int64; empty where nobody knows.

    Earlier versions wrote none, but their confusion matrix tells, if it has all images.
    """
    per_class, confusion = metrics["per_class"], metrics["confusion"]
    samples = np.array(found.get("class_samples") or [], np.int64).ravel()
    if not len(samples) and len(confusion) == len(per_class):
        rows = confusion.sum(1)
        right = 100 * confusion.diagonal() / np.maximum(1, rows)
        if np.allclose(np.where(rows > 0, right, np.nan), per_class, atol=0.01, equal_nan=True):
            samples = rows.astype(np.int64)
    if len(samples) and (len(samples) != len(per_class) or samples.min() < 0):
        raise ValueError("its numbers of images a class are none")
    is_known = np.isfinite(per_class) if len(samples) else samples > 0
    if (is_known != (samples > 0)).any():
        raise ValueError("its accuracies are of other classes than its images")
    return samples


def _posthoc(content: dict[str, Any]) -> tuple[str, tuple[Posthoc, ...]]:
    classifiers = []
    for entry in content["classifiers"]:
        if entry["name"] != AS_TRAINED:
            name, parameter = str(entry["name"]), str(entry.get("parameter") or "")
            classifiers.append(Posthoc(name, parameter, *_reported(entry["metrics"], "")))
    return content.get("selected_on") or "none", tuple(classifiers)


def _crops(result: dict[str, Any], content: dict[str, Any]) -> tuple[Posthoc, ...]:
    """The run by several crops of each image, if that is what was evaluated last: of its end, and
    on its own data.
    """
    own = result.get("config", {}).get("data", {}).get("root")
    if content.get("crops", 1) == 1 or content["step"] is not None or content["data"] != own:
        return ()
    return (Posthoc(f"{content['crops']} crops", "", *_reported(content["metrics"], "")),)


def read_log(folder: Path) -> tuple[list[dict], int]:
    """The records of metrics.jsonl, and how many lines cannot be read.

    A last line that a kill cut short is not counted.
    """
    path = folder / "metrics.jsonl"
    try:
        records, odd = parse_log(path.read_bytes())
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise unreadable(error, f"cannot read {path}: {error.strerror}") from error
    whole = [line for line in odd if line.endswith(b"\n")]
    return records, len(whole)


def _progress(folder: Path) -> str:
    """How far an unfinished run is, in words."""
    trained = [record for record in read_log(folder)[0] if "loss" in record]
    last = trained[-1] if trained else None
    state = "unfinished, nothing logged yet"
    if last:
        state = f"unfinished, step {last['step']} of {last.get('last_step', '?')}"
    if (folder / "nonfinite.json").is_file():
        state += f"; stopped because its loss was not finite{_nonfinite_step(folder)}"
    return state


def _nonfinite_step(folder: Path) -> str:
    try:
        return f" at step {unseal((folder / 'nonfinite.json').read_bytes())['step']}"
    except (OSError, ValueError, KeyError):
        return ""
