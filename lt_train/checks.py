"""What the types of a config cannot say: one clear line for values and combinations that make no sense."""

from lt_train.errors import UserError
from lt_train.schema import Config, ViewConfig, training_views


def check(config: Config) -> None:
    """Raise a :class:`UserError` for what types cannot say."""
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
    for key, view in training_views(config).items():
        _check_view(key, view, config.data.loader)
    if config.max_steps is not None and config.max_steps <= 0:
        raise UserError(f"max_steps must be more than 0 or null, not {config.max_steps}")
    if len(config.optim.step_epochs) != len(config.optim.step_factors):
        raise UserError("optim.step_epochs and optim.step_factors must have one entry each for every step")
    if config.eval_view.crop != "center":
        raise UserError("eval_view.crop must be 'center': evaluation has nothing random in it")
    if config.optim.lr < 0 or config.optim.lr_batch_size <= 0:
        raise UserError("optim.lr must be 0 or more and optim.lr_batch_size more than 0")
    if config.optim.nesterov and config.optim.momentum <= 0:
        raise UserError("optim.nesterov needs optim.momentum above 0")
    if not 0 <= config.moco.bn_splits <= config.global_batch_size:
        raise UserError(f"moco.bn_splits must be from 0 to global_batch_size, not {config.moco.bn_splits}")
    if config.eval_view.size > config.eval_view.resize:
        raise UserError("eval_view.size must not be larger than eval_view.resize, from which it is cut")
    if not 0 <= config.engine.zero_stage <= 3:
        raise UserError(f"engine.zero_stage must be 0, 1 or 2, not {config.engine.zero_stage}")
    if config.engine.name == "deepspeed" and config.engine.zero_stage == 3:
        raise UserError(
            "engine.zero_stage=3 is not supported: it scatters the parameters that MoCo's key encoder and the backbone's "
            "export read whole, for models that fit on one device anyway; use 1 or 2"
        )
    _check_unlabeled(config)
    _check_methods(config)
    if config.model.init_from is None and config.stage == "decoupled":
        raise UserError("the decoupled stage trains on a finished backbone: set model.init_from to a run folder")


def _check_unlabeled(config: Config) -> None:
    unlabeled, stage = config.unlabeled, config.stage
    if unlabeled.share is not None and not 0 < unlabeled.share < 1:
        raise UserError(f"unlabeled.share must be more than 0 and less than 1, or null, not {unlabeled.share}")
    if unlabeled.max_samples is not None and unlabeled.max_samples < 1:
        raise UserError(f"unlabeled.max_samples must be at least 1 or null, not {unlabeled.max_samples}")
    if unlabeled.root and stage not in ("semi", "fixmatch", "sourcing"):
        raise UserError(f"the {stage} stage takes one data set, data.root: unset unlabeled.root, or set stage to semi, fixmatch or sourcing")
    if not unlabeled.root and stage == "sourcing":
        raise UserError("the sourcing stage tells known classes from a pool: set unlabeled.root to a pool that data_prep has sharded")
    if not unlabeled.root and stage in ("semi", "fixmatch"):
        raise UserError(f"the {stage} stage trains on two data sets: set unlabeled.root to the unlabeled one, as data_prep writes it")
    if stage == "semi" and unlabeled.label_column is None:
        raise UserError("the semi stage needs pseudo-labels: set unlabeled.label_column, to pseudo_label after python -m lt_train pseudo_label")
    if stage in ("fixmatch", "sourcing") and unlabeled.label_column is not None:
        raise UserError(f"the {stage} stage takes no labels for unlabeled.root: unset unlabeled.label_column")
    if unlabeled.root and unlabeled.share is None and unlabeled.label_column is None:
        raise UserError("unlabeled.share=null samples both sets as one, which needs labels: set unlabeled.label_column, or a share")


