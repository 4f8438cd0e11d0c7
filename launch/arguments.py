"""The words that launch/local.py and launch/slurm.py have in common."""

import argparse

from lt_train.arguments import Parser


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser of the experiment's name, its overrides and ``--list``."""
    parser = Parser(prog=program, description=description)
    parser.add_argument(
        "experiment",
        metavar="CONFIG_OR_PIPELINE",
        nargs="?",
        help="one that --list shows, or a path to a YAML file",
    )
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="or +NAME, for every stage; STAGE:key=value for one stage of a pipeline",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="show all pipelines with their published errors, configs and variants, and exit",
    )
    return parser
