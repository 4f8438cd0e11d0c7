"""Where configs, bases and folders are found: by name, by path, at home, by the environment."""

import re
from pathlib import Path

import pytest

from lt_train.config import load
from lt_train.config.load import PATHS, find_config, flatten, load_config, to_dict
from lt_train.errors import UserError


def test_home_is_expanded_in_paths_and_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("run: {dir: ~/runs/a}\ndescription: ~/x\n")
    words = [f"{key}=~/some.safetensors" for key in PATHS if key != "run.dir"]
    config = load_config("~/own.yaml", ["method=fixmatch", *words])
    values = flatten(to_dict(config))
    expected = {key: f"{tmp_path}/some.safetensors" for key in PATHS} | {
        "run.dir": f"{tmp_path}/runs/a"
    }
    assert {key: values[key] for key in PATHS} == expected
    assert config.description == "~/x", "only what begins paths"


def test_a_url_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("LT_TRAIN_DATA", "s3://bucket/sets")
    (tmp_path / "own.yaml").write_text(
        "data: {root: '${oc.env:LT_TRAIN_DATA,data}/a', cache_dir: /scratch}\n"
    )
    assert load_config(str(tmp_path / "own.yaml")).data.root == "s3://bucket/sets/a"
    given = ["data.root=gs://bucket//a", "data.cache_dir=/scratch"]
    assert load_config("classifier_folder", given).data.root == "gs://bucket//a"


def test_an_own_config_builds_on_a_shipped_one_from_anywhere(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: classifier_folder\nseed: 3\n")
    shipped = load_config("classifier_folder", ["seed=3"])
    mine = load_config(str(tmp_path / "mine.yaml"), [f"run.dir={shipped.run.dir}"])
    assert mine == shipped


def test_a_base_beside_the_file_comes_before_a_shipped_one_of_its_name(tmp_path):
    (tmp_path / "classifier_folder.yaml").write_text("base: classifier_folder\nseed: 5\n")
    (tmp_path / "mine.yaml").write_text("base: classifier_folder\n")
    config = load_config(str(tmp_path / "mine.yaml"))
    assert config.seed == 5
    assert config.description == load_config("classifier_folder").description


def test_a_circle_of_bases_is_found_by_other_names_of_its_files_too(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("base: sub/../b\n")
    (tmp_path / "b.yaml").write_text("base: sub/../a\n")
    with pytest.raises(UserError, match="the chain of 'base' files comes back to itself"):
        load_config(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("base", ["nowhere", "n" * 300, '"\\0"', "[a]"])
def test_a_base_that_is_nowhere_is_named(tmp_path, base):
    (tmp_path / "own.yaml").write_text(f"base: {base}\n")
    with pytest.raises(UserError, match=r"own\.yaml: its base '.*' is neither .* nor in configs/"):
        load_config(str(tmp_path / "own.yaml"))


def test_what_is_no_config_file_is_told_by_what_it_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name, words in ((run, f"'{run}' is a folder, not a config"), (tmp_path / "x", "no config")):
        with pytest.raises(UserError, match=re.escape(words)):
            find_config(str(name))
    (run / "config.yaml").write_text("seed: 2\n")
    with pytest.raises(UserError, match=f"is a run's folder: name its config, {run}/config.yaml"):
        find_config(str(run))
    (run / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"notes\.txt' is not taken for a config.*\.yaml"):
        find_config(str(run / "notes.txt"))


def test_a_command_is_suggested_where_commands_are_known():
    with pytest.raises(UserError, match="no config or command 'evalute'.* mean 'evaluate'"):
        find_config("evalute", commands=["evaluate", "report"])


@pytest.mark.parametrize(
    "reference",
    ["${oc.env:SECRET}", "${oc.env:${x}}", "${oc.env:SECRET,x}", "${oc.env:LT_TRAIN_DATA2}"]
    + ["${ oc.env:SECRET}", "${oc.env: SECRET}", "${oc.decode:'1'}", "${oc.create:x}", "a${"],
)
def test_no_other_variable_of_the_environment_can_get_into_a_config(
    tmp_path, monkeypatch, reference
):
    monkeypatch.setenv("SECRET", "token")
    (tmp_path / "own.yaml").write_text(f'data:\n  root: "{reference}"\n')
    message = "data.root: .* cannot be looked up: .*LT_TRAIN_DATA,DEFAULT, and no other variable"
    for name, words in (
        ("classifier_demo", [f"data.root={reference}"]),
        (tmp_path / "own.yaml", []),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_config(str(name), words)
        assert "token" not in str(caught.value)


def test_other_keys_and_the_data_folder_can_be_referred_to(monkeypatch):
    monkeypatch.setenv("LT_TRAIN_DATA", "/shards")
    words = ["run.dir=runs/${method}-${seed}", "data.root=${oc.env:LT_TRAIN_DATA,data}/x"]
    config = load_config("classifier_demo", [*words, "unlabeled.split=${data.train_split}"])
    assert (config.run.dir, config.data.root) == ("runs/classifier-0", "/shards/x")
    assert config.unlabeled.split == "train"


def test_a_literal_reference_is_refused_as_config_yaml_could_not_hold_it(monkeypatch):
    monkeypatch.setenv("LT_TRAIN_DATA", "/${seed}")
    with pytest.raises(UserError, match="data.root must not hold a literal"):
        load_config("classifier_demo", ["data.root=${oc.env:LT_TRAIN_DATA}"])


def test_every_path_of_the_schema_is_known_as_one():
    keys = flatten(to_dict(load_config("classifier_demo")))
    ends = (".root", "dir", "init_from", "classifier.init")
    assert {key for key in keys if key.endswith(ends)} == set(PATHS)
    assert Path(load.CONFIG_DIR).is_dir()
