"""Open a run that was trained before: its config, and its stage with the weights that it has now."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch

from lt_train.checkpoint import CheckpointStore
from lt_train.config import load_config
from lt_train.data.manifest import Manifest, read_dataset, write_atomically
from lt_train.distributed import World, is_lost_peer
from lt_train.engine import Engine
from lt_train.errors import UserError
from lt_train.schema import Config, UnlabeledConfig
from lt_train.selection import BestWeights
from lt_train.stages import STAGES, Stage
from lt_train.weights import BACKBONE_FILE, CLASSIFIER_FILE, load_weights

log = logging.getLogger(__name__)


def open_run(folder: Path, overrides: list[str], world: World, step: int | None = None) -> tuple[Config, Stage]:
    """The run's config under ``overrides``, and its stage on the device, ready to evaluate. Collective.

    Weights: those of checkpoint ``step``; else what the run was finished with, or its newest checkpoint.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(f"'{folder}' is not a run: it has no config.yaml; name a folder that lt_train has trained in")
    config = load_config(str(saved), overrides)
    config = replace(config, unlabeled=UnlabeledConfig(), run=replace(config.run, dir=str(folder)))  # the former is for training only
    result = _result(folder)
    stage = STAGES[config.stage](config, torch.tensor(_class_counts(folder, config, result)))
    try:
        _load(folder, config, stage, world, step, BestWeights(folder, result.get("selected_on", "last")))
    except (RuntimeError, OSError, KeyError) as error:
        if is_lost_peer(error):
            raise
        raise UserError(f"the weights in {folder} do not fit {config.data.root}: {error}; set data.root to the set it was trained on") from error
    # the layout in which the engine has computed
    layout = torch.channels_last if config.engine.name == "ddp" else torch.preserve_format
    return config, stage.to(world.device, memory_format=layout).eval()


def check_classifier(folder: Path, config: Config) -> None:
    """Refuse a run whose stage has no classifier of the data set's classes."""
    if config.stage in ("moco", "rotation", "sourcing"):
        raise UserError(f"'{folder}' is a run of the stage '{config.stage}', which has no classifier of the labels; name a classifier's run")


def write_metrics(path: Path, content: dict) -> None:
    """Write what a command has measured as JSON, whole or not at all."""
    try:
        write_atomically(path, (json.dumps(content) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file with --out") from error


def check_labeled(manifest: Manifest) -> None:
    """Refuse a split with samples without labels, whose metrics mean nothing."""
    if manifest.class_counts.sum() < max(1, len(manifest)):
        raise UserError(f"the split '{manifest.split}' of {manifest.root} has no labels to compare with; name another")


def _result(folder: Path) -> dict:
    """result.json of a finished run, else nothing."""
    try:
        return json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return {}


def _class_counts(folder: Path, config: Config, result: dict) -> list[int]:
    """Training samples of each class: by the run's own word, if it is finished, so that another set may be evaluated on."""
    dataset = read_dataset(config.data.root)
    if result.get("classes", dataset.classes) != dataset.classes:
        raise UserError(f"{config.data.root} was made for other classes than {folder} was trained on; set data.root to one of the same classes")
    if "class_counts" in result:
        return result["class_counts"]
    if config.data.train_split not in dataset.splits:
        what = f"no split '{config.data.train_split}', on which {folder} was trained"
        raise UserError(f"{config.data.root} has {what}; set data.root or data.train_split")
    return dataset.splits[config.data.train_split].class_counts


def _load(folder: Path, config: Config, stage: Stage, world: World, step: int | None, best: BestWeights) -> None:
    if step is None and best.exists():
        log.info("weights: %s", best.path)
        best.restore(stage)
        return
    checkpoint = CheckpointStore(folder / "checkpoints", config.run.keep_checkpoints, world).find(step)
    if checkpoint is not None:
        log.info("weights: %s", checkpoint.path)
        stage.load_state_dict(torch.load(checkpoint.path / Engine.STATE_FILE, map_location="cpu", weights_only=True, mmap=True)["stage"])
        return
    if not (folder / BACKBONE_FILE).is_file():
        raise UserError(f"'{folder}' has neither a checkpoint nor {BACKBONE_FILE}: train it first")
    load_weights(stage.backbone, folder)
    if (folder / CLASSIFIER_FILE).is_file():
        load_weights(stage.classifier, folder, CLASSIFIER_FILE)
    elif config.stage == "rotation":
        log.warning("%s has no checkpoint left: rotation_top1 is that of an untrained head", folder)
