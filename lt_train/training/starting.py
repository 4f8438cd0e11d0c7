"""What a method begins with: weights from ``model.init_from``, and what of it is trained."""

from lt_train.config.schema import Config, has_start
from lt_train.errors import UserError
from lt_train.methods.base import Method
from lt_train.models.trainable import restrict
from lt_train.models.weights import BACKBONE_FILE, load_weights


def start(method: Method, config: Config) -> None:
    """Make a new ``method`` ready to train, or to take the state of a checkpoint.

    Weights first: their files name a plain backbone's, which ``model.trainable`` may add to.
    """
    if has_start(config.model):
        _load_start(method, config)
    restrict(method.encoders(), config)
    method.prepare()


def _load_start(method: Method, config: Config) -> None:
    model = config.model
    for file, module in method.starting_weights().items():
        try:
            load_weights(module, model.init_from, file, model.init_prefix)
        except UserError as error:
            if file == BACKBONE_FILE:
                raise
            raise UserError(
                "model.init_from must be the run of a linear classifier, which this goes on "
                f"from, not a backbone alone: {error}"
            ) from error
