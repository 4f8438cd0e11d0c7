"""Values and combinations that types cannot refuse: one line each that says what to do."""

import re
from dataclasses import replace

import pytest

from lt_train.config.checks import check
from lt_train.config.load import load_config
from lt_train.config.schema import Config, DataConfig, ViewConfig
from lt_train.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["epochs=0"], "epochs must be more than 0"),
        (["global_batch_size=-4"], "global_batch_size"),
        (["max_steps=0"], "max_steps"),
        (["optim.step_epochs=[160, 180]", "optim.step_factors=[0.1]"], "step_factors"),
        (["model.init_prefix=student"], "model.init_prefix=student names .* set that too"),
        (["model.init_from=x", "model.init_prefix=a..b"], "model.init_prefix='a..b' is no name"),
        (["method=crt"], "the method crt trains on a finished backbone: set model.init_from"),
        (["engine.name=deepspeed", "engine.zero_stage=3"], "zero_stage=3"),
        (["+lars", "engine.name=deepspeed"], "use engine.name=ddp or engine.zero_stage=0"),
        (
            ["method=moco", "engine.accumulate=2"],
            "engine.accumulate=2: the method moco learns from all samples of a batch together",
        ),
        (["method=proco", "engine.accumulate=2"], "the method proco learns from all samples"),
        (["engine.accumulate=0"], "engine.accumulate must be more than 0"),
        (
            ["engine.activation_checkpointing=true", "engine.compile=true"],
            "engine.activation_checkpointing and engine.compile exclude each other",
        ),
        (["eval_view.crop=pad"], "eval_view.crop"),
        (["view.crop=pad"], "view.crop=pad.*resident"),
        (["data.loader=resident", "view.blur_probability=0.5"], "blur_probability.*dali"),
        (["view.scale=[0.9,0.1]"], "view.scale.*0.9"),
        (["view.size=0"], "view.size must be more than 0"),
        (["second_view.crop=pad"], "second_view.crop=pad.*resident"),
        (
            ["second_view.randaugment_magnitude=31"],
            "second_view.randaugment_magnitude must be from 0 to 30",
        ),
        (["view.jitter=[0.4,0.4,0.4,0.6]"], "view.jitter: its last number.*0.5.*not 0.6"),
        (["optim.step_epochs=[9,9]", "optim.step_factors=[1,1]"], "step_epochs must go from"),
        (["optim.lr=-1"], "optim.lr must be 0 or more"),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.nesterov needs optim.momentum"),
        (["moco.bn_splits=257"], "moco.bn_splits.*257"),
        (["eval_view.resize=200"], "eval_view.size must not be larger than eval_view.resize"),
        (["engine.zero_stage=4"], "engine.zero_stage must be 0, 1 or 2, not 4"),
        (["compress=0"], "compress must be more than 0"),
        (["classifier.scale=0"], "classifier.scale must be more than 0"),
        (["proco.temperature=0"], "proco.temperature must be more than 0"),
        (["classifier.init=class_mean"], "classifier.init must be class_means, a .safetensors"),
        (
            ["method=rotation", "classifier.init=class_means"],
            "classifier.init starts .*, which the method rotation has not: unset it",
        ),
        # places
        (["data.root=s3://b/set"], "data.root=s3://b/set is a URL: set data.cache_dir"),
        (
            ["method=fixmatch", "unlabeled.root=https://b/set"],
            "unlabeled.root=https://b/set is a URL: set data.cache_dir",
        ),
        (["data.cache_dir=gs://b/set"], "data.cache_dir=gs://b/set: name a local folder"),
        (["data.cache_gb=0"], "data.cache_gb must be more than 0 or null, not 0"),
        # two data sets
        (["unlabeled.share=1.0"], "unlabeled.share must be more than 0 and less than 1"),
        (["unlabeled.max_samples=0"], "unlabeled.max_samples must be at least 1"),
        (["data.max_samples=0"], "data.max_samples must be at least 1"),
        (["unlabeled.root=pool"], "the method classifier takes one data set"),
        (["method=sourcing"], "the method sourcing trains on two data sets: set unlabeled.root"),
        (["method=semi"], "the method semi trains on two data sets: set unlabeled.root"),
        (["method=fixmatch"], "the method fixmatch trains on two data sets: set unlabeled.root"),
        (
            ["method=semi", "unlabeled.root=pool"],
            "the method semi needs pseudo-labels: set unlabeled.label_column",
        ),
        (
            ["method=fixmatch", "unlabeled.root=pool", "unlabeled.label_column=pseudo_label"],
            "the method fixmatch takes no labels",
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
        (
            ["epochs=90", "+drw", "loss.weights_from_epoch=160"],
            "loss.weights_from_epoch=160 is not before the end of 90 epochs.* such as 80%",
        ),
        (["loss.label_smoothing=1.0"], "loss.label_smoothing must be from 0 to below 1"),
        (
            ["loss.label_aware_smoothing=[0.3,-0.1]"],
            "loss.label_aware_smoothing must be from 0 to below 1",
        ),
        (["loss.beta=1.0"], "loss.beta must be from 0 to below 1, not 1.0"),
        (["sampler.beta=-0.1"], "sampler.beta must be from 0 to below 1, not -0.1"),
        (["moco.ema_momentum=1.0"], "moco.ema_momentum must be from 0 to below 1"),
        (["classifier.mixup_alpha=-1"], "classifier.mixup_alpha must be 0 or more, not -1"),
        (["loss.gamma=-1"], "loss.gamma must be 0 or more, not -1"),
        (["fixmatch.weight=-1"], "fixmatch.weight must be 0 or more, not -1"),
        (["fixmatch.threshold=1.5"], "fixmatch.threshold must be from 0 to 1, not 1.5"),
        (
            ["method=rotation", "+mixup"],
            "mixup and CutMix are for the methods classifier, crt, lws, semi, not for rotation",
        ),
        (["method=experts", "+balanced_softmax"], "the method experts has losses of its own"),
        (["method=experts", "+inverse_weights"], "the method experts has losses of its own"),
        (["method=experts", "+label_smoothing"], "the method experts has losses of its own"),
        (["method=experts", "experts.taus=[]"], "experts.taus must hold a number for each expert"),
        (
            ["model.init_from=run", "method=lws", "+cosine"],
            "method=lws .* set classifier.head=linear",
        ),
        (["proco.dim=8"], "proco.dim must be at least 16, not 8"),
        (
            ["method=proco", "second_view.size=32"],
            "the method proco sends .* second_view.size must be view.size",
        ),
        (
            ["method=fixmatch", "unlabeled.root=pool", "second_view.size=32"],
            "the method fixmatch sends .* second_view.size must be view.size",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(empty, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        load_config(empty, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["view", "second_view"])
@pytest.mark.parametrize(
    ("loader", "changes", "message"),
    [
        ("dali", {"crop": "pad"}, "crop=pad needs data.loader=resident"),
        ("resident", {"blur_probability": 0.5}, "blur_probability needs data.loader=dali"),
        ("dali", {"size": 0}, "size must be more than 0"),
        ("dali", {"blur_sigma": (2.0, 0.1)}, "blur_sigma must go from the smaller"),
        ("dali", {"randaugment_magnitude": 31}, "randaugment_magnitude must be from 0 to 30"),
        ("dali", {"randaugment_ops": -1}, "randaugment_ops must be 0 or more"),
    ],
)
def test_views_that_no_loader_can_make_are_refused(key, loader, changes, message):
    whole = ViewConfig(size=32, crop="center", resize=32, flip_probability=0.0)
    config = Config(data=DataConfig(loader=loader), view=whole, eval_view=whole)
    with pytest.raises(UserError, match=re.escape(f"{key}.{message}")):
        check(replace(config, **{key: replace(whole, **changes)}))
