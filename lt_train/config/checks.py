"""What the types of a config cannot say: values and combinations that make no sense."""

from collections.abc import Mapping
from itertools import pairwise

from lt_train.config.families import BACKBONE_FAMILIES, family_of
from lt_train.config.ranges import check_ranges
from lt_train.config.reading import flatten, to_dict
from lt_train.config.schema import (
    BACKBONES,
    LOSSES,
    METHODS,
    SAMPLERS,
    Config,
    LossConfig,
    ViewConfig,
    training_views,
)
from lt_train.errors import UserError, nearest
from lt_train.files import is_url

CLASS_MEANS = "class_means"  # of classifier.init


def check(config: Config) -> None:
    """Raise a :class:`UserError` for what types cannot say."""
    _check_name("method", config.method, METHODS)
    _check_name("loss.name", config.loss.name, LOSSES)
    _check_name("sampler.name", config.sampler.name, SAMPLERS)
    _check_backbone(config)
    _check_numbers(config)
    for key, view in training_views(config).items():
        _check_view(key, view, config.data.loader)
    _check_evaluation_view(config.eval_view)
    _check_optimizer(config)
    _check_engine(config)
    _check_places(config)
    _check_second_set(config)
    _check_loss(config)
    _check_method(config)
    _check_classifier_init(config)


def _check_name(key: str, name: str, table: Mapping) -> None:
    if name not in table:
        raise UserError(
            f"{key}: there is no '{name}'{nearest(name, list(table))}; known: {', '.join(table)}"
        )


def check_backbone(name: str) -> None:
    """Refuse a name that no backbone has; a family has looked already."""
    if family_of(name) is None:
        families = [f"{family}/NAME" for family in BACKBONE_FAMILIES]
        _check_name("model.backbone", name, dict.fromkeys([*BACKBONES, *families]))


def _check_backbone(config: Config) -> None:
    model = config.model
    check_backbone(model.backbone)
    if model.pretrained and model.init_from is None and family_of(model.backbone) is None:
        raise UserError(
            f"model.pretrained=true: {model.backbone} names no weights; set model.init_from to a "
            "file of them, or model.backbone to timm/NAME"
        )


def _check_numbers(config: Config) -> None:
    check_ranges(flatten(to_dict(config)))
    if config.moco.bn_splits > config.global_batch_size:
        raise UserError(
            f"moco.bn_splits must be from 0 to global_batch_size, not {config.moco.bn_splits}"
        )
    if not config.experts.taus:
        raise UserError("experts.taus must hold a number for each expert")


def _check_view(key: str, view: ViewConfig, loader: str) -> None:
    ranges = {"scale": view.scale, "ratio": view.ratio, "blur_sigma": view.blur_sigma}
    for name, (low, high) in ranges.items():
        if low > high:
            raise UserError(
                f"{key}.{name} must go from the smaller to the larger value, "
                f"not from {low} to {high}"
            )
    if view.jitter[3] > 0.5:
        raise UserError(
            f"{key}.jitter: its last number, of the hue, is at most 0.5, half a circle; "
            f"not {view.jitter[3]}"
        )
    if view.crop == "pad" and loader == "dali":
        raise UserError(
            f"{key}.crop=pad needs data.loader=resident: a DALI crop cannot leave the image"
        )
    if view.blur_probability > 0 and loader == "resident":
        raise UserError(
            f"{key}.blur_probability needs data.loader=dali: the resident loader does not blur"
        )


def _check_evaluation_view(view: ViewConfig) -> None:
    if view.crop != "center":
        raise UserError("eval_view.crop must be 'center': evaluation has nothing random in it")
    if view.size > view.resize:
        raise UserError(
            "eval_view.size must not be larger than eval_view.resize, from which it is cut"
        )


def _check_optimizer(config: Config) -> None:
    optim = config.optim
    if len(optim.step_epochs) != len(optim.step_factors):
        raise UserError(
            "optim.step_epochs and optim.step_factors must have one entry each for every step"
        )
    if any(later <= earlier for earlier, later in pairwise(optim.step_epochs)):
        raise UserError("optim.step_epochs must go from earlier to later epochs")
    if optim.name == "lars" and config.engine.name == "deepspeed" and config.engine.zero_stage:
        raise UserError(
            f"optim.name=lars needs the length of every layer's weights, and "
            f"engine.zero_stage={config.engine.zero_stage} cuts them into a part a rank; use "
            "engine.name=ddp or engine.zero_stage=0"
        )
    if optim.nesterov and optim.momentum <= 0:
        raise UserError("optim.nesterov needs optim.momentum above 0")


def _check_engine(config: Config) -> None:
    engine = config.engine
    if engine.name == "deepspeed" and engine.zero_stage == 3:
        raise UserError(
            "engine.zero_stage=3 is not supported: it scatters the parameters that MoCo's key "
            "encoder and the backbone's export read whole, for models that fit on one device "
            "anyway; use 1 or 2"
        )
    if engine.accumulate > 1 and METHODS[config.method].contrasts:
        raise UserError(
            f"engine.accumulate={engine.accumulate}: the method {config.method} learns from all "
            "samples of a batch together, and parts of it would be smaller batches; use more "
            "ranks, a smaller global_batch_size or engine.activation_checkpointing"
        )
    if engine.activation_checkpointing and engine.compile:
        raise UserError(
            "engine.activation_checkpointing and engine.compile exclude each other: unset one of "
            "them"
        )


