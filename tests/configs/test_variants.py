"""The variants that configs/ ships, each over all configs that it fits, and single configs."""

import functools
from dataclasses import replace

import pytest

from lt_train.config.load import CONFIG_DIR, list_configs, list_variants, load_config
from lt_train.config.schema import Config
from lt_train.errors import UserError

SELF_SUPERVISED = ("moco", "rotation")
MIXES = ("mixup", "cutmix")
COSINE = ("cosine", "ldam", "ldam_drw")
OTHER_LOSSES = (
    "focal",
    "cb_ce",
    "inverse_weights",
    "drw",
    "ldam",
    "ldam_drw",
    "balanced_softmax",
    "logit_adjustment",
    "label_smoothing",
    "label_aware_smoothing",
)


@functools.cache
def kinds_of_configs() -> dict[tuple[str, str], tuple[str, Config]]:
    """A config, with its name, for each method and loader: what the checks of keys go by."""
    loaded = {name: load_config(name) for name, _ in list_configs()}
    return {(config.method, config.data.loader): (name, config) for name, config in loaded.items()}


def fits(variant: str, config: Config) -> bool:
    """Whether a variant means anything for a method with labels."""
    if variant in ("drw", "ldam_drw") and config.epochs <= 160:
        return False  # class weights would never count
    if variant in MIXES:
        return config.method in ("classifier", "crt", "lws", "semi")
    if config.method == "experts":
        return variant not in OTHER_LOSSES
    return not (config.method == "lws" and variant in COSINE)


@pytest.mark.parametrize("variant", [name for name, _ in list_variants()])
def test_a_variant_goes_over_every_kind_of_config_that_it_fits_and_changes_its_own_keys_alone(
    variant,
):
    """MoCo v1 is for self-supervised methods, the others for those with labels; what makes no sense
    together is refused.
    """
    for name, plain in kinds_of_configs().values():
        if (plain.method in SELF_SUPERVISED) != (variant == "moco_v1"):
            continue
        if variant != "moco_v1" and not fits(variant, plain):
            with pytest.raises(UserError):
                load_config(name, [f"+{variant}"])
            continue
        changed = load_config(name, [f"+{variant}"])
        assert (changed.run.dir, changed.description) == (
            f"{plain.run.dir}+{variant}",
            plain.description,
        )
        keys = (
            ("view", "optim", "moco")
            if variant == "moco_v1"
            else ("view", "sampler", "loss", "classifier")
        )
        assert (
            replace(changed, run=plain.run, **{key: getattr(plain, key) for key in keys}) == plain
        )


@pytest.mark.parametrize(
    "variant", [name for name, _ in list_variants() if name not in ("ce", "moco_v1")]
)
def test_a_variant_changes_something(variant):
    plain, changed = (
        load_config("classifier_cifar10_lt", ["run.dir=x", *more]) for more in ([], [f"+{variant}"])
    )
    assert changed != plain


def test_every_variant_says_what_it_is_in_the_comment_that_it_begins_with():
    assert all(
        description[:1].isalpha() and len(description) > 10 for _, description in list_variants()
    )
    assert all(
        path.read_text().startswith("# ") for path in (CONFIG_DIR / "variants").glob("*.yaml")
    )


def test_variants_say_what_the_papers_do():
    """LDAM's margin and scale and DRW's start are Cao et al.'s, beta Cui et al.'s, the smoothing
    MiSLAS's.
    """
    loss = load_config("classifier_cifar10_lt", ["+ldam_drw"]).loss
    assert (loss.name, loss.max_margin, loss.class_weights, loss.beta, loss.weights_from_epoch) == (
        "ldam",
        0.5,
        "effective_number",
        0.9999,
        160,
    )
    loss = load_config("classifier_cifar10_lt", ["+cb_ce"]).loss
    assert (loss.name, loss.class_weights, loss.beta, loss.weights_from_epoch) == (
        "cross_entropy",
        "effective_number",
        0.9999,
        0,
    )
    assert load_config(
        "classifier_cifar10_lt", ["+label_aware_smoothing"]
    ).loss.label_aware_smoothing == (0.3, 0.0)
    first = load_config("moco_imagenet_lt", ["+moco_v1"])
    assert (first.view.jitter, first.view.jitter_probability, first.view.blur_probability) == (
        (0.4, 0.4, 0.4, 0.4),
        1.0,
        0.0,
    )
    assert (first.moco.projector, first.moco.temperature, first.optim.schedule) == (
        "linear",
        0.07,
        "step",
    )
    assert (first.optim.lr, first.optim.lr_batch_size, first.optim.step_epochs) == (
        0.03,
        256,
        (120, 160),
    )


def test_the_linear_probe_is_moco_s():
    config = load_config("linear_probe_imagenet_lt")
    assert (config.method, config.sampler.name, config.epochs) == (
        "crt",
        "instance_balanced",
        100,
    )
    optim = config.optim
    assert (
        optim.lr,
        optim.lr_batch_size,
        optim.weight_decay,
        optim.step_epochs,
        optim.step_factors,
    ) == (30, 256, 0, (60, 80), (0.1, 0.01))


def test_methods_of_several_views_differ_in_them():
    for name in ("fixmatch_cifar10_lt", "fixmatch_imagenet_lt"):
        config = load_config(name)
        assert config.unlabeled.share == 0.875 and (
            config.view.randaugment_ops,
            config.second_view.randaugment_ops,
        ) == (0, 2)
        assert (
            config.view.size == config.second_view.size
            and config.view.crop == config.second_view.crop
        )
    for name in ("proco_cifar10_lt", "proco_imagenet_lt"):
        config = load_config(name)
        first, second = config.view, config.second_view
        assert (first.randaugment_ops, second.randaugment_ops, first.size, second.crop) == (
            2,
            0,
            second.size,
            "random_resized",
        )
        assert (
            second.grayscale_probability > first.grayscale_probability == 0
            and second.jitter[3] > first.jitter[3] == 0
        )
