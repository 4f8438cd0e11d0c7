"""``python -m lt_train``: the help of the commands."""

import subprocess
import sys

import pytest

from lt_train.__main__ import COMMANDS, main

LIMIT = 240  # seconds that any one command may take
HELP_WITHOUT_TORCH = """
import sys
from lt_train.__main__ import main
try:
    main(['--help'])
except SystemExit:
    sys.exit('torch' in sys.modules)
"""


def test_help_lists_the_commands_and_does_without_torch():
    command = [sys.executable, "-c", HELP_WITHOUT_TORCH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0
    for name, description in COMMANDS.items():
        assert f"  {name} " in done.stdout and description in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and f"lt_train {command}" in capsys.readouterr().out
