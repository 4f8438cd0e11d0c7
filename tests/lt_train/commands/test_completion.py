"""What a shell's tab key gives."""

import os
import subprocess
import sys

import pytest

from lt_train.commands import COMMANDS
from lt_train.commands.completion import SCRIPTS, candidates

BASH = """
{script}
try() {{ COMP_LINE="$1"; COMP_POINT=${{#1}}; _lt_train 2> /dev/null; echo "${{COMPREPLY[*]}}"; }}
try "lt-train eva"
try "lt-train classifier_demo +ldam"
try "lt-train classifier_demo seed=1 optim.l"
try "lt-train classifier_demo optim.name=a"
try "lt-train evaluate runs/"
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["eva"], ["evaluate"]),
        (["classifier_dem"], ["classifier_demo"]),
        (["score", "sour"], ["sourcing_cifar10"]),
        (["classifier_demo", "+ldam"], ["+ldam", "+ldam_drw"]),
        (["classifier_demo", "optim.l"], ["optim.lr=", "optim.lr_batch_size="]),
        (["classifier_demo", "optim.lr="], []),
        (
            ["classifier_demo", "seed=1", "engine.name="],
            ["engine.name=ddp", "engine.name=deepspeed"],
        ),
        (["mine.yaml", "loss.name=f"], ["loss.name=focal"]),
        (["evaluate", "runs/"], []),
        (["evaluate", "runs/x", "data.roo"], ["data.root="]),
        (["export", "runs/x", ""], []),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_what_the_last_word_may_become(words, found):
    assert candidates(words) == found


def test_the_first_word_is_a_command_or_a_config():
    assert {*COMMANDS, "moco_imagenet_lt"} < {*candidates([""])} == {*candidates([])}


def test_bash_completes(tmp_path):
    command = tmp_path / "lt-train"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lt_train "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    said = subprocess.run(
        ["bash", "-c", BASH.format(script=SCRIPTS["bash"])],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=True,
    )
    assert said.stdout.splitlines() == [
        "evaluate",
        "+ldam +ldam_drw",
        "optim.lr= optim.lr_batch_size=",
        "adamw",  # bash takes what stands before "=" for another word
        "",
    ]
