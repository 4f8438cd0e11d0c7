"""Configs: validation that names the mistake, the chain of files and overrides, and pipelines."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch.pipeline import list_pipelines, load_experiment
from lt_train.config.load import (
    CONFIG_DIR,
    find_config,
    flatten,
    list_configs,
    list_variants,
    load_config,
    to_dict,
    to_yaml,
)
from lt_train.config.schema import Config, ViewConfig
from lt_train.errors import UserError

FILES = sorted(CONFIG_DIR.glob("*.yaml")) + sorted((CONFIG_DIR / "base").glob("*.yaml"))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture
def empty(tmp_path) -> str:
    """A config file that changes nothing."""
    return write(tmp_path / "empty.yaml", "description: nothing\n")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("moco.temperture", "moco.temperature"),
        ("global_batchsize", "global_batch_size"),
        ("view.flip_prob", "view.flip_probability"),
        ("optm.lr", "optim.lr"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(empty, tmp_path, key, nearest):
    """On the command line and in a file."""
    message = re.escape(f"unknown key '{key}', did you mean '{nearest}'?")
    with pytest.raises(UserError, match=message):
        load_config(empty, [f"{key}=1"])
    group, _, name = key.rpartition(".")
    path = write(tmp_path / "wrong.yaml", f"{group}:\n  {name}: 1\n" if group else f"{name}: 1\n")
    with pytest.raises(UserError, match=rf"wrong\.yaml: {message}"):
        load_config(path)


def test_a_key_like_no_other_is_named_without_a_guess(empty):
    with pytest.raises(UserError, match="unknown key 'zzzzqqq'$"):
        load_config(empty, ["zzzzqqq=1"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr=fast", "optim.lr.*'fast'"),
        ("seed=1.5", "seed.*1.5"),
        ("seed=true", "seed.*True"),
        ("view.size=64.0", "view.size"),
        ("optim.lr=null", "optim.lr.*None"),
        ("method=mocco", "stage.*'mocco'.*moco"),
        ("sampler.name=random", "sampler.name.*class_balanced"),
        ("view.scale=0.5", "view.scale"),
        ("view.scale=[0.5]", "view.scale.*length"),
        ("view.jitter=[a, b, c, d]", r"view\.jitter(?!.*\$VALUE)"),
        ("optim=3", "'optim' is a group"),
        ("optim.lr", "'optim.lr' is not of the form key=value"),
        ("=3", "key=value"),
        ("data.root=[", "override"),
        ("data.root=${nothing}", "nothing"),
    ],
)
def test_a_wrong_value_is_named(empty, override, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(empty, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["epochs=0"], "epochs must be more than 0"),
        (["global_batch_size=-4"], "global_batch_size"),
        (["max_steps=0"], "max_steps"),
        (["optim.step_epochs=[160, 180]", "optim.step_factors=[0.1]"], "step_factors"),
        (["method=crt"], "model.init_from"),
        (["engine.name=deepspeed", "engine.zero_stage=3"], "zero_stage=3"),
        (["eval_view.crop=pad"], "eval_view.crop"),
        (["view.crop=pad"], "view.crop=pad.*resident"),
        (["data.loader=resident", "view.blur_probability=0.5"], "blur_probability.*dali"),
        (["view.scale=[0.9,0.1]"], "view.scale.*0.9"),
        (["view.size=0"], "view.size must be more than 0"),
        (["second_view.crop=pad"], "second_view.crop=pad.*resident"),
        (
            ["second_view.randaugment_magnitude=31"],
            "second_view.randaugment_magnitude from 0 to 30",
        ),
        (["optim.lr=-1"], "optim.lr must be 0 or more"),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.nesterov needs optim.momentum"),
        (["moco.bn_splits=257"], "moco.bn_splits.*257"),
        (["eval_view.resize=200"], "eval_view.size must not be larger than eval_view.resize"),
        (["engine.zero_stage=4"], "engine.zero_stage must be 0, 1 or 2, not 4"),
        (["compress=0"], "compress must be more than 0"),
        (["classifier.scale=0"], "classifier.scale must be more than 0"),
        (["proco.temperature=0"], "proco.temperature must be more than 0"),
        # two data sets
        (["unlabeled.share=1.0"], "unlabeled.share must be more than 0 and less than 1"),
        (["unlabeled.max_samples=0"], "unlabeled.max_samples must be at least 1"),
        (["unlabeled.root=pool"], "the classifier stage takes one data set"),
        (["method=sourcing"], "sourcing stage tells known classes from a pool: set unlabeled.root"),
        (["method=semi"], "the semi stage trains on two data sets: set unlabeled.root"),
        (["method=fixmatch"], "the fixmatch stage trains on two data sets: set unlabeled.root"),
        (
            ["method=semi", "unlabeled.root=pool"],
            "semi stage needs pseudo-labels: set unlabeled.label_column",
        ),
        (
            ["method=fixmatch", "unlabeled.root=pool", "unlabeled.label_column=pseudo_label"],
            "the fixmatch stage takes no labels",
        ),
        (
            ["method=sourcing", "unlabeled.root=pool", "unlabeled.share=null"],
            "unlabeled.share=null samples both sets as one",
        ),
        # methods
        (["loss.name=ldam"], "loss.name=ldam.*set classifier.head=cosine"),
        (["+focal", "+label_smoothing"], "loss.name=focal is not defined for smoothed labels"),
        (
            ["+focal", "+label_aware_smoothing"],
            "loss.name=focal is not defined for smoothed labels",
        ),
        (["+label_smoothing", "+label_aware_smoothing"], "exclude each other"),
        (["epochs=90", "+drw"], "loss.weights_from_epoch=160 is not before the end of 90 epochs"),
        (["loss.label_smoothing=1.0"], "loss.label_smoothing must be from 0 to below 1"),
        (
            ["loss.label_aware_smoothing=[0.3,-0.1]"],
            "loss.label_aware_smoothing must be from 0 to below 1",
        ),
        (["loss.beta=1.0"], "loss.beta must be from 0 to below 1, not 1.0"),
        (["sampler.beta=-0.1"], "sampler.beta must be from 0 to below 1, not -0.1"),
        (["moco.ema_momentum=1.0"], "moco.ema_momentum must be from 0 to below 1"),
        (["classifier.mixup_alpha=-1"], "classifier.mixup_alpha, .* must be 0 or more"),
        (["loss.gamma=-1"], "loss.gamma .* must be 0 or more"),
        (["fixmatch.weight=-1"], "fixmatch.weight .* must be 0 or more"),
        (["fixmatch.threshold=1.5"], "fixmatch.threshold .* from 0 to 1, not 1.5"),
        (["method=rotation", "+mixup"], "mixup and CutMix are for the stages .*, not rotation"),
        (["method=experts", "+balanced_softmax"], "the experts stage has losses of its own"),
        (["method=experts", "+inverse_weights"], "the experts stage has losses of its own"),
        (["method=experts", "+label_smoothing"], "the experts stage has losses of its own"),
        (["method=experts", "experts.taus=[]"], "experts.taus must hold a number for each expert"),
        (
            ["model.init_from=run", "method=lws", "+cosine"],
            "method=lws .* set classifier.head=linear",
        ),
        (["proco.dim=8"], "proco.dim must be at least 16, not 8"),
        (
            ["method=proco", "second_view.size=32"],
            "the proco stage .* second_view.size must be view.size",
        ),
        (
            ["method=fixmatch", "unlabeled.root=pool", "second_view.size=32"],
            "the fixmatch stage .* second_view.size must be view.size",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(empty, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(empty, overrides)
    assert "\n" not in str(caught.value)


# --- methods and compress


def test_a_method_goes_over_the_config_and_under_what_comes_after_it(empty):
    config = load_config(
        empty, ["epochs=200", "loss.max_margin=0.4", "+ldam_drw", "loss.weights_from_epoch=70"]
    )
    assert (config.loss.name, config.loss.class_weights, config.classifier.head) == (
        "ldam",
        "effective_number",
        "cosine",
    )
    assert (config.loss.max_margin, config.loss.weights_from_epoch) == (0.4, 70)
    assert (
        load_config(
            empty, ["epochs=200", "loss.weights_from_epoch=70", "+ldam_drw"]
        ).loss.weights_from_epoch
        == 160
    )


def test_the_run_folder_is_named_after_the_methods_too(empty):
    assert (
        load_config(empty, ["seed=3", "+ldam", "+resample"]).run.dir == "runs/empty+ldam+resample"
    )


@pytest.mark.parametrize("name", [name for name, _ in list_variants()])
def test_every_method_changes_a_config_or_states_the_defaults_and_says_what_it_is(empty, name):
    """Each on its own."""
    common = ["run.dir=somewhere", "epochs=200"]
    config = load_config(empty, [f"+{name}", *common])
    assert (config == load_config(empty, common)) == (name == "ce")
    assert dict(list_variants())[name]


def test_an_unknown_method_names_the_nearest(empty):
    with pytest.raises(
        UserError,
        match=r"no method '\+ldam_dwr', did you mean 'ldam_drw'\?; known: \+balanced_softmax, ",
    ):
        load_config(empty, ["+ldam_dwr"])


def test_compress_divides_every_number_of_epochs_and_nothing_else(empty):
    epochs = [
        "epochs=200",
        "optim.warmup_epochs=5",
        "optim.step_epochs=[160,180]",
        "optim.step_factors=[0.1,0.01]",
        "loss.weights_from_epoch=160",
    ]
    whole, short = load_config(empty, epochs), load_config(empty, [*epochs, "compress=20"])
    before, after = flatten(to_dict(whole)), flatten(to_dict(short))
    assert {key: value for key, value in after.items() if value != before[key]} == {
        "epochs": 10, "optim.warmup_epochs": 0.25, "optim.step_epochs": [8, 9], "loss.weights_from_epoch": 8, "run.evaluate_every": 0.5,
    }  # fmt: skip


def test_a_saved_compressed_config_is_not_compressed_again(empty, tmp_path):
    config = load_config(empty, ["compress=3"])
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config


def test_the_second_view_starts_as_the_first_and_goes_its_own_way(empty, tmp_path):
    assert load_config(empty).second_view is None
    config = load_config(
        empty,
        ["view.flip_probability=0.1", "second_view.randaugment_ops=2", "view.flip_probability=0.2"],
    )
    assert config.second_view == ViewConfig(flip_probability=0.1, randaugment_ops=2), (
        "it starts as the first view was then"
    )
    assert config.view == ViewConfig(flip_probability=0.2)
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config
    assert (
        load_config(
            write(tmp_path / "config.yaml", to_yaml(config)), ["second_view=null"]
        ).second_view
        is None
    )
    with pytest.raises(
        UserError, match=r"unknown key 'second_view.sise', did you mean 'second_view.size'\?"
    ):
        load_config(empty, ["second_view.sise=32"])


def test_defaults_then_bases_then_the_file_then_overrides(tmp_path):
    write(
        tmp_path / "ground.yaml",
        "seed: 1\nepochs: 1\nglobal_batch_size: 16\noptim: {lr: 1.0, momentum: 0.5}\n",
    )
    write(tmp_path / "middle.yaml", "base: ground\nseed: 2\nepochs: 2\noptim: {lr: 2.0}\n")
    top = write(tmp_path / "top.yaml", "base: middle\nseed: 3\n")
    config = load_config(top, ["seed=4", "view.scale=[0.2, 0.9]"])
    assert (config.seed, config.epochs, config.global_batch_size) == (4, 2.0, 16)
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (
        2.0,
        0.5,
        Config().optim.weight_decay,
    )
    assert config.view.scale == (0.2, 0.9)
    changed = {
        key
        for key, value in flatten(to_dict(config)).items()
        if flatten(to_dict(Config()))[key] != value
    }
    assert changed == {
        "seed",
        "epochs",
        "global_batch_size",
        "optim.lr",
        "optim.momentum",
        "view.scale",
        "run.dir",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: nowhere\n", "base 'nowhere'"),
        ("base: itself\n", "comes back to itself"),
        ("epochs: [\n", "cannot read"),
        ("- a\n", "'key: value' lines"),
        ("3: a\n", "unknown key '3'"),
        ("optim:\n  3: a\n", "unknown key 'optim.3'"),
        ("epochs: soon\n", "epochs.*'soon'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(write(tmp_path / "itself.yaml", text))
    assert "itself.yaml" in str(caught.value)


def test_the_run_folder_follows_from_the_name(empty):
    assert load_config(empty).run.dir == "runs/empty"
    assert load_config(empty, ["run.dir=elsewhere"]).run.dir == "elsewhere"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads_and_survives_being_saved(path, tmp_path):
    """crt needs nothing more on the command line, and what is saved with a run says all there is."""
    config = load_config(str(path))
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config


def test_a_saved_config_does_not_depend_on_the_environment_any_more(tmp_path, monkeypatch):
    monkeypatch.setenv("LT_TRAIN_DATA", "/shards")
    config = load_config("moco_imagenet_lt")
    assert config.data.root == "/shards/imagenet_lt"
    monkeypatch.setenv("LT_TRAIN_DATA", "/elsewhere")
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config


def test_a_config_cannot_be_changed(empty):
    config = load_config(empty)
    with pytest.raises(AttributeError):
        config.seed = 1
    with pytest.raises(AttributeError):
        config.optim.lr = 1.0
    assert replace(config, seed=1).seed == 1


def test_every_config_has_a_description():
    assert all(description for _, description in [*list_configs(), *list_pipelines()])


def test_a_config_is_found_by_name_and_by_path():
    assert (
        find_config("moco_demo")
        == CONFIG_DIR / "moco_demo.yaml"
        == find_config(str(CONFIG_DIR / "moco_demo.yaml"))
    )


def test_an_unknown_config_names_the_nearest_and_where_all_are():
    with pytest.raises(
        UserError,
        match=(
            "no config 'classifer_demo'.*did you mean 'classifier_demo'.*lt_train --help shows all"
        ),
    ):
        load_config("classifer_demo")


# --- pipelines


@pytest.mark.parametrize("name", ["demo", "unlabeled_cifar10"])
def test_every_pipeline_loads_with_stages_in_the_order_of_their_dependencies(name):
    experiment = load_experiment(name, [])
    done = []
    for stage in experiment.stages:
        assert set(stage.after) <= set(done)
        if stage.kind == "train":
            assert (
                load_config(stage.config, list(stage.overrides)).run.dir
                == stage.run_dir
                == f"runs/{name}/{stage.name}"
            )
        done.append(stage.name)
    assert len(set(done)) == len(done) > 1


def stage_configs(overrides: list[str]) -> dict[str, Config]:
    """Of the demo pipeline."""
    return {
        stage.name: load_config(stage.config, list(stage.overrides))
        for stage in load_experiment("demo", overrides).stages
        if stage.config
    }


def test_later_stages_start_from_the_folders_of_those_they_come_after():
    configs = stage_configs([])
    assert configs["pretrained"].model.init_from == configs["moco"].run.dir
    assert configs["crt"].model.init_from == configs["pretrained"].run.dir
    assert configs["scratch"].model.init_from is None


def test_an_override_reaches_every_stage():
    before, after = stage_configs([]), stage_configs(["seed=9"])
    assert after == {name: replace(config, seed=9) for name, config in before.items()}


def test_an_override_for_one_stage_reaches_only_that_one():
    before, after = (
        stage_configs([]),
        stage_configs(["epochs=2", "crt:epochs=3", "moco:data.root=a:b"]),
    )
    assert {name: config.epochs for name, config in after.items()} == {
        "moco": 2,
        "scratch": 2,
        "pretrained": 2,
        "crt": 3,
    }
    assert {name for name in after if after[name].data != before[name].data} == {"moco"}
    assert after["moco"].data.root == "a:b"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["linear:epochs=3"], "no stage 'linear'; it has data, moco, scratch, pretrained, crt"),
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
    assert (stage.name, stage.run_dir, stage.after) == ("moco_demo", "runs/moco_demo", ())
    assert load_config(stage.config, list(stage.overrides)).epochs == 2


def test_an_unknown_experiment_names_the_nearest_and_where_all_are():
    with pytest.raises(
        UserError,
        match="no config or pipeline 'demmo'.*did you mean 'demo'.*local.py --list shows all",
    ):
        load_experiment("demmo", [])
