"""Configs: mistakes that are named, the chain of files and overrides, variants and compress."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch.pipeline import list_pipelines
from lt_train.config.load import (
    CONFIG_DIR,
    find_config,
    flatten,
    list_configs,
    list_variants,
    load_config,
    read_yaml,
    to_dict,
    to_yaml,
)
from lt_train.config.schema import Config, ViewConfig
from lt_train.errors import UserError

FILES = sorted(CONFIG_DIR.glob("*.yaml")) + sorted((CONFIG_DIR / "base").glob("*.yaml"))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def changes(before: Config, after: Config) -> dict:
    """The keys that differ, with their later values."""
    old, new = flatten(to_dict(before)), flatten(to_dict(after))
    return {key: value for key, value in new.items() if value != old[key]}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("moco.temperture", "moco.temperature"),
        ("global_batchsize", "global_batch_size"),
        ("view.flip_prob", "view.flip_probability"),
        ("optm.lr", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("batch_size", "global_batch_size"),
        ("num_epochs", "epochs"),
        ("model.arch", "model.backbone"),
        ("optim.wd", "optim.weight_decay"),
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
        ("seed=true", "seed takes a whole number.*, not 'true'"),
        ("view.size=64.0", "view.size"),
        ("optim.lr=null", "optim.lr takes a number, 0 or more, not 'null'"),
        ("method=mocco", "method: there is no 'mocco', did you mean 'moco'"),
        ("sampler.name=random", "sampler.name.*class_balanced"),
        ("view.scale=0.5", "view.scale"),
        ("view.scale=[0.5]", "view.scale takes a list of 2, .*, not '.0.5.'"),
        ("view.jitter=[a, b, c, d]", r"view\.jitter(?!.*\$VALUE)"),
        ("optim=3", "'optim' is a group"),
        ("optim.lr", "'optim.lr' is not of the form key=value"),
        ("=3", "key=value"),
        ("view.scale=[", "cannot read the override"),
        ("view.scale[0]=x", "unknown key 'view.scale.0.', did you mean 'view.scale'"),
        ("[=1", "unknown key '.'"),
        ("a..b=1", "unknown key 'a..b'"),
        ("moco.dim=!!int a", "cannot read the override.*'a' is no int"),
        ("moco.dim=!!set {a}", "'set'"),
        ("optim.nesterov=5", "optim.nesterov must be true or false, not 5"),
        ("epochs={a: 1}", "'epochs' is a key, not a group"),
        ("imports=['']", "imports: '' is not the name of a module"),
        ("+" + "n" * 300, "no variant"),
        ("run.dir=null", "run.dir takes text, not 'null'"),
        ("data.root=\udcff", "not text in UTF-8"),
        ("data.root=a\0b", "not text in UTF-8"),
        ("ldam_drw", "'ldam_drw' is not of the form key=value; did you mean the variant .ldam_drw"),
        ("data.root=${data.root}", "Recursive interpolation"),
        ("data.root=${nothing}", "nothing"),
    ],
)
def test_a_wrong_value_is_named(empty, override, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(empty, [override])
    assert "\n" not in str(caught.value)


# variants and compress


def test_a_variant_goes_over_the_config_and_under_what_comes_after_it(empty):
    before, later = ["epochs=200", "loss.max_margin=0.4"], "loss.weights_from_epoch=70"
    config = load_config(empty, [*before, "+ldam_drw", later])
    assert (config.loss.name, config.loss.class_weights) == ("ldam", "effective_number")
    assert config.classifier.head == "cosine"
    assert (config.loss.max_margin, config.loss.weights_from_epoch) == (0.4, 70)
    other = load_config(empty, [*before, later, "+ldam_drw"])
    assert other.loss.weights_from_epoch == 160


def test_the_run_folder_is_named_after_variants_and_overrides_too(empty):
    config = load_config(empty, ["seed=3", "+ldam", "+resample", "run.log_every=2"])
    assert config.run.dir == "runs/empty+ldam+resample,seed=3"


@pytest.mark.parametrize("name", [name for name, _ in list_variants()])
def test_every_variant_changes_a_config_or_states_the_defaults_and_says_what_it_is(empty, name):
    """Each on its own."""
    common = ["run.dir=somewhere", "epochs=200"]
    config = load_config(empty, [f"+{name}", *common])
    assert (config == load_config(empty, common)) == (name == "ce")
    assert dict(list_variants())[name]


def test_an_unknown_variant_names_the_nearest(empty):
    message = "no variant '+ldam_dwr', did you mean '+ldam_drw'?; known: +balanced_softmax, "
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(empty, ["+ldam_dwr"])


def test_compress_divides_every_number_of_epochs_and_nothing_else(empty):
    epochs = [
        "epochs=200",
        "optim.warmup_epochs=5",
        "optim.step_epochs=[160,180]",
        "optim.step_factors=[0.1,0.01]",
        "loss.weights_from_epoch=160",
        "run.dir=run",
    ]
    whole, short = load_config(empty, epochs), load_config(empty, [*epochs, "compress=20"])
    assert changes(whole, short) == {
        "epochs": 10,
        "compressed_by": 20,
        "optim.warmup_epochs": 0.25,
        "optim.step_epochs": [8, 9],
        "loss.weights_from_epoch": 8,
        "run.evaluate_every": 0.5,
    }


def test_a_saved_compressed_config_is_not_compressed_again(empty, tmp_path):
    config = load_config(empty, ["compress=3"])
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config


def test_the_second_view_starts_as_the_first_and_goes_its_own_way(empty, tmp_path):
    assert load_config(empty).second_view is None
    first, then = "view.flip_probability=0.1", "view.flip_probability=0.2"
    config = load_config(empty, [first, "second_view.randaugment_ops=2", then])
    as_it_was = ViewConfig(flip_probability=0.1, randaugment_ops=2)
    assert config.second_view == as_it_was, "it starts as the first view was then"
    assert config.view == ViewConfig(flip_probability=0.2)
    saved = write(tmp_path / "config.yaml", to_yaml(config))
    assert load_config(saved) == config
    assert load_config(saved, ["second_view=null"]).second_view is None
    message = "unknown key 'second_view.sise', did you mean 'second_view.size'?"
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(empty, ["second_view.sise=32"])


def test_defaults_then_bases_then_the_file_then_overrides(tmp_path):
    ground = "seed: 1\nepochs: 1\nglobal_batch_size: 16\noptim: {lr: 1.0, momentum: 0.5}\n"
    write(tmp_path / "ground.yaml", ground)
    write(tmp_path / "middle.yaml", "base: ground\nseed: 2\nepochs: 2\noptim: {lr: 2.0}\n")
    top = write(tmp_path / "top.yaml", "base: middle\nseed: 3\n")
    config = load_config(top, ["seed=4", "view.scale=[0.2, 0.9]"])
    assert (config.seed, config.epochs, config.global_batch_size) == (4, 2.0, 16)
    assert (config.optim.lr, config.optim.momentum) == (2.0, 0.5)
    assert config.optim.weight_decay == Config().optim.weight_decay
    assert config.view.scale == (0.2, 0.9)
    assert changes(Config(), config).keys() == {
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
        ("epochs: [\n", "cannot read .*line 2"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", "line 3: found duplicate key epochs"),
        ("epochs: &a [*a]\n", "recursive aliases"),
        ("optim: !!map lr\n", "line 1: expected a mapping"),
        ("- a\n", "'key: value' lines"),
        ("3: a\n", "unknown key '3'"),
        ("optim:\n  3: a\n", "unknown key 'optim.3'"),
        ("epochs: soon\n", "epochs.*'soon'"),
        ("? [a, b]\n: c\n", "line 1: a key must be text"),
        ("description: \0\n", "cannot read .*not allowed"),
        ('description: "a\\0b"\n', "yaml: description: 'a.x00b' holds bytes"),
        ("epochs: " + "[" * 5_000_00 + "\n", "cannot read .*nesting"),
        ("epochs: " + "[" * 60 + "]" * 60 + "\n", "cannot read .*nested deeper than 50"),
        ("description: " + "a" * 2**20, "cannot read .*larger than 1024 KiB"),
        ("a: &a {<<: *a}\n", "recursive aliases"),
        ("optim.lr: 1\n", "'optim.lr' is written as 'optim: {lr: VALUE}' in a file"),
        ("optim:\n", "'optim' is a group of keys"),
        (
            "view: {size: 3, scale: [a, b]}\n",
            "view.scale takes a list of 2, each a number, .*, not '.a,b.'",
        ),
        ("view: {scale: [1, [2]]}\n", "view.scale: one of its values is a list"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(write(tmp_path / "itself.yaml", text))
    assert "itself.yaml" in str(caught.value)


def test_yaml_means_what_people_write(tmp_path):
    """YAML 1.1 would take a time for a number to the base of 60, and 1e-3 for text."""
    file = write(
        tmp_path / "site.yaml",
        "time: 12:30:00\nrate: 1e-3\nhalf: .5\nday: 2026-01-02\njob: 007\n"
        "common: &common {size: 64, crop: pad}\nview:\n  <<: *common\n  size: 32\n",
    )
    expected = {"time": "12:30:00", "rate": 0.001, "half": 0.5, "day": "2026-01-02", "job": "007"}
    found = read_yaml(Path(file))
    assert {key: found[key] for key in expected} == expected
    assert found["view"] == {"size": 32, "crop": "pad"}


def test_the_run_folder_follows_from_the_name(empty):
    assert load_config(empty).run.dir == "runs/empty"
    assert load_config(empty, ["run.dir=elsewhere"]).run.dir == "elsewhere"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_loads_and_survives_being_saved(path, tmp_path):
    """crt needs nothing more on the command line; what is saved with a run says all there is."""
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
    path = CONFIG_DIR / "moco_demo.yaml"
    assert find_config("moco_demo") == path == find_config(str(path))


def test_an_unknown_config_names_the_nearest_and_where_all_are():
    nearest = "no config 'classifer_demo'.*did you mean 'classifier_demo'"
    with pytest.raises(UserError, match=f"{nearest}.*lt_train --help shows all"):
        load_config("classifer_demo")


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("stage=moco", "unknown key 'stage', which is method now"),
        ("decoupled.method=lws", "unknown key 'decoupled.method', which is method=crt or method="),
        ("data.stage_to=/scratch", "unknown key 'data.stage_to', which is data.cache_dir now"),
    ],
)
def test_a_key_of_an_earlier_version_says_what_it_is_now(empty, override, now):
    with pytest.raises(UserError, match=now):
        load_config(empty, [override])
