"""Default folders: as many as there are runs, and the same for the same run."""

import os

import pytest

from lt_train.config.load import load_config
from lt_train.config.run_name import LONGEST, override_name

NAME = "classifier_demo"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], ""),
        (["seed=1", "optim.lr=5e-2"], ",optim.lr=0.05,seed=1"),
        (["optim.lr=0.05", "seed=3", "seed=1"], ",optim.lr=0.05,seed=1"),
        (["optim={lr: 0.05}", "epochs=2.0"], ",epochs=2,optim.lr=0.05"),
        (
            ["data.max_samples=100", "engine.cpu_threads=2", "data.decode=cpu"],
            ",data.max_samples=100",
        ),
        (["seed=1", "+ldam_drw", "+ce"], "+ldam_drw+ce,seed=1"),
        (["optim.step_epochs=[160, 180.5]"], ",optim.step_epochs=160-180.5"),
        (
            ["optim.nesterov=on", "model.init_from=null"],
            ",model.init_from=null,optim.nesterov=true",
        ),
        (["crt:epochs=2", "epochs=3", "moco:+ce"], "+moco@ce,crt@epochs=2,epochs=3"),
    ],
    ids=str,
)
def test_the_overrides_stand_in_the_name_in_one_order(overrides, name):
    assert override_name(overrides) == name


FREE = (
    "max_steps=5 run.log_every=1 resume.enabled=false data.root=a/b unlabeled.root=x "
    "data.root=s3://bucket/a/b data.cache_dir=/scratch data.cache_gb=500 crt:max_steps=3"
)


@pytest.mark.parametrize("override", FREE.split())
def test_what_changes_nothing_that_is_learnt_and_places_are_left_out(override):
    assert override_name([override]) == ""


def test_what_a_name_cannot_hold_is_told_by_a_digest():
    one, other = (override_name([f"model.init_from={path}"]) for path in ("runs/a b", "runs/a/b"))
    assert one.startswith(",model.init_from=runs-a-b-") and one != other
    long = [f"optim.step_epochs=[{','.join(map(str, range(n)))}]" for n in (90, 91)]
    names = [override_name([word]) for word in long]
    assert len(set(names)) == 2 and max(map(len, names)) == LONGEST


def test_a_sweep_has_a_folder_a_run_and_the_same_command_finds_its_own():
    sweep = [[f"seed={seed}", f"optim.lr={lr}"] for seed in (0, 1) for lr in (0.1, 0.2)]
    folders = [load_config(NAME, words).run.dir for words in sweep]
    assert folders[0] == "runs/classifier_demo,optim.lr=0.1,seed=0" and len(set(folders)) == 4
    assert {os.path.dirname(folder) for folder in folders} == {"runs"}
    assert load_config(NAME, ["optim.lr=1e-1", "seed=0", "max_steps=3"]).run.dir == folders[0]
    assert load_config(NAME, ["data.root=elsewhere"]).run.dir == f"runs/{NAME}"
