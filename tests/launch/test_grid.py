"""Pipelines with parameters: their members, what stands in braces, stages that run a command, and
what --list shows.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from launch import local, pipeline
from launch.pipeline import load_experiment
from lt_train.config.load import load_config
from lt_train.errors import UserError, exit_status

ROOT = Path(__file__).parents[2]
HEAD = """\
name: "{data}_{method}"
description: "{title}, {method}: a trial"
parameters:
  data: {demo: {title: Drawn objects, options: "--out {sets}/{data}"}, other: {title: Others, options: "--seed 1 --out o"}}
  method: [ce, focal]
reference:
  demo: {ce: 12.5}
"""
STAGES = """\
stages:
  labeled: {prepare: "demo {options}"}
  before: {config: moco_demo, after: [labeled], set: {data.root: "{labeled}"}, dir: "runs/{data}/before"}
  train: {config: "classifier_demo +{method}", after: [before], set: {model.init_from: "{before}"}}
  heads: {run: "heads {train} --out {here}/heads", after: [train], when: {method: [ce]}, resources: {nodes: 1}}
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Function that writes a file "trial" of pipelines and loads a pipeline by its name."""
    monkeypatch.setattr(pipeline, "PIPELINE_DIR", tmp_path)

    def load(
        name: str, text: str = HEAD + STAGES, overrides: tuple[str, ...] = (), suffix: str = ""
    ):
        (tmp_path / "trial.yaml").write_text(text)
        return load_experiment(name, list(overrides), suffix)

    return load


def test_a_member_is_an_ordinary_pipeline(grid):
    experiment = grid("demo_ce", overrides=("compress=2", "train:seed=3"), suffix="-seed3")
    labeled, before, train, heads = experiment.stages
    assert (experiment.name, experiment.root, experiment.has_report) == (
        "demo_ce-seed3",
        "runs/demo_ce-seed3",
        True,
    )
    assert labeled.command == ("demo", "--out", "data/demo")
    assert before.command == (
        "moco_demo",
        "run.dir=runs/demo/before-seed3",
        "data.root=data/demo",
        "compress=2",
    )
    root = "runs/demo_ce-seed3/train"
    told = ('description="Drawn objects, ce: a trial"', "reference_error=12.5")
    assert train.command == (
        "classifier_demo",
        f"run.dir={root}",
        "+ce",
        f"model.init_from={before.run_dir}",
        *told,
        "compress=2",
        "seed=3",
    )
    config = load_config(train.config, list(train.overrides))
    assert (config.description, config.reference_error, config.epochs, config.run.dir) == (
        "Drawn objects, ce: a trial",
        12.5,
        11,
        root,
    )
    assert (heads.kind, heads.after, heads.resources) == (
        "run",
        ("train",),
        {"nodes": 1},
    ) and not heads.is_finished()
    assert heads.command == ("heads", root, "--out", "runs/demo_ce-seed3/heads")


def test_members_differ_by_their_values(grid):
    labeled, before, train = grid("other_focal").stages
    assert labeled.words == ("demo", "--seed", "1", "--out", "o") and "+focal" in train.overrides
    assert not any(word.startswith("reference_error") for word in train.overrides)
    assert before.run_dir == "runs/other/before" == grid("other_ce").stages[1].run_dir
    assert [name for name, _ in pipeline.list_pipelines()] == [
        "demo_ce",
        "demo_focal",
        "other_ce",
        "other_focal",
    ]


def test_sets_stands_for_the_folder_of_data_sets(grid, monkeypatch):
    monkeypatch.setenv("LT_TRAIN_DATA", "/shards")
    assert grid("demo_ce").stages[0].run_dir == "/shards/demo"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "demo_focl",
            "no config or pipeline 'demo_focl'.*did you mean 'demo_focal'.*local.py --list",
        ),
        ("trial", "'trial' stands for 4 pipelines: name one, such as demo_ce"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(grid, name, words):
    with pytest.raises(UserError, match=words) as caught:
        grid(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "{title}, {method}: a trial",
            "{titel}",
            r"pipeline trial: cannot fill in '\{titel\}': .* of .*title",
        ),
        (
            'name: "{data}_{method}"',
            'name: "{data}_{metod}"',
            r"cannot fill in '\{data\}_\{metod\}'",
        ),
        (
            'name: "{data}_{method}"\n',
            "",
            r"needs a name with them in braces, such as .\{data\}_\{method\}",
        ),
        ('name: "{data}_{method}"', 'name: "{data}"', "have a member 'demo'"),
        ("[ce, focal]", "ce", "parameter method must be a list"),
        ("[ce, focal]", "[]", "parameter method must be a list"),
        ("{title: Others,", "{", r"cannot fill in '\{title\}"),
        ("demo: {ce: 12.5}", "demmo: {ce: 12.5}", "'demmo' in its reference is no value of data"),
        ("demo: {ce: 12.5}", "demo: {cee: 12.5}", "'cee' in its reference is no value of method"),
        ("demo: {ce: 12.5}", "demo: {ce: low}", "'low' in its reference is no number"),
        ("parameters:", "paramters:", "unknown key 'paramters'"),
        (
            '{prepare: "demo {options}"}',
            '{prepare: "demo {option}"}',
            r"stage labeled: cannot fill in 'demo \{option\}'",
        ),
        (
            "heads {train} --out {here}",
            "heads {trian} --out {here}",
            r"stage heads: cannot fill in .*of .*here, labeled, before, train$",
        ),
        ("heads {train} --out {here}", "heads {train --out {here}", "stage heads: cannot fill in"),
        (
            'run: "heads {train} --out {here}/heads"',
            'run: ""',
            "stage heads: run must be one of evaluate, heads, pseudo_label",
        ),
        (
            '{run: "heads {train} --out {here}/heads"',
            '{run: "heads", set: {seed: 1}',
            "stage heads: 'set' is for configs",
        ),
        (
            '{run: "heads {train} --out {here}/heads"',
            '{run: "heads", tasks: 2',
            "stage heads: tasks",
        ),
        (
            '{run: "heads {train} --out {here}/heads"',
            '{run: "heads", dir: x',
            "stage heads: only a stage with a config has a dir",
        ),
        (
            "when: {method: [ce]}",
            "when: {metod: [ce]}",
            "stage heads: when must give lists of values",
        ),
        (
            "when: {method: [ce]}",
            "when: {method: [cee]}",
            "stage heads: 'cee' in its when is no value of method",
        ),
        (
            "when: {method: [ce]}",
            "when: {method: ce}",
            "stage heads: when must give lists of values",
        ),
        ("  labeled: {", "  data: {", r"\{data\} is a parameter or a word already"),
        ("+{method}", "+{method}x", "no method '\\+cex', did you mean 'ce'"),
        ("config: moco_demo", 'config: "moco_{method}"', "no config 'moco_ce'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(grid, old, new, words):
    assert (HEAD + STAGES).count(old) == 1
    with pytest.raises(UserError, match=words) as caught:
        grid("demo_ce", (HEAD + STAGES).replace(old, new))
    assert "\n" not in str(caught.value)


def test_two_files_cannot_have_members_of_one_name(grid, tmp_path):
    (tmp_path / "again.yaml").write_text(HEAD + STAGES)
    with pytest.raises(UserError, match="pipelines again and trial both have a member 'demo_ce'"):
        grid("demo_ce")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("heads:seed=1", "stage heads is a command of lt_train, which has no config keys"),
        ("labeled:seed=1", "a command of data_prep"),
        ("haeds:seed=1", "no stage 'haeds'"),
    ],
)
def test_commands_have_no_keys_to_override(grid, override, words):
    with pytest.raises(UserError, match=words):
        grid("demo_ce", overrides=(override,))


# --- what is shown and run on this machine


def call(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["launch/local.py", *words])
    return exit_status("launch/local.py", local.main), *capsys.readouterr()


def test_list_shows_all_members_with_their_references_configs_and_methods(monkeypatch, capsys):
    status, out, errors = call(monkeypatch, capsys, "--list")
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert (status, errors) == (0, "")
    assert [
        "cifar10_lt_rotation_ldam_drw_100",
        "22.17",
        "CIFAR-10-LT at ratio 100, ldam_drw after rotation pre-training",
    ] in lines
    assert ["svhn_lt_focal_10", "-", "SVHN-LT at ratio 10, focal from scratch"] in lines
    assert any(line[:1] == ["classifier_cifar10_lt"] for line in lines) and any(
        line[:1] == ["+mixup"] for line in lines
    )


def test_help_stays_short_and_a_name_is_needed(monkeypatch, capsys):
    assert call(monkeypatch, capsys) == (
        2,
        "",
        "launch/local.py: error: name a config or a pipeline, or give --list\n",
    )
    for program in ("local", "slurm"):
        said = subprocess.run(
            [sys.executable, ROOT / "launch" / f"{program}.py", "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "--list" in said and "moco_demo" not in said


def test_stages_run_in_order_with_their_commands_and_prepared_sets_are_left(
    grid, monkeypatch, capsys, tmp_path
):
    """Ranks and data_prep are stand-ins here: the integration tests run them."""
    grid("demo_ce")
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(
        local, "_run_ranks", lambda stage, ranks: ran.append(stage.command[:2]) or 0
    )
    monkeypatch.setattr(local, "_run_module", lambda module, words: ran.append((module, *words)))
    assert call(monkeypatch, capsys, "demo_ce", "--ranks", "1")[0] == 0
    start, *trained, heads, report = ran
    assert start == ("data_prep", "demo", "--out", "data/demo") and [
        config for config, _ in trained
    ] == ["moco_demo", "classifier_demo"]
    assert heads == ("heads", "runs/demo_ce/train") and report == (
        "lt_train.report",
        "runs/demo_ce",
        "runs/demo/before",
        "--out",
        "runs/demo_ce",
    )
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "dataset.json").write_text("{}")
    ran.clear()
    _, _, said = call(monkeypatch, capsys, "demo_ce", "--ranks", "1")
    assert "stage 1/4: labeled: finished, skipped (data/demo)" in said and ran == [
        *trained,
        heads,
        report,
    ]
