"""Train one stage: ``[torchrun --nproc-per-node N -m] lt_train CONFIG [+METHOD] [key=value ...]``, or one of COMMANDS."""

import argparse
import gc
import importlib
import sys

from lt_train.config import list_configs, list_methods, load_config, to_yaml
from lt_train.errors import EXIT_PREEMPTED, LostPeer, UserError, run_cli

COMMANDS = {  # each a module with a main(words)
    "evaluate": "metrics of a run, finished or not",
    "heads": "tau-norm, nearest class mean and post-hoc logit adjustment of a classifier's run",
    "pseudo_label": "label an unlabeled set with a classifier's run",
    "score": "score a pool of images with a sourcing classifier",
    "report": "one page of tables and plots from finished runs",
    "export": "a run's weights as a torchvision state dict",
}


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    words = sys.argv[1:] if words is None else words
    try:
        if words and words[0] in COMMANDS:
            return importlib.import_module(f"lt_train.{words[0]}").main(words[1:])
        return _train(words)
    except RuntimeError as error:
        from lt_train import distributed

        if "out of memory" in str(error):
            raise UserError("out of GPU memory: use a smaller global_batch_size or data.eval_batch_size, or more ranks") from error
        if distributed.is_lost_peer(error):
            rank = distributed.read_environment()["rank"]
            raise LostPeer(f"rank {rank} lost contact with another rank, whose own message says why") from error
        raise


def _train(words: list[str]) -> int:
    arguments = _parse(words)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    # torch and the rest are imported only now: --help and a misspelt key answer at once
    from lt_train import distributed
    from lt_train.progress import setup_logging
    from lt_train.train import Preempted, Trainer

    world = distributed.start()
    setup_logging(world.is_main)
    try:
        Trainer(config, world).run()
        gc.collect()  # engines and their process groups' threads go in this order, not in the interpreter's
        distributed.stop()
    except Preempted as reason:
        if world.is_main:
            sys.stderr.write(f"lt_train: {reason}\n")
        return EXIT_PREEMPTED
    except OSError as error:
        raise UserError(f"{error.filename or config.run.dir}: {error.strerror or error}; the last checkpoint is kept") from error
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    commands = "\n".join(f"  {name:28} {description}" for name, description in COMMANDS.items())
    configs = "\n".join(f"  {name:28} {description}" for name, description in list_configs())
    methods = "\n".join(f"  +{name:27} {text}" for name, text in list_methods())
    parser = argparse.ArgumentParser(
        prog="python -m lt_train",
        description="Train one stage, on one process or under torchrun. The same command again resumes it.",
        epilog=f"other commands (python -m lt_train COMMAND --help):\n{commands}\n\nconfigs:\n{configs}\n\n"
        f"methods, over any config:\n{methods}\n\nevery key and its default: --print-config",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a name from configs/ or a path to a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override config keys, e.g. optim.lr=0.05; +METHOD: those of a method")
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and exit")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_cli("lt_train", main)
