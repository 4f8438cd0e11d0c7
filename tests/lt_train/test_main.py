"""``python -m lt_train``: the help of the commands, and mistakes in words."""

import re
import subprocess
import sys

import pytest

from lt_train.__main__ import main
from lt_train.commands import COMMANDS
from lt_train.errors import EXIT_MISTAKE, UserError, exit_status, report_error

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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evalute", "runs/x", "--step", "5"], "no config or command 'evalute'.* mean 'evaluate'"),
        (["reprt", "--help-me"], "did you mean 'report'"),
        (["classifier_cifar10_lt", "ldam_drw"], "did you mean the variant [+]ldam_drw[?]"),
        (["classifier_cifar10_lt", "optim.learning_rate=1"], "did you mean 'optim.lr'"),
    ],
)
def test_a_misspelt_word_is_told_in_one_line_with_what_was_meant(words, said, capsys):
    assert exit_status("lt_train", lambda: main(words)) == EXIT_MISTAKE
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(said, error)


def test_backbones_are_listed_by_a_pattern(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--list-backbones", "resnet1*"])
    wanted = ["resnet10", "resnet18", "resnet101", "resnet152", "resnet14_cifar"]
    assert left.value.code == 0 and capsys.readouterr().out.splitlines() == wanted
    with pytest.raises(SystemExit):
        main(["--list-backbones", "timm/test_vit*"])
    listed = capsys.readouterr().out.splitlines()
    assert {"timm/test_vit", "timm/test_vit.r160_in1k"} < {*listed}
    with pytest.raises(UserError, match="no backbone matches 'resnet1'"):
        main(["--list-backbones", "resnet1"])


def test_an_option_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["classifier_demo", "--stepp", "5"])
    assert left.value.code == EXIT_MISTAKE
    assert "unrecognized arguments: --stepp" in capsys.readouterr().err


def test_a_mistake_is_one_line_of_printable_text_whatever_was_typed(capsys):
    report_error("lt_train", "no 'a\nb\udcff\x1b[31m\0ä'")
    assert capsys.readouterr().err == "lt_train: error: no 'a b\\udcff\\x1b[31m\\x00ä'\n"


def test_a_rank_that_is_no_number_does_not_hide_the_mistake(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "first")
    assert exit_status("lt_train", lambda: main(["nowhere"])) == EXIT_MISTAKE
    assert "no config or command 'nowhere'" in capsys.readouterr().err
