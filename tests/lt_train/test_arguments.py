"""``--version``, of every command."""

import re

import pytest

from data_prep import __main__ as data_prep
from launch import __main__ as launch
from lt_train import __main__ as lt_train
from lt_train import __version__
from lt_train.benchmark import __main__ as benchmark

COMMANDS = {
    "lt_train": lambda: lt_train.main(["--version"]),
    **{name: lambda name=name: lt_train.main([name, "--version"]) for name in lt_train.COMMANDS},
    "data_prep": lambda: data_prep.main(["--version"]),
    "launch": lambda: launch.main(["--version"]),
    **{place: lambda place=place: launch.main([place, "--version"]) for place in launch.PLACES},
    "slurm status": lambda: launch.main(["slurm", "status", "--version"]),
    "benchmark": lambda: benchmark.main(["--version"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_the_version_and_ends_well(command, capsys):
    try:
        status = COMMANDS[command]()
    except SystemExit as left:
        status = left.code
    assert (status, capsys.readouterr().out) == (0, f"lt-train {__version__}\n")


def test_versions_are_of_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
