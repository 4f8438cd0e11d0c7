"""The variants that configs/ ships, each over all configs that it fits, and single configs."""

import functools
import math
from dataclasses import replace

import pytest

from lt_train.config.load import CONFIG_DIR, list_configs, list_variants, load_config
from lt_train.config.schema import METHODS, Config
from lt_train.errors import UserError

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
REFUSED = [  # the only variants that are, with these methods, and why
    (("mixup", "cutmix"), METHODS.keys() - {"classifier", "crt", "lws", "semi"}, "are for the m"),
    (("cosine", "ldam", "ldam_drw"), {"lws"}, "scales the logits of a linear classifier"),
    (OTHER_LOSSES, {"experts"}, "has losses of its own"),
    (("lora",), {"crt", "lws"}, "freezes the backbone itself"),
]
OF_CLASSIFIERS = ("view", "sampler", "loss", "classifier")
KEYS = {  # of other variants
    "moco_v1": ("view", "optim", "moco"),
    "lora": ("model", "optim"),
    "lars": ("optim",),
}


@functools.cache
def kinds_of_configs() -> dict[tuple[str, str, float], tuple[str, Config]]:
    """A config, with its name, for each method, loader and number of epochs: what checks go by."""
    loaded = {name: load_config(name) for name, _ in list_configs()}
    return {
        (config.method, config.data.loader, config.epochs): (name, config)
        for name, config in loaded.items()
    }


def reason_to_refuse(variant: str, method: str) -> str | None:
    for variants, methods, reason in REFUSED:
        if variant in variants and method in methods:
            return reason
    return None


@pytest.mark.parametrize("variant", [name for name, _ in list_variants()])
def test_a_variant_goes_over_every_kind_of_config_or_is_refused_and_changes_its_own_keys_alone(
    variant,
):
    """Whatever the number of epochs."""
    for name, plain in kinds_of_configs().values():
        reason = reason_to_refuse(variant, plain.method)
        if reason is not None:
            with pytest.raises(UserError, match=reason):
                load_config(name, [f"+{variant}"])
            continue
        changed = load_config(name, [f"+{variant}"])
        assert (changed.run.dir, changed.description) == (
            f"{plain.run.dir}+{variant}",
            plain.description,
        )
        keys = KEYS.get(variant, OF_CLASSIFIERS)
        assert (
            replace(changed, run=plain.run, **{key: getattr(plain, key) for key in keys}) == plain
        )


@pytest.mark.parametrize("variants", [(), ("+drw",), ("+moco_v1",)], ids=str)
def test_what_is_counted_in_epochs_goes_with_their_number(variants):
    """Learning rate steps, warm-up and deferred weights of every config that ships."""
    for name, plain in kinds_of_configs().values():
        if variants == ("+drw",) and plain.method == "experts":
            continue
        whole, short = (load_config(name, [*variants, *more]) for more in ([], ["epochs=7"]))
        for config in (whole, short):
            late = (*config.optim.step_epochs, config.loss.weights_from_epoch)
            assert max(late) < config.epochs
            assert config.optim.warmup_epochs < config.epochs
        assert [epoch / 7 for epoch in short.optim.step_epochs] == pytest.approx(
            [epoch / whole.epochs for epoch in whole.optim.step_epochs]
        )
        share = whole.loss.weights_from_epoch / whole.epochs
        assert short.loss.weights_from_epoch == pytest.approx(7 * share)


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
        assert config.unlabeled.share == 0.875 and config.fixmatch.ema_momentum == 0.999
        weak, strong = config.view, config.second_view
        assert (weak.randaugment_ops, weak.cutout) == (0, 0)
        assert (strong.randaugment_ops, strong.randaugment_magnitude, strong.cutout) == (
            2,
            None,
            0.5,
        )
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


@pytest.mark.parametrize(
    ("data", "classes", "epochs"),
    [
        ("cifar100_lt", 100, 10),
        ("imagenet_lt", 1000, 10),
        ("places_lt", 365, 10),
        ("inat18", 8142, 20),
    ],
)
def test_light_fine_tuning_has_the_settings_of_its_authors(data, classes, epochs):
    """Shi et al. 2024; an adapter's width goes with the classes, for the twelve blocks of ViT-B."""
    config = load_config(f"finetune_{data}")
    assert config.adapter.dim == 2 ** math.floor(math.log2(classes / (2 * 12)))
    assert (config.epochs, config.global_batch_size) == (epochs, 128)
    optim, head = config.optim, config.classifier
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.01, 0.9, 5e-4)
    assert (optim.schedule, optim.warmup_epochs, optim.lr_batch_size) == ("cosine", 0, 128)
    assert (head.head, head.scale, head.init) == ("cosine", 25, "class_means")
    assert (config.loss.name, config.loss.tau) == ("logit_adjustment", 1)
    assert (config.view.size, config.eval_view.size) == (224, 224)