def _check_places(config: Config) -> None:
    """What is behind a URL is copied before it is used."""
    cache = config.data.cache_dir
    if cache is not None and is_url(cache):
        raise UserError(f"data.cache_dir={cache}: name a local folder, to which sets are copied")
    for key, root in (("data.root", config.data.root), ("unlabeled.root", config.unlabeled.root)):
        if is_url(root) and not cache:
            raise UserError(
                f"{key}={root} is a URL: set data.cache_dir to a local folder to copy the set to"
            )


def _check_second_set(config: Config) -> None:
    unlabeled, method = config.unlabeled, config.method
    wants = METHODS[method].second_set
    if unlabeled.root and wants == "none":
        others = [name for name, traits in METHODS.items() if traits.second_set != "none"]
        raise UserError(
            f"the method {method} takes one data set, data.root: unset unlabeled.root, "
            f"or set method to one of {', '.join(others)}"
        )
    if not unlabeled.root and wants != "none":
        raise UserError(
            f"the method {method} trains on two data sets: "
            "set unlabeled.root to the unlabeled one, as data_prep writes it"
        )
    if wants == "pseudo_labeled" and unlabeled.label_column is None:
        raise UserError(
            f"the method {method} needs pseudo-labels: set unlabeled.label_column, "
            "to pseudo_label after python -m lt_train pseudo_label"
        )
    if wants == "unlabeled" and unlabeled.label_column is not None:
        raise UserError(
            f"the method {method} takes no labels for unlabeled.root: unset unlabeled.label_column"
        )
    if unlabeled.root and unlabeled.share is None and unlabeled.label_column is None:
        raise UserError(
            "unlabeled.share=null samples both sets as one, which needs labels: "
            "set unlabeled.label_column, or a share"
        )


def _check_loss(config: Config) -> None:
    loss, traits = config.loss, LOSSES[config.loss.name]
    if traits.cosine_head and config.classifier.head != "cosine":
        raise UserError(
            f"loss.name={loss.name} has margins between cosines: set classifier.head=cosine"
        )
    smooths = loss.label_smoothing or loss.label_aware_smoothing is not None
    if smooths and not traits.smooths_labels:
        raise UserError(
            f"loss.name={loss.name} is not defined for smoothed labels: "
            "unset loss.label_smoothing and loss.label_aware_smoothing"
        )
    if loss.label_smoothing and loss.label_aware_smoothing is not None:
        raise UserError(
            "loss.label_smoothing and loss.label_aware_smoothing exclude each other: "
            "set one of them"
        )
    if loss.class_weights != "none" and loss.weights_from_epoch >= config.epochs:
        raise UserError(
            f"loss.weights_from_epoch={loss.weights_from_epoch:g} is not before the end of "
            f"{config.epochs:g} epochs: class weights would never count; set it lower, "
            "or to a share such as 80%, which goes with any number of epochs"
        )


def _check_method(config: Config) -> None:
    method, classifier = config.method, config.classifier
    traits = METHODS[method]
    if traits.from_finished and config.model.init_from is None:
        raise UserError(
            f"the method {method} trains on a finished backbone: "
            "set model.init_from to a run folder"
        )
    if traits.from_finished and config.model.trainable != "all":
        raise UserError(f"the method {method} freezes the backbone itself: unset model.trainable")
    prefix = config.model.init_prefix
    if prefix is not None and config.model.init_from is None:
        raise UserError(
            f"model.init_prefix={prefix} names a network in the file of model.init_from: set that "
            "too, or unset it"
        )
    if prefix is not None and not all(prefix.split(".")):
        raise UserError(
            f"model.init_prefix='{prefix}' is no name, such as student or module.encoder_k"
        )
    if traits.linear_head and classifier.head != "linear":
        raise UserError(
            f"method={method} scales the logits of a linear classifier: set classifier.head=linear"
        )
    if (classifier.mixup_alpha or classifier.cutmix_alpha) and not traits.mixes_images:
        mixing = [name for name, other in METHODS.items() if other.mixes_images]
        raise UserError(
            f"mixup and CutMix are for the methods {', '.join(mixing)}, not for {method}"
        )
    if traits.own_loss and not _is_plain(config.loss):
        raise UserError(f"the method {method} has losses of its own: unset the keys of loss")
    sizes = {view.size for view in training_views(config).values()}
    if traits.views_together and len(sizes) > 1:
        raise UserError(
            f"the method {method} sends all views through the network at once: "
            "second_view.size must be view.size"
        )


def _check_classifier_init(config: Config) -> None:
    init = config.classifier.init
    if init is None:
        return
    if init != CLASS_MEANS and not init.endswith(".safetensors"):
        raise UserError(
            f"classifier.init must be {CLASS_MEANS}, a .safetensors file or null, not '{init}'"
        )
    if not METHODS[config.method].has_classifier:
        raise UserError(
            f"classifier.init starts a classifier of the labels, which the method {config.method} "
            "has not: unset it"
        )


def _is_plain(loss: LossConfig) -> bool:
    """Whether nothing is asked of the loss; what only another choice would use does not count."""
    smooths = loss.label_smoothing or loss.label_aware_smoothing
    default = LossConfig()
    same = (loss.name, loss.class_weights) == (default.name, default.class_weights)
    return same and not smooths
