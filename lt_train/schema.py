"""Every key of a config, with its type, default and meaning, and the checks that types cannot make."""

from dataclasses import dataclass, field
from typing import Literal, Optional

from lt_train.errors import UserError


@dataclass(frozen=True)
class RunConfig:
    dir: str = ""  # where everything of the run goes; empty: runs/<config name>
    log_every: int = 20  # steps; the only times at which the host waits for the device
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2
    evaluate_every: float = 10.0  # epochs, on the validation split where there is one; the end is always evaluated
    # which weights a run ends with: the last, or those that were best on the validation split; "test" selects on the test split
    # as the code of Yang and Xu 2020 does, for comparison with its numbers only
    select: Literal["last", "val", "test"] = "last"


@dataclass(frozen=True)
class DataConfig:
    root: str = ""  # a folder written by data_prep
    train_split: str = "train"
    val_split: str = "val"  # used for model selection; skipped when the data set has none
    test_split: str = "test"  # evaluated once, after training
    loader: Literal["dali", "resident"] = "dali"
    decode_threads: int = 0  # DALI threads a rank; 0: the machine's cores shared by its ranks
    eval_batch_size: int = 256  # samples a rank
    max_bad_share: float = 0.001  # stop when more than this share of a split turns out unreadable
    stage_to: Optional[str] = None  # copy the shards to this node-local folder first, verified


@dataclass(frozen=True)
class UnlabeledConfig:
    root: str = ""  # a second folder written by data_prep, whose own labels are not used
    split: str = "train"
    share: Optional[float] = 0.5  # of the global batch; null: both sets are one, sampled alike (needs label_column)
    label_column: Optional[str] = None  # take labels from this column of its manifest, such as pseudo_label or sourced_label
    confidence_column: str = "confidence"
    min_confidence: float = 0.0  # with label_column: leave out samples that are less sure
    max_samples: Optional[int] = None  # use a draw of so many, by the seed; what the resident loader can hold of a large pool


@dataclass(frozen=True)
class SamplerConfig:
    name: Literal["instance_balanced", "class_balanced", "square_root", "progressively_balanced", "effective_number"] = "instance_balanced"
    samples_per_class: int = 4  # class_balanced: how many positions in a row a class gets
    beta: float = 0.9999  # effective_number


@dataclass(frozen=True)
class ViewConfig:
    """One augmented view of an image. Probabilities of 0 switch a transform off."""

    size: int = 224  # pixels, the side of the square output
    crop: Literal["random_resized", "pad", "center"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)  # random_resized: share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random_resized: width / height
    padding: int = 4  # pad: zero pixels round the image before a random crop
    resize: int = 256  # center: the shorter side before the crop
    flip_probability: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_probability: float = 1.0
    grayscale_probability: float = 0.0
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    randaugment_ops: int = 0  # RandAugment's N: random operations in a row on each image
    randaugment_magnitude: int = 10  # RandAugment's M, of 30


