"""Start a run: ``python -m launch local ...`` on this machine, ``python -m launch slurm ...`` on a
cluster; an installed package has both as ``lt-launch``.
"""

import importlib
import sys

from lt_train.arguments import VERSION
from lt_train.errors import UserError, nearest, run_cli

PLACES = {  # each a module of launch with a main(words, program)
    "local": "run a config or a pipeline on this machine",
    "slurm": "submit it to Slurm, and see how its jobs are",
}
USAGE = """\
usage: python -m launch {places} ...

{about}

python -m launch PLACE --help tells the options of one, --version the version.
"""


def main(words: list[str] | None = None) -> int:
    """Run with these arguments (default: the process's); returns the exit status."""
    place, *rest = (sys.argv[1:] if words is None else words) or [""]
    if place in ("-h", "--help"):
        about = "\n".join(f"  {name}  {text}" for name, text in PLACES.items())
        sys.stdout.write(USAGE.format(places=f"{{{','.join(PLACES)}}}", about=about))
        return 0
    if place == "--version":
        sys.stdout.write(f"{VERSION}\n")
        return 0
    if place not in PLACES:
        wrong = f"'{place}' is no place to run{nearest(place, list(PLACES))}; " if place else ""
        raise UserError(f"{wrong}usage: python -m launch local|slurm ...; --help tells more")
    return importlib.import_module(f"launch.{place}").main(rest, f"python -m launch {place}")


def console_script() -> None:
    """The command ``lt-launch``."""
    run_cli("launch", main)


if __name__ == "__main__":
    console_script()
