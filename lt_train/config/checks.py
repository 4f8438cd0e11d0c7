"""What the types of a config cannot say: values and combinations that make no sense."""

from collections.abc import Mapping

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


def check(config: Config) -> None:
    """Raise a :class:`UserError` for what types cannot say."""
    _check_name("method", config.method, METHODS)
    _check_name("loss.name", config.loss.name, LOSSES)
    _check_name("sampler.name", config.sampler.name, SAMPLERS)
    _check_name("model.backbone", config.model.backbone, BACKBONES)
    _check_numbers(config)
    for key, view in training_views(config).items():
        _check_view(key, view, config.data.loader)
    _check_evaluation_view(config.eval_view)
    _check_optimizer(config)
    _check_engine(config)
    _check_second_set(config)
    _check_loss(config)
    _check_method(config)


def _check_name(key: str, name: str, table: Mapping) -> None:
    if name not in table:
        raise UserError(
            f"{key}: there is no '{name}'{nearest(name, list(table))}; known: {', '.join(table)}"
        )


def _check_numbers(config: Config) -> None:
    positive = {
        "epochs": config.epochs,
        "global_batch_size": config.global_batch_size,
        "run.log_every": config.run.log_every,
        "run.checkpoint_every": config.run.checkpoint_every,
        "run.keep_checkpoints": config.run.keep_checkpoints,
        "run.evaluate_every": config.run.evaluate_every,
        "data.eval_batch_size": config.data.eval_batch_size,
        "sampler.samples_per_class": config.sampler.samples_per_class,
        "eval_view.size": config.eval_view.size,
        "moco.queue_size": config.moco.queue_size,
        "moco.temperature": config.moco.temperature,
        "proco.temperature": config.proco.temperature,
        "classifier.scale": config.classifier.scale,
        "knn.k": config.knn.k,
        "knn.temperature": config.knn.temperature,
        "compress": config.compress,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key} must be more than 0, not {value}")
    weights = {
        "classifier.mixup_alpha": config.classifier.mixup_alpha,
        "classifier.cutmix_alpha": config.classifier.cutmix_alpha,
        "loss.gamma": config.loss.gamma,
        "loss.weights_from_epoch": config.loss.weights_from_epoch,
        "semi.weight": config.semi.weight,
        "fixmatch.weight": config.fixmatch.weight,
        "proco.weight": config.proco.weight,
    }
    for key, value in weights.items():
        if value < 0:
            raise UserError(f"{key} must be 0 or more, not {value:g}")
    if not 0 <= config.fixmatch.threshold <= 1:
        raise UserError(
            "fixmatch.threshold is of a probability, so from 0 to 1, "
            f"not {config.fixmatch.threshold}"
        )
    fractions = {
        "loss.beta": config.loss.beta,
        "sampler.beta": config.sampler.beta,
        "moco.ema_momentum": config.moco.ema_momentum,
    }
    for key, value in fractions.items():
        if not 0 <= value < 1:
            raise UserError(f"{key} must be from 0 to below 1, not {value}")
    if config.max_steps is not None and config.max_steps <= 0:
        raise UserError(f"max_steps must be more than 0 or null, not {config.max_steps}")
    if not 0 <= config.moco.bn_splits <= config.global_batch_size:
        raise UserError(
            f"moco.bn_splits must be from 0 to global_batch_size, not {config.moco.bn_splits}"
        )
    if config.proco.dim < 16:
        raise UserError(
            f"proco.dim must be at least 16, not {config.proco.dim}: "
            "the density's normaliser is inexact below"
        )
    if not config.experts.taus:
        raise UserError("experts.taus must hold a number for each expert")


def _check_view(key: str, view: ViewConfig, loader: str) -> None:
    least = {"size": view.size, "scale": view.scale[0], "ratio": view.ratio[0]}
    for name, value in least.items():
        if value <= 0:
            raise UserError(f"{key}.{name} must be more than 0, not {value}")
    ranges = {"scale": view.scale, "ratio": view.ratio, "blur_sigma": view.blur_sigma}
    for name, (low, high) in ranges.items():
        if low > high:
            raise UserError(
                f"{key}.{name} must go from the smaller to the larger value, "
                f"not from {low} to {high}"
            )
    if view.randaugment_ops < 0 or not 0 <= view.randaugment_magnitude <= 30:
        raise UserError(
            f"{key}.randaugment_ops must be 0 or more and {key}.randaugment_magnitude from 0 to 30"
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
    if optim.lr < 0 or optim.lr_batch_size <= 0:
        raise UserError("optim.lr must be 0 or more and optim.lr_batch_size more than 0")
    if optim.nesterov and optim.momentum <= 0:
        raise UserError("optim.nesterov needs optim.momentum above 0")


def _check_engine(config: Config) -> None:
    engine = config.engine
    if not 0 <= engine.zero_stage <= 3:
        raise UserError(f"engine.zero_stage must be 0, 1 or 2, not {engine.zero_stage}")
    if engine.name == "deepspeed" and engine.zero_stage == 3:
        raise UserError(
            "engine.zero_stage=3 is not supported: it scatters the parameters that MoCo's key "
            "encoder and the backbone's export read whole, for models that fit on one device "
            "anyway; use 1 or 2"
        )


def _check_second_set(config: Config) -> None:
    unlabeled, method = config.unlabeled, config.method
    wants = METHODS[method].second_set
    if unlabeled.share is not None and not 0 < unlabeled.share < 1:
        raise UserError(
            f"unlabeled.share must be more than 0 and less than 1, or null, not {unlabeled.share}"
        )
    if unlabeled.max_samples is not None and unlabeled.max_samples < 1:
        raise UserError(
            f"unlabeled.max_samples must be at least 1 or null, not {unlabeled.max_samples}"
        )
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
    shares = {
        "label_smoothing": (loss.label_smoothing,),
        "label_aware_smoothing": loss.label_aware_smoothing or (),
    }
    for key, values in shares.items():
        if not all(0 <= value < 1 for value in values):
            raise UserError(f"loss.{key} must be from 0 to below 1")
    if loss.class_weights != "none" and loss.weights_from_epoch >= config.epochs:
        raise UserError(
            f"loss.weights_from_epoch={loss.weights_from_epoch:g} is not before the end of "
            f"{config.epochs:g} epochs: class weights would never count; set it lower, "
            "or shorten a run by compress=N, which scales both"
        )


def _check_method(config: Config) -> None:
    method, classifier = config.method, config.classifier
    traits = METHODS[method]
    if traits.from_finished and config.model.init_from is None:
        raise UserError(
            f"the method {method} trains on a finished backbone: "
            "set model.init_from to a run folder"
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


def _is_plain(loss: LossConfig) -> bool:
    """Whether nothing is asked of the loss; what only another choice would use does not count."""
    smooths = loss.label_smoothing or loss.label_aware_smoothing
    default = LossConfig()
    same = (loss.name, loss.class_weights) == (default.name, default.class_weights)
    return same and not smooths
