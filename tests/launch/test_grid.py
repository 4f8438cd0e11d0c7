"""Pipelines with parameters: their members, what stands in braces, stages that run a command."""

import pytest

from launch import pipeline
from lt_train.config.load import load_config
from lt_train.errors import UserError
from tests.launch.helpers import HEAD, STAGES


def test_a_member_is_an_ordinary_pipeline(grid):
    experiment = grid("demo_ce", overrides=("compress=2",), more=("train:seed=3",))
    labeled, before, train, posthoc = experiment.stages
    assert (experiment.name, experiment.root, experiment.has_report) == (
        "demo_ce,compress=2,train@seed=3",
        "runs/demo_ce,compress=2,train@seed=3",
        True,
    )
    assert labeled.command == ("demo", "--out", "data/demo")
    assert before.command == (
        "moco_demo",
        "run.dir=runs/demo/before,compress=2",
        "data.root=data/demo",
        "compress=2",
    )
    root = "runs/demo_ce,compress=2,train@seed=3/train"
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
        37.5,
        root,
    )
    assert (posthoc.kind, posthoc.after, posthoc.resources) == (
        "run",
        ("train",),
        {"nodes": 1},
    ) and not posthoc.is_finished()
    assert posthoc.command == (
        "posthoc",
        root,
        "--out",
        "runs/demo_ce,compress=2,train@seed=3/posthoc",
    )


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
            "posthoc {train} --out {here}",
            "posthoc {trian} --out {here}",
            r"stage posthoc: cannot fill in .*of .*here, labeled, before, train$",
        ),
        (
            "posthoc {train} --out {here}",
            "posthoc {train --out {here}",
            "stage posthoc: cannot fill in",
        ),
        (
            'run: "posthoc {train} --out {here}/posthoc"',
            'run: ""',
            "stage posthoc: run must be one of evaluate, posthoc, pseudo_label",
        ),
        (
            '{run: "posthoc {train} --out {here}/posthoc"',
            '{run: "posthoc", set: {seed: 1}',
            "stage posthoc: 'set' is for configs",
        ),
        (
            '{run: "posthoc {train} --out {here}/posthoc"',
            '{run: "posthoc", tasks: 2',
            "stage posthoc: tasks",
        ),
        (
            '{run: "posthoc {train} --out {here}/posthoc"',
            '{run: "posthoc", dir: x',
            "stage posthoc: only a stage with a config has a dir",
        ),
        (
            "when: {method: [ce]}",
            "when: {metod: [ce]}",
            "stage posthoc: when must give lists of values",
        ),
        (
            "when: {method: [ce]}",
            "when: {method: [cee]}",
            "stage posthoc: 'cee' in its when is no value of method",
        ),
        (
            "when: {method: [ce]}",
            "when: {method: ce}",
            "stage posthoc: when must give lists of values",
        ),
        ("  labeled: {", "  data: {", r"\{data\} is a parameter or a word already"),
        ("+{method}", "+{method}x", "no variant '\\+cex', did you mean '\\+ce'"),
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
        ("posthoc:seed=1", "stage posthoc is a command of lt_train, which has no config keys"),
        ("labeled:seed=1", "a command of data_prep"),
        ("posthok:seed=1", "no stage 'posthok'"),
    ],
)
def test_commands_have_no_keys_to_override(grid, override, words):
    with pytest.raises(UserError, match=words):
        grid("demo_ce", overrides=(override,))
