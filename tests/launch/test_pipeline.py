"""Pipelines: kinds and order of stages, overrides for all or one of them, and what is refused."""

import json
from dataclasses import replace

import pytest

from data_prep import options
from launch import pipeline
from launch.pipeline import StageJob, load_experiment
from lt_train.config.load import load_config, to_dict, to_yaml
from lt_train.config.schema import Config
from lt_train.errors import UserError
from tests.launch.helpers import one_line


@pytest.mark.parametrize("name", ["demo", "unlabeled_cifar10"])
def test_every_pipeline_loads_with_stages_in_the_order_of_their_dependencies(name):
    experiment = load_experiment(name, [])
    done = []
    for stage in experiment.stages:
        assert set(stage.after) <= set(done)
        if stage.kind == "train":
            assert stage.resolve().run.dir == stage.run_dir == f"runs/{name}/{stage.name}"
        done.append(stage.name)
    assert len(set(done)) == len(done) > 1


def stage_configs(overrides: list[str]) -> dict[str, Config]:
    """Of the demo pipeline."""
    stages = load_experiment("demo", overrides).stages
    return {stage.name: stage.resolve() for stage in stages if stage.config}


def test_later_stages_start_from_the_folders_of_those_they_come_after():
    configs = stage_configs([])
    assert configs["pretrained"].model.init_from == configs["rotation"].run.dir
    assert configs["crt"].model.init_from == configs["pretrained"].run.dir
    assert configs["scratch"].model.init_from is None


def test_an_override_reaches_every_stage():
    after = stage_configs(["seed=9"])
    assert {config.seed for config in stage_configs([]).values()} == {0}
    assert {config.seed for config in after.values()} == {9}


def test_an_override_for_one_stage_reaches_only_that_one():
    before = stage_configs([])
    after = stage_configs(["epochs=2", "crt:epochs=3", "rotation:data.root=a:b"])
    epochs = {"scratch": 2, "rotation": 2, "pretrained": 2, "semi": 2, "crt": 3}
    assert {name: config.epochs for name, config in after.items()} == epochs
    assert {name for name in after if after[name].data != before[name].data} == {"rotation"}
    assert after["rotation"].data.root == "a:b"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["linear:epochs=3"], "no stage 'linear'; it has data, unlabeled, scratch, rotation, "),
        (["crt:epoch=3"], "unknown key 'epoch', did you mean 'epochs'"),
        (["epochs"], "key=value"),
        (["data:workers=3"], "stage data is a command of data_prep"),
    ],
)
def test_a_wrong_override_of_a_pipeline_is_named_before_anything_runs(overrides, words):
    with pytest.raises(UserError, match=words):
        load_experiment("demo", overrides)


def test_a_config_is_a_pipeline_of_one():
    experiment = load_experiment("moco_demo", ["epochs=2"])
    (stage,) = experiment.stages
    assert (stage.name, stage.run_dir, stage.after) == ("moco_demo", "runs/moco_demo,epochs=2", ())
    assert stage.resolve().epochs == 2


def test_an_unknown_experiment_names_the_nearest_and_where_all_are():
    message = "no config or pipeline 'demmo'.*did you mean 'demo'.*local.py --list shows all"
    with pytest.raises(UserError, match=message):
        load_experiment("demmo", [])


# --- a pipeline of the test's own


@pytest.fixture
def pipeline_of(tmp_path, monkeypatch):
    """Function that loads a pipeline named "p" whose stages are the given YAML lines."""
    monkeypatch.setattr(pipeline, "PIPELINE_DIR", tmp_path)

    def load(stages: str, overrides: tuple[str, ...] = (), more: tuple[str, ...] = ()):
        (tmp_path / "p.yaml").write_text(f"description: one\nstages:\n{stages}")
        return load_experiment("p", list(overrides), more)

    return load


STAGES = """\
  data: {prepare: "demo --out data/x --seed 3", tasks: 2}
  known:
    config: sourcing_cifar10
    after: [data]
    set: {data.root: "{data}"}
    resources: {nodes: 2}
  scores:
    score: sourcing_cifar10
    after: [known]
    set: {run.dir: "{known}", seed: 4}
    tasks: 5
"""


def test_stages_of_all_three_kinds(pipeline_of):
    experiment = pipeline_of(
        STAGES, ("epochs=2", "scores:epochs=3", "known:data.root=a:b"), ("run.log_every=3",)
    )
    data, known, scores = experiment.stages
    assert (experiment.name, experiment.root, experiment.has_report) == (
        "p,epochs=2,scores@epochs=3",
        "runs/p,epochs=2,scores@epochs=3",
        True,
    )
    assert (data.kind, data.run_dir, data.tasks, data.command) == (
        "prepare",
        "data/x",
        2,
        ("demo", "--out", "data/x", "--seed", "3"),
    )
    assert (known.kind, known.run_dir, known.after, known.resources) == (
        "train",
        "runs/p,epochs=2,scores@epochs=3/known",
        ("data",),
        {"nodes": 2},
    )
    assert known.command == (
        "sourcing_cifar10",
        "run.dir=runs/p,epochs=2,scores@epochs=3/known",
        "data.root=data/x",
        "epochs=2",
        "data.root=a:b",
        "run.log_every=3",
    )
    assert (scores.kind, scores.run_dir, scores.tasks) == ("score", known.run_dir, 5)
    assert scores.command == (
        "score",
        "sourcing_cifar10",
        "run.dir=runs/p,epochs=2,scores@epochs=3/known",
        "seed=4",
        "epochs=2",
        "epochs=3",
        "run.log_every=3",
    )


