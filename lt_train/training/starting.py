"""What a method begins with: weights from wherever a config says, and what of it is trained."""

from functools import partial
from pathlib import Path

from torch import nn

from lt_train.collectives import on_main
from lt_train.config.families import family_of
from lt_train.config.schema import Config, has_start
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.models.trainable import restrict
from lt_train.models.weights import BACKBONE_FILE, load_weights
from lt_train.training.saved_state import broadcast_module


def start(method: Method, config: Config) -> None:
    """Make a new ``method`` ready to train, or to take the state of a checkpoint. Collective.

    Weights first: their files name a plain backbone's, which ``model.trainable`` may add to.
    """
    if has_start(config.model):
        _load_start(method, config)
    restrict(method.encoders(), config)
    method.prepare()


def _load_start(method: Method, config: Config) -> None:
    """Rank 0 alone reads, so that a thousand ranks do not read one file."""
    model = config.model
    source = on_main(lambda: model.init_from or _published(model.backbone))
    for file, module in method.starting_weights().items():
        on_main(partial(_read, module, source, file, model.init_prefix))
        broadcast_module(module)


def _published(backbone: str) -> Path:
    module, name = family_of(backbone)
    return module.weights_file(name)


def _read(module: nn.Module, source: str | Path, file: str, prefix: str | None) -> None:
    try:
        load_weights(module, source, file, prefix)
    except UserError as error:
        if file == BACKBONE_FILE:
            raise
        raise UserError(
            "model.init_from must be the run of a linear classifier, which this goes on "
            f"from, not a backbone alone: {error}"
        ) from error