def _check_methods(config: Config) -> None:
    loss, classifier = config.loss, config.classifier
    if loss.name == "ldam" and classifier.head != "cosine":
        raise UserError("loss.name=ldam has margins between cosines: set classifier.head=cosine")
    if loss.name == "focal" and (loss.label_smoothing or loss.label_aware_smoothing):
        raise UserError("loss.name=focal is not defined for smoothed labels: unset loss.label_smoothing and loss.label_aware_smoothing")
    for key, value in {"label_smoothing": (loss.label_smoothing,), "label_aware_smoothing": loss.label_aware_smoothing or ()}.items():
        if not all(0 <= part < 1 for part in value):
            raise UserError(f"loss.{key} must be from 0 to below 1")
    for key, beta in {"loss.beta": loss.beta, "sampler.beta": config.sampler.beta, "moco.ema_momentum": config.moco.ema_momentum}.items():
        if not 0 <= beta < 1:
            raise UserError(f"{key} must be from 0 to below 1, not {beta}")
    if min(classifier.mixup_alpha, classifier.cutmix_alpha, loss.gamma, loss.weights_from_epoch) < 0:
        raise UserError("classifier.mixup_alpha, classifier.cutmix_alpha, loss.gamma and loss.weights_from_epoch must be 0 or more")
    if min(config.semi.weight, config.fixmatch.weight, config.proco.weight) < 0:
        raise UserError("semi.weight, fixmatch.weight and proco.weight must be 0 or more")
    if not 0 <= config.fixmatch.threshold <= 1:
        raise UserError(f"fixmatch.threshold is of a probability, so from 0 to 1, not {config.fixmatch.threshold}")
    if loss.label_smoothing and loss.label_aware_smoothing is not None:
        raise UserError("loss.label_smoothing and loss.label_aware_smoothing exclude each other: set one of them")
    if loss.class_weights != "none" and loss.weights_from_epoch >= config.epochs:
        raise UserError(
            f"loss.weights_from_epoch={loss.weights_from_epoch:g} is not before the end of {config.epochs:g} epochs: class weights would never count; "
            "set it lower, or shorten a run by compress=N, which scales both"
        )
    if (classifier.mixup_alpha or classifier.cutmix_alpha) and config.stage not in ("classifier", "decoupled", "semi"):
        raise UserError(f"mixup and CutMix are for the stages classifier, decoupled and semi, not {config.stage}")
    plain = loss.name == "cross_entropy" and loss.class_weights == "none" and not (loss.label_smoothing or loss.label_aware_smoothing)
    if config.stage == "experts" and not plain:
        raise UserError("the experts stage has losses of its own, set by experts.taus: unset the keys of loss")
    if config.stage == "experts" and not config.experts.taus:
        raise UserError("experts.taus must hold a number for each expert")
    if config.stage == "decoupled" and config.decoupled.method == "lws" and classifier.head != "linear":
        raise UserError("decoupled.method=lws scales the logits of a linear classifier: set classifier.head=linear")
    if config.proco.dim < 16:
        raise UserError(f"proco.dim must be at least 16, not {config.proco.dim}: the density's normaliser is inexact below")
    if config.stage in ("proco", "fixmatch") and len({view.size for view in training_views(config).values()}) > 1:
        raise UserError(f"the {config.stage} stage sends all views through the network at once: second_view.size must be view.size")


def _check_view(key: str, view: ViewConfig, loader: str) -> None:
    for name, value in {"size": view.size, "scale": view.scale[0], "ratio": view.ratio[0]}.items():
        if value <= 0:
            raise UserError(f"{key}.{name} must be more than 0, not {value}")
    for name, (low, high) in {"scale": view.scale, "ratio": view.ratio, "blur_sigma": view.blur_sigma}.items():
        if low > high:
            raise UserError(f"{key}.{name} must go from the smaller to the larger value, not from {low} to {high}")
    if view.randaugment_ops < 0 or not 0 <= view.randaugment_magnitude <= 30:
        raise UserError(f"{key}.randaugment_ops must be 0 or more and {key}.randaugment_magnitude from 0 to 30")
    if view.crop == "pad" and loader == "dali":
        raise UserError(f"{key}.crop=pad needs data.loader=resident: a DALI crop cannot leave the image")
    if view.blur_probability > 0 and loader == "resident":
        raise UserError(f"{key}.blur_probability needs data.loader=dali: the resident loader does not blur")
