"""What the command lines have in common."""

import argparse
from typing import Any

from lt_train import __version__

VERSION = f"lt-train {__version__}"


class Parser(argparse.ArgumentParser):
    """A parser that knows ``--version``, as those of its subcommands do."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.add_argument(
            "--version", action="version", version=VERSION, help="show the version and exit"
        )
