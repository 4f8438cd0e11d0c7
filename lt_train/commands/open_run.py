"""Open a run that was trained before: its config, and its method with its weights."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from lt_train.collectives import on_main
from lt_train.config.load import load_config
from lt_train.config.schema import METHODS, Config, UnlabeledConfig, code_of
from lt_train.console import working
from lt_train.data.dataset import read_dataset
from lt_train.data.manifest import Manifest
from lt_train.data.run_data import drawn
from lt_train.distributed import World
from lt_train.errors import UserError, unreadable
from lt_train.methods.base import Counts, Method
from lt_train.models.tensor_files import tensors_digest
from lt_train.models.trainable import plain_state, restrict
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, load_weights
from lt_train.run_files import read_result
from lt_train.training.best_weights import BestWeights
from lt_train.training.checkpoint import Checkpoint, CheckpointStore
from lt_train.training.precision import decided
from lt_train.training.saved_state import broadcast_module, read_state
from lt_train.training.starting import start

STEP = {
    "type": int,
    "help": "of the checkpoint (default: what the run ended with, or its newest)",
}
CROPS = {
    "type": int,
    "choices": (1, 5),
    "default": 1,
    "help": "5: by the mean logits of the resized image's centre and corners (default: 1)",
}
log = logging.getLogger(__name__)


def open_run(
    folder: Path,
    overrides: list[str],
    world: World,
    step: int | None = None,
    with_data: bool = True,
) -> tuple[Config, Method]:
    """The run's config under ``overrides``, and its method, ready to evaluate. Collective.

    Weights: those of checkpoint ``step``; else what the run was finished with, or its newest
    checkpoint. ``with_data``: the run's data set is asked for its classes; a finished run needs it
    for nothing else here.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(
            f"'{folder}' is not a run: it has no config.yaml; "
            "name a folder that lt_train has trained in"
        )
    config = load_config(str(saved), overrides)
    run = replace(config.run, dir=str(folder))
    # the second set is for training only
    config = decided(replace(config, run=run, unlabeled=UnlabeledConfig()), world)
    classes = read_result(folder).get("classes")
    if with_data and classes not in (None, read_dataset(config.data.root).classes):
        raise UserError(
            f"{config.data.root} was made for other classes than {folder} was trained on; "
            "set data.root to one of the same classes"
        )
    return config, open_method(config, world, step)


def class_names(config: Config) -> list[str]:
    """The classes of the run in ``config.run.dir``, which a finished one says itself."""
    classes = read_result(Path(config.run.dir)).get("classes")
    return read_dataset(config.data.root).classes if classes is None else classes


def open_method(config: Config, world: World, step: int | None = None) -> Method:
    """The method that was trained in ``config.run.dir``, on the device, ready to evaluate.

    Weights as in :func:`open_run`. Collective.
    """
    if config.engine.cpu_threads:
        torch.set_num_threads(config.engine.cpu_threads)
    folder = Path(config.run.dir)
    result = read_result(folder)
    counts = Counts.of(torch.tensor(_class_counts(folder, config, result)))
    method = code_of(METHODS, config.method)(config, counts)
    best, checkpoint = BestWeights(folder, result.get("selected_on", "last")), None
    if step is not None or not best.exists():
        store = CheckpointStore(folder / "checkpoints", config.run.keep_checkpoints, world)
        checkpoint = store.find(step)
    with working(f"reading the weights of {folder}"):
        if checkpoint is None and not best.exists():
            restrict(method.encoders(), config)  # exported weights are whole
        elif config.model.trainable != "all":
            start(method, config)  # what others leave out
        on_main(lambda: _load(config, method, checkpoint, best))
        broadcast_module(method)
    # the layout in which the engine has computed
    layout = torch.channels_last if config.engine.name == "ddp" else torch.preserve_format
    return method.to(world.device, memory_format=layout).eval()


def state_digest(method: Method) -> str:
    """sha256 of the weights and statistics that class scores come from.

    What a method trains beside them, its exported weights are without.
    """
    state = plain_state(method)
    scoring = [name for name in state if name.startswith(("backbone.", "classifier."))]
    return tensors_digest({name: state[name] for name in scoring})


def check_classifier(folder: Path, config: Config) -> None:
    """Refuse a run whose method has no classifier of the data set's classes."""
    if not METHODS[config.method].has_classifier:
        raise UserError(
            f"'{folder}' is a run of the method {config.method}, which has no classifier of the"
            " labels; name a classifier's run"
        )


def check_labeled(manifest: Manifest) -> None:
    """Refuse a split with samples without labels, whose metrics mean nothing."""
    if manifest.class_counts.sum() < max(1, len(manifest)):
        raise UserError(
            f"the split '{manifest.split}' of {manifest.root} has no labels to compare with; name"
            " another"
        )


def _class_counts(folder: Path, config: Config, result: dict) -> list[int]:
    """Training samples of each class; a finished run's own, whatever set it is evaluated on."""
    if "class_counts" in result:
        return result["class_counts"]
    splits = read_dataset(config.data.root).splits
    if config.data.train_split not in splits:
        raise UserError(
            f"{config.data.root} has no split '{config.data.train_split}', on which {folder} "
            "was trained; set data.root or data.train_split"
        )
    if config.data.max_samples is None:
        return splits[config.data.train_split].class_counts
    whole = Manifest(config.data.root, config.data.train_split)
    return drawn(whole, config.data.max_samples, config.seed).class_counts.tolist()


def _load(config: Config, method: Method, checkpoint: Checkpoint | None, best: BestWeights) -> None:
    """Fill ``method`` from the checkpoint, else the best weights, else the exported ones."""
    try:
        if checkpoint is not None:
            log.info("weights: %s", checkpoint.path)
            read_state(checkpoint.path, method)
        elif best.exists():
            log.info("weights: %s", best.path)
            best.restore(method)
        else:
            _load_exported(Path(config.run.dir), method)
    except OSError as error:
        message = f"cannot read the weights in {config.run.dir}: {error}"
        raise unreadable(error, message) from error
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"the weights in {config.run.dir} do not fit {config.data.root}: {error}; "
            "set data.root to the set it was trained on"
        ) from error


def _load_exported(folder: Path, method: Method) -> None:
    if not (folder / BACKBONE_FILE).is_file():
        raise UserError(f"'{folder}' has neither a checkpoint nor {BACKBONE_FILE}: train it first")
    load_weights(method.backbone, folder)
    if (folder / CLASSIFIER_FILE).is_file():
        load_weights(method.classifier, folder, CLASSIFIER_FILE)
    elif method.needs_whole_state:
        metrics = ", ".join(method.needs_whole_state)
        log.warning("%s has no checkpoint left: %s is that of an untrained head", folder, metrics)