@dataclass(frozen=True)
class ModelConfig:
    backbone: Literal["resnet10", "resnet18", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnet32_cifar", "wrn_28_10"] = "resnet50"
    init_from: Optional[str] = None  # a run folder, or a file with a backbone: .safetensors, or .pth / .pth.tar of MoCo, torchvision, timm


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 0.1  # for a global batch of lr_batch_size
    scale_lr: bool = True  # scale linearly with the global batch size
    lr_batch_size: int = 256
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: tuple[float, ...] = ()  # step: from these epochs on ...
    step_factors: tuple[float, ...] = ()  # ... the learning rate is lr times this factor
    clip_grad_norm: Optional[float] = None


@dataclass(frozen=True)
class EngineConfig:
    name: Literal["ddp", "deepspeed"] = "ddp"
    zero_stage: int = 1  # deepspeed only: 0, 1 or 2
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware computes in it
    compile: bool = False  # torch.compile the backbones


@dataclass(frozen=True)
class ResumeConfig:
    enabled: bool = True
    allow_changes: tuple[str, ...] = ()  # config keys that may differ from the interrupted run's


@dataclass(frozen=True)
class LossConfig:
    """The loss and the weights of classes in it; see lt_train/losses.py for formulas and papers."""

    name: Literal["cross_entropy", "focal", "ldam", "balanced_softmax", "logit_adjustment"] = "cross_entropy"
    gamma: float = 1.0  # focal
    max_margin: float = 0.5  # ldam: the rarest class's
    tau: float = 1.0  # logit_adjustment
    label_smoothing: float = 0.0
    label_aware_smoothing: Optional[tuple[float, float]] = None  # smoothing of the most frequent and of the rarest class
    class_weights: Literal["none", "inverse", "effective_number"] = "none"
    beta: float = 0.9999  # effective_number
    weights_from_epoch: float = 0.0  # class weights only from this epoch on: deferred re-weighting (DRW)


@dataclass(frozen=True)
class ClassifierConfig:
    head: Literal["linear", "cosine"] = "linear"
    scale: float = 30.0  # cosine: logits are so many times the cosine
    mixup_alpha: float = 0.0  # above 0: mixup with weights from Beta(alpha, alpha)
    cutmix_alpha: float = 0.0  # the same for CutMix; with both, one or the other in turn at random


@dataclass(frozen=True)
class DecoupledConfig:
    method: Literal["crt", "lws"] = "crt"
    freeze_bn_stats: bool = True


@dataclass(frozen=True)
class MocoConfig:
    dim: int = 128
    queue_size: int = 65536
    temperature: float = 0.2
    ema_momentum: float = 0.999
    projector: Literal["mlp", "linear"] = "mlp"  # MoCo v2's or v1's
    bn_splits: int = 0  # groups a rank's batch is cut into for batch norm; 0: 1 on many ranks, up to 4 on one


@dataclass(frozen=True)
class RotationConfig:
    all_four: bool = False  # every image in all four rotations; false: in one, at random


@dataclass(frozen=True)
class KnnConfig:
    """The k-NN classifier that evaluates self-supervised stages."""

    k: int = 200
    temperature: float = 0.07


@dataclass(frozen=True)
class SemiConfig:
    weight: float = 1.0  # omega: of a pseudo-labelled sample in the loss, against 1 of a labelled one


@dataclass(frozen=True)
class FixmatchConfig:
    threshold: float = 0.95  # of the weak view's confidence
    weight: float = 1.0  # of the unlabelled samples' loss


@dataclass(frozen=True)
class ProcoConfig:
    dim: int = 128
    temperature: float = 0.1
    weight: float = 1.0  # of the contrastive loss beside the classifier's


@dataclass(frozen=True)
class ExpertsConfig:
    taus: tuple[float, ...] = (0.0, 1.0, 2.0)  # an expert each, by how much its training logits are adjusted


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. See the comments in lt_train/config.py for units."""

    description: str = ""
    stage: Literal["moco", "rotation", "classifier", "decoupled", "experts", "proco", "semi", "fixmatch", "sourcing"] = "classifier"
    seed: int = 0
    epochs: float = 90.0
    compress: float = 1.0  # divide every number of epochs (of training, warm-up, steps, re-weighting, evaluation) by this, for trials
    max_steps: Optional[int] = None  # stop early, for trials; the schedule stays that of `epochs`
    global_batch_size: int = 256  # over all ranks; what a rank gets follows from it
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    unlabeled: UnlabeledConfig = field(default_factory=UnlabeledConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    second_view: Optional[ViewConfig] = None  # of views after the first, where a stage takes several; null: as view
    eval_view: ViewConfig = field(default_factory=lambda: ViewConfig(crop="center", flip_probability=0.0))
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    decoupled: DecoupledConfig = field(default_factory=DecoupledConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
    rotation: RotationConfig = field(default_factory=RotationConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    semi: SemiConfig = field(default_factory=SemiConfig)
    fixmatch: FixmatchConfig = field(default_factory=FixmatchConfig)
    proco: ProcoConfig = field(default_factory=ProcoConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    reference_error: Optional[float] = None  # top-1 error in % that a paper reports for this; the report shows it beside ours


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
        "view.size": config.view.size,
        "view.scale": config.view.scale[0],
        "view.ratio": config.view.ratio[0],
        "eval_view.size": config.eval_view.size,
        "moco.queue_size": config.moco.queue_size,
        "moco.temperature": config.moco.temperature,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key} must be more than 0, not {value}")
    for key, (low, high) in {"scale": config.view.scale, "ratio": config.view.ratio, "blur_sigma": config.view.blur_sigma}.items():
        if low > high:
            raise UserError(f"view.{key} must go from the smaller to the larger value, not from {low} to {high}")
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
    if config.view.crop == "pad" and config.data.loader == "dali":
        raise UserError("view.crop=pad needs data.loader=resident: a DALI crop cannot leave the image")
    if config.view.blur_probability > 0 and config.data.loader == "resident":
        raise UserError("view.blur_probability needs data.loader=dali: the resident loader does not blur")
    if not 0 <= config.engine.zero_stage <= 3:
        raise UserError(f"engine.zero_stage must be 0, 1 or 2, not {config.engine.zero_stage}")
    if config.engine.name == "deepspeed" and config.engine.zero_stage == 3:
        raise UserError(
            "engine.zero_stage=3 is not supported: it scatters the parameters that MoCo's key encoder and the backbone's "
            "export read whole, for models that fit on one device anyway; use 1 or 2"
        )
    if not 0 < config.unlabeled.share < 1:
        raise UserError(f"unlabeled.share must be more than 0 and less than 1, not {config.unlabeled.share}")
    if config.unlabeled.max_samples is not None and config.unlabeled.max_samples < 1:
        raise UserError(f"unlabeled.max_samples must be at least 1 or null, not {config.unlabeled.max_samples}")
    if config.stage == "moco" and config.unlabeled.root:
        raise UserError("the moco stage needs no labels and takes one data set: set data.root to it and unset unlabeled.root")
    if config.stage == "sourcing" and not config.unlabeled.root:
        raise UserError("the sourcing stage tells known classes from a pool: set unlabeled.root to a pool that data_prep has sharded")
    if config.model.init_from is None and config.stage == "decoupled":
        raise UserError("the decoupled stage trains on a finished backbone: set model.init_from to a run folder")
