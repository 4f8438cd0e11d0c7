"""``python -m lt_train CONFIG``: train what a config says, or go on with it."""

import argparse
import shlex
import sys

from lt_train.arguments import Parser
from lt_train.code_version import code_version
from lt_train.commands import COMMANDS
from lt_train.config.families import backbone_names
from lt_train.config.keys import find_keys
from lt_train.config.load import (
    find_config,
    list_configs,
    list_variants,
    load_config,
    to_yaml,
)
from lt_train.config.schema import METHODS, Config
from lt_train.console import say, setup_logging, working
from lt_train.errors import UserError, launched_rank, unreadable


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        sys.stdout.write(to_yaml(config))
        return 0
    # torch and the rest are imported only now: --help and a misspelt key answer at once
    setup_logging(launched_rank() == 0)
    with working("importing torch"):
        from lt_train import distributed
        from lt_train.training.leaving import Preempted
        from lt_train.training.trainer import Trainer

    try:
        with distributed.joined() as world:
            setup_logging(world.is_main)
            result = Trainer(config, world, _made_by(words) if world.is_main else {}).run()
            if world.is_main:
                _tell_end(config, result)
    except Preempted as reason:
        if world.is_main:
            say(f"lt_train: {reason}")
        return reason.status
    except OSError as error:
        message = f"{error.filename or config.run.dir}: {error.strerror or error}"
        raise unreadable(error, f"{message}; what was saved is kept") from error
    return 0


def _tell_end(config: Config, result: dict) -> None:
    """What came of it, where it lies, and what one may do with it."""
    folder, headline = config.run.dir, result["headline"]
    numbers = [
        f"{headline} {metrics[headline]:.2f} on {split}"
        for split, metrics in result["metrics"].items()
        if metrics.get(headline) is not None
    ]
    came = ", ".join(numbers) or "nothing to evaluate on"
    say(f"done: {came}; weights and result.json in {folder}")
    commands = "report, evaluate, posthoc, predict, export"
    if not METHODS[config.method].has_classifier:
        commands = "report, export"
        say(f"next: model.init_from={folder} starts a classifier from it")
    say(f"next: python -m lt_train COMMAND {folder} ({commands}); tensorboard --logdir {folder}")


def _made_by(words: list[str]) -> dict[str, str]:
    """What result.json says of where a run comes from."""
    command = shlex.join(["python", "-m", "lt_train", *words])
    return {"command": command, "commit": code_version()}


class ListBackbones(argparse.Action):
    """Prints the names that match a shell pattern, a line each, and ends the command."""

    def __call__(self, parser, namespace, pattern, option=None):
        found = backbone_names(pattern)
        if not found:
            raise UserError(f"no backbone matches '{pattern}'; try 'timm/*' or '*resnet*'")
        sys.stdout.write("".join(f"{name}\n" for name in found))
        parser.exit()


class ListKeys(argparse.Action):
    """Prints the keys that match a shell pattern, a line each, and ends the command."""

    def __call__(self, parser, namespace, pattern, option=None):
        sys.stdout.write("".join(f"{key.line}\n" for key in find_keys(pattern)))
        parser.exit()


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lt_train",
        description=(
            "Train what a config says, on one process or under torchrun. "
            "The same command again resumes it."
        ),
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="a name from configs/ or a path to a YAML file"
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="override config keys, e.g. optim.lr=0.05; +NAME: those of a variant",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved config and exit"
    )
    parser.add_argument(
        "--list-backbones",
        metavar="PATTERN",
        action=ListBackbones,
        help="show the names that model.backbone takes, e.g. 'timm/vit_*', and exit",
    )
    parser.add_argument(
        "--list-keys",
        metavar="PATTERN",
        action=ListKeys,
        help="show what every key takes, its default and meaning, e.g. 'optim.*', and exit",
    )
    if not words:
        raise UserError("name a config, such as classifier_folder, or a command; --help shows all")
    arguments, unknown = parser.parse_known_args(words)
    # a misspelt command is told before its options are
    find_config(arguments.config, commands=COMMANDS)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _epilog() -> str:
    groups = {
        "other commands (python -m lt_train COMMAND --help)": COMMANDS.items(),
        "configs": list_configs(),
        "variants, over any config": [(f"+{name}", text) for name, text in list_variants()],
    }
    lines = []
    for title, entries in groups.items():
        lines += [f"{title}:", *(f"  {name:28} {text}" for name, text in entries), ""]
    return "\n".join([*lines, "every key: --list-keys '*'; of a config: CONFIG --print-config"])
