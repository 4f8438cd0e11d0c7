"""Prepare a data set: ``python -m data_prep DATASET --out DIR ...``; look at one: ``python -m
data_prep verify|info DIR``.
"""

import argparse
import sys
from pathlib import Path

from data_prep.options import add_common_arguments, check_sources, expect_paths, made_by
from data_prep.reading.source import Recipe
from data_prep.recipes import find_recipes
from lt_train.arguments import Parser
from lt_train.console import setup_logging
from lt_train.errors import run_cli

PROGRAM = "python -m data_prep"
IMPORT = {  # also taken before the commands are known, as it brings some
    "action": "append",
    "default": [],
    "dest": "imports",
    "metavar": "MODULE",
    "help": "import this module first, whose RECIPES are more data sets; can be repeated",
}


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    words = sys.argv[1:] if words is None else words
    recipes = find_recipes(_imports(words))
    parser, commands = _make_parser(recipes)
    arguments = parser.parse_args(words)
    setup_logging(True)
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks
    if arguments.command == "verify":
        from data_prep.inspect import verify

        return verify(arguments.dir)
    if arguments.command == "info":
        from data_prep.inspect import info

        return info(arguments.dir, arguments.plot)
    from data_prep.prepare import prepare

    check_sources(arguments, commands[arguments.command])
    command = made_by(arguments, commands[arguments.command])
    return prepare(recipes[arguments.command], arguments, command)


def _imports(words: list[str]) -> list[str]:
    """The modules of ``--import``."""
    parser = argparse.ArgumentParser(
        PROGRAM, f"{PROGRAM} [--import MODULE] COMMAND ...", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--import", **IMPORT)
    return parser.parse_known_args(words)[0].imports


def _make_parser(
    recipes: dict[str, Recipe],
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and that of each command by its name."""
    parser = Parser(
        prog=PROGRAM,
        description="Turn raw images into webdataset shards with a manifest.",
        allow_abbrev=False,
    )
    parser.add_argument("--import", **IMPORT)
    # whose options, --version too, are a data set's own
    own = {"parser_class": argparse.ArgumentParser}
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", **own)
    for name, recipe in recipes.items():
        command = commands.add_parser(name, help=recipe.help, description=recipe.help)
        expect_paths(command)
        recipe.add_arguments(command)
        add_common_arguments(command, recipe)
    text = "read every byte and compare checksums"
    verify = commands.add_parser("verify", help=text, description=f"{text.capitalize()}.")
    expect_paths(verify)
    verify.add_argument("dir", type=Path, metavar="DIR")
    text = "counts, head and tail, shard sizes, shot groups, histogram"
    info = commands.add_parser("info", help=text, description=text)
    expect_paths(info)
    info.add_argument("dir", type=Path, metavar="DIR")
    text = (
        "also draw the class counts as PNG (default: DIR/class_counts.png), or with FILE.html a"
        " page with image sizes, what was rejected and a few images of each class"
    )
    info.add_argument("--plot", nargs="?", type=Path, const=Path(), metavar="FILE", help=text)
    return parser, commands.choices


def console_script() -> None:
    """The command ``lt-data``."""
    run_cli("data_prep", main)


if __name__ == "__main__":
    console_script()