@pytest.mark.parametrize(
    ("stages", "overrides", "words"),
    [
        ("", (), "pipeline p.*stages"),
        ("  a: {}\n", (), "stage a must have one of config, prepare, score"),
        ("  a:\n", (), "stage a does not hold"),
        ("  a: {config: moco_demo, prepare: demo --out x}\n", (), "must have one of"),
        ("  a: {config: moco_demo, affter: []}\n", (), "unknown key 'affter'"),
        ("  a: {config: moco_demo, after: [b]}\n", (), "comes after 'b'"),
        ("  a: {config: moco_demo, after: b}\n", (), "after must be a list"),
        ("  a: {config: moco_demo, tasks: 2}\n", (), "tasks"),
        ("  a: {config: moco_demo, tasks: many}\n", (), "tasks must be a number"),
        ("  a: {config: moco_demo, set: {data.root: '{b}'}}\n", (), r"cannot fill in '\{b\}'"),
        ("  a: {config: moco_demo, set: {data.rot: x}}\n", (), "unknown key 'data.rot'"),
        ("  a: {config: moco_demo, why: [b]}\n", (), "why must be text"),
        ("  a: {config: moco_demo, why: '{b}'}\n", (), r"cannot fill in '\{b\}'"),
        ("  a: {config: moco_demo}\ncompare: {x: a}\n", (), "compare must give two stages"),
        ("  a: {config: moco_demo}\ncompare: {x: [a, b]}\n", (), "compare must give two stages"),
        ("  a: {config: moco_dmo}\n", (), "did you mean 'moco_demo'"),
        ("  a/b: {config: moco_demo}\n", (), "letters"),
        ("  a: {prepare: demo}\n", (), "no --out"),
        ("  a: {prepare: demo --out}\n", (), "no --out"),
        ("  a: {prepare: 'demo --out \"x'}\n", (), "cannot read"),
        ("  a: {config: moco_demo}\n", ("run.dir=x",), "run.dir cannot be changed"),
        ("  a: {config: moco_demo}\n", ("a:run.dir=x",), "run.dir cannot be changed"),
        ("  a: {config: moco_demo}\n", ("b:epochs=1",), "no stage 'b'; it has a"),
    ],
)
def test_a_wrong_pipeline_is_one_line_that_names_the_mistake(pipeline_of, stages, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        pipeline_of(stages, overrides)
    one_line(caught)


def test_a_stage_is_finished_when_its_last_file_is_there(tmp_path):
    train, prepare, score = (
        StageJob("x", kind, str(tmp_path), config="classifier_demo")
        for kind in ("train", "prepare", "score")
    )
    (tmp_path / "config.yaml").write_text(to_yaml(load_config("classifier_demo")))
    odd = ["", "{}", "[]", "null", '["steps"]', "[" * 10**5, "\xff"]
    for content, finished in (*((content, False) for content in odd), ('{"steps": 3}', True)):
        (tmp_path / "result.json").write_bytes(content.encode("latin-1"))
        assert train.is_finished() == finished and not prepare.is_finished()
    assert not replace(train, overrides=("epochs=99",)).is_finished(), "asked for more since"
    # asked for more, begun and not ended: config.yaml is the new one's, result.json the old one's
    longer = replace(train, overrides=("max_steps=9",))
    (tmp_path / "config.yaml").write_text(to_yaml(longer.resolve()))
    for config, finished in ((train.resolve(), False), (longer.resolve(), True)):
        result = {"steps": 3, "config": to_dict(config)}
        (tmp_path / "result.json").write_text(json.dumps(result))
        assert longer.is_finished() == finished
    assert not score.is_finished()


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("demo --largest 50 --ratio 5", True),
        ("demo --ratio=5 --workers 8 --out {out} --largest 50 --max-rejected=1 --dali-index", True),
        ("demo --largest 51 --ratio 5", False),
        ("demo --largest 50", False),
        ("demo --largest 50 --ratio 5 --seed 1", False),
        ("folder --largest 50 --ratio 5", False),
    ],
)
def test_a_set_is_finished_if_the_very_command_has_made_it(words, same, tmp_path):
    """Of any other, data_prep itself says whether it is the same set, or refuses."""
    stage = StageJob("x", "prepare", str(tmp_path), words=tuple(words.split()))
    assert not stage.is_finished()
    made_by = {"command": "python -m data_prep demo --largest 50 --ratio 5"}
    for content, finished in (({"made_by": made_by}, same), ({"made_by": 3}, False), ({}, False)):
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        assert stage.is_finished() == finished


def test_what_does_not_count_is_what_data_prep_does_not_count():
    named = {f"--{name.replace('_', '-')}" for name in options.OPERATIONAL}
    assert set(pipeline.OPERATIONAL) == named - {"--imports", "--command", "--benchmark"}


def test_seeds_of_a_run_with_a_folder_of_its_own_are_told_apart_too():
    folders = [
        load_experiment("moco_demo", words, [f"seed={seed}"]).root
        for words, seed in ((["run.dir=mine"], 3), ([], 3), (["optim.lr=0.1", "view.size=32"], 3))
    ]
    assert folders == [
        "mine,seed=3",
        "runs/moco_demo,seed=3",
        "runs/moco_demo,optim.lr=0.1,seed=3,view.size=32",
    ]
