"""``[torchrun --nproc-per-node N -m] lt_train CONFIG [+NAME] [key=value ...]``, or a command."""

import importlib
import sys

from lt_train.errors import UserError, run_cli

COMMANDS = {  # each a module of lt_train.commands with a main(words)
    "evaluate": "metrics of a run, finished or not",
    "posthoc": "tau-norm, nearest class mean and post-hoc logit adjustment of a classifier's run",
    "pseudo_label": "label an unlabeled set with a classifier's run",
    "score": "score a pool of images with a sourcing classifier",
    "report": "one page of tables and plots from finished runs",
    "export": "a run's network for torchvision, timm, ONNX or TorchScript",
}


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    words = sys.argv[1:] if words is None else words
    try:
        if words and words[0] in COMMANDS:
            return importlib.import_module(f"lt_train.commands.{words[0]}").main(words[1:])
        from lt_train.commands import train

        return train.main(words, COMMANDS)
    except RuntimeError as error:
        from lt_train import distributed

        explained = distributed.explain(error)
        if explained is None:
            raise
        raise explained from error
    except ValueError as error:
        from lt_train.training import shapes

        if shapes.ONE_VALUE in str(error):  # of a part that was not tried before training
            raise UserError(
                f"a rank has too few samples for batch norm's variance; {shapes.LARGER}"
            ) from error
        raise


def console_script() -> None:
    """The command ``lt-train``."""
    run_cli("lt_train", main)


if __name__ == "__main__":
    console_script()
