"""Every command that README and docs show is one that its program takes."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

import data_prep.__main__ as data_prep
import launch.local as local
import launch.slurm as slurm
import lt_train.benchmark.__main__ as benchmark
from data_prep.recipes import find_recipes
from launch.pipeline import load_experiment
from lt_train.commands import COMMANDS
from lt_train.config.load import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_OTHERS = ("pip", "pytest", "tensorboard", "hf")
RUN_ELSEWHERE = ("--import", "imports=")  # modules of one's own: tests/integration


def commands() -> list[str]:
    """Each once, without comments, prefixes of torchrun, and what marks words as optional."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"(^|\s)#.*", "", line).replace("DIR...", "DIR").replace(" ... ", " ")
                line = re.sub(r"\[(-[^]]*|data\.[^]]*)\]", r"\1", line)
                line = re.sub(r"\S*torchrun (-\S+ \d+ )*-m", "python -m", line)
                found |= dict.fromkeys(part.strip() for part in line.split("&&") if part.strip())
    return list(found)


COMMANDS_SHOWN = commands()


def take_lt_train(words: list[str]) -> None:
    if words[0] in COMMANDS:
        importlib.import_module(f"lt_train.commands.{words[0]}")._parse(words[1:])
        return
    from lt_train.commands import train

    arguments = train._parse(words)
    load_config(arguments.config, arguments.overrides)


def take_data_prep(words: list[str]) -> None:
    parser, _ = data_prep._make_parser(find_recipes())
    if words[0] == "imagenet_lt" and "--source" not in words:  # the page leaves it out, by "..."
        words = [*words, "--source", "DIR"]
    parser.parse_args([word.replace("$SLURM_ARRAY_TASK_ID", "0") for word in words])


def take_local(words: list[str]) -> None:
    arguments = local._parse(words, "launch")
    if arguments.experiment:
        load_experiment(arguments.experiment, arguments.overrides)


def take_slurm(words: list[str]) -> None:
    """What submits is run but for submitting."""
    if words[0] in ("status", "cancel"):
        assert len(words) == 2
        return
    arguments = slurm._parse(words, "launch")
    if arguments.benchmark:
        load_experiment(arguments.experiment, arguments.overrides)
    elif arguments.experiment:
        assert slurm.main([*words, "--dry-run"]) == 0


TAKES = {
    ("python", "-m", "lt_train"): take_lt_train,
    ("python", "-m", "lt_train.benchmark"): benchmark._parse,
    ("python", "-m", "data_prep"): take_data_prep,
    ("python", "launch/local.py"): take_local,
    ("python", "launch/slurm.py"): take_slurm,
}


def test_there_are_many():
    assert len(COMMANDS_SHOWN) > 60


@pytest.mark.parametrize("command", COMMANDS_SHOWN)
def test_a_command_that_is_shown_is_taken(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    if words[0] in OF_OTHERS or any(word.startswith(RUN_ELSEWHERE) for word in words):
        return
    if words[1].startswith("docs/"):
        assert (ROOT / words[1]).is_file()
        return
    monkeypatch.chdir(tmp_path)
    (start,) = [start for start in TAKES if tuple(words[: len(start)]) == start]
    try:
        TAKES[start](words[len(start) :])
    except SystemExit as left:  # of --help and --list-keys
        assert left.code == 0
