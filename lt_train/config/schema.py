"""Every key of a config, with its type, default and meaning; and the tables of what a key can name.

Those of the data are in data_sections.py, those of single methods in method_sections.py. The tables
know no torch: an entry says where its code is, which is imported when a run needs it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from lt_train.config.data_sections import (
    DataConfig,
    SamplerConfig,
    UnlabeledConfig,
    ViewConfig,
)
from lt_train.config.method_sections import (
    DecoupledConfig,
    ExpertsConfig,
    FixmatchConfig,
    KnnConfig,
    MocoConfig,
    ProcoConfig,
    RotationConfig,
    SemiConfig,
)


@dataclass(frozen=True)
class RunConfig:
    # where everything of the run goes; empty: runs/<config name>, with +NAME and the overrides that
    # change what is learnt
    dir: str = ""
    log_every: int = 20  # steps; the only times at which the host waits for the device
    checkpoint_every: int = 500  # steps
    checkpoint_minutes: float = 15.0  # and after so many, looked at every log_every steps
    keep_checkpoints: int = 2  # the newest; older ones are removed
    # epochs, on the validation split where there is one; the end is always evaluated
    evaluate_every: float = 10.0
    # which weights a run ends with: the last, or those that were best on the validation split;
    # "test" selects on the test split as the code of Yang and Xu 2020 does, for comparison with its
    # numbers only
    select: Literal["last", "val", "test"] = "last"


@dataclass(frozen=True)
class ModelConfig:
    # one of BACKBONES, or timm/NAME: a network of timm, whose own image size, resizing, mean and
    # std a config then starts from; python -m lt_train --list-backbones shows all
    backbone: str = "resnet50"
    # where init_from is not set, start with the weights that timm/NAME names: from the Hugging Face
    # hub's cache, or the hub
    pretrained: bool = False
    # of pixels from 0 to 1, what the backbone expects: ImageNet's, for torchvision's networks
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # the same
    # a run folder, or a file with a backbone: .safetensors, or .pth / .pth.tar of MoCo,
    # torchvision, timm, Hugging Face
    init_from: Optional[str] = None
    # which network of a file with several: the name that its tensors' names begin with, or a part
    # of it, such as student or encoder_k; null: the one that was trained, which the log names
    init_prefix: Optional[str] = None
    # what of the backbone is trained beside the head, which always is: all of it, nothing, the
    # weights and biases of normalisation layers, all biases, or what section lora or adapter adds
    trainable: Literal["all", "head", "norm", "bias", "lora", "adapter"] = "all"


@dataclass(frozen=True)
class LoraConfig:
    """model.trainable=lora: low-rank updates W + alpha / rank * B A (Hu et al. 2022)."""

    rank: int = 8  # of the updates
    alpha: float = 16.0  # updates count alpha / rank times
    # names of layers, or ends of them, such as qkv; empty: all linear layers and convolutions that
    # can have updates
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterConfig:
    """model.trainable=adapter: beside the MLP of every transformer block (Chen et al. 2022)."""

    dim: int = 64  # of the layer in between
    scale: float = 0.1  # of what is added


@dataclass(frozen=True)
class OptimConfig:
    # AdamW: Loshchilov and Hutter 2019; LARS, for batches of 4,096 and more: You et al. 2017
    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: float = 0.1  # for a global batch of lr_batch_size
    head_lr_factor: float = 1.0  # the learning rate of all but the backbone, over the backbone's
    scale_lr: bool = True  # scale linearly with the global batch size
    lr_batch_size: int = 256  # the global batch that lr is given for
    momentum: float = 0.9  # sgd, lars
    nesterov: bool = False  # sgd
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    weight_decay: float = 1e-4  # adamw: decoupled, times the learning rate
    decay_norms: bool = True  # false: no weight decay of what has one dimension: norms and biases
    trust: float = 0.001  # lars: a layer's step at a rate of 1, over the length of its weights
    schedule: Literal["cosine", "step", "constant"] = "cosine"  # of the rate, after warm-up
    warmup_epochs: float = 0.0  # or a share of the epochs, such as 5%
    step_epochs: tuple[float, ...] = ()  # step: from these epochs (or shares, 80%) on ...
    step_factors: tuple[float, ...] = ()  # ... the learning rate is lr times this factor
    clip_grad_norm: Optional[float] = None  # longer gradients are scaled down to this norm


@dataclass(frozen=True)
class EngineConfig:
    name: Literal["ddp", "deepspeed"] = "ddp"  # what sums the gradients of several ranks
    zero_stage: int = 1  # deepspeed only: 0, 1 or 2
    # auto: bf16 where this machine is faster in it; a run stays with what it has begun in
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # torch.compile the backbones, block by block
    # launch the kernels of a step together; auto: of small images, on one GPU, where a step needs
    # nothing that the host draws
    cuda_graph: Literal["auto", "true", "false"] = "auto"
    # parts that a rank's batch goes through the network in, one after the other, for its memory
    accumulate: int = 1
    # keep only what goes into a backbone's blocks, and compute them again in the backward pass
    activation_checkpointing: bool = False
    # torch's threads on the CPU, of a rank; 0: OMP_NUM_THREADS, or the rank's share of the cores
    cpu_threads: int = 0


@dataclass(frozen=True)
class ResumeConfig:
    enabled: bool = True  # go on from the newest checkpoint in run.dir; false: begin anew
    allow_changes: tuple[str, ...] = ()  # config keys that may differ from the interrupted run's


@dataclass(frozen=True)
class LossConfig:
    """The loss and the weights of classes in it; formulas and papers: methods/losses.py."""

    name: str = "cross_entropy"  # one of LOSSES, of the classifier
    gamma: float = 1.0  # focal
    max_margin: float = 0.5  # ldam: the rarest class's
    tau: float = 1.0  # logit_adjustment
    # s / C to every class, the true one's rest to it (Szegedy et al. 2016)
    label_smoothing: float = 0.0
    # of the most frequent and of the rarest class: s / (C - 1) to every other class (Zhong et al.
    # 2021)
    label_aware_smoothing: Optional[tuple[float, float]] = None
    # of a class in the loss: over its training images, or their effective number (Cui et al. 2019)
    class_weights: Literal["none", "inverse", "effective_number"] = "none"
    beta: float = 0.9999  # effective_number
    # class weights only from this epoch on, or this share, 80%: deferred re-weighting (DRW)
    weights_from_epoch: float = 0.0


@dataclass(frozen=True)
class ClassifierConfig:
    head: Literal["linear", "cosine"] = "linear"  # cosine: of features and weights of length 1
    scale: float = 30.0  # cosine: logits are so many times the cosine
    # what it starts from: class_means, of the backbone's features of the training split; or a
    # .safetensors file of one embedding a class, such as a text encoder's; null: random weights
    init: Optional[str] = None
    mixup_alpha: float = 0.0  # above 0: mixup with weights from Beta(alpha, alpha)
    cutmix_alpha: float = 0.0  # the same for CutMix; with both, one or the other in turn at random


@dataclass(frozen=True)
class Config:
    """Everything that decides a run; units are in the comments.

    What is counted in epochs may be a share of all of them instead, such as 80% (see epochs.py).
    """

    description: str = ""  # a line, for --help, logs and reports
    method: str = "classifier"  # one of METHODS: what is trained, and how
    # modules of your own to import first, which may add methods, losses, samplers, backbones
    imports: tuple[str, ...] = ()
    seed: int = 0  # of initial weights, sample order and augmentation
    epochs: float = 90.0  # of as many samples as the training split has images
    # divide every number of epochs (of training, warm-up, steps, re-weighting, evaluation) by this,
    # for trials
    compress: float = 1.0
    # what compress has divided the numbers here by: config.yaml says it, and reports do; not to set
    compressed_by: float = 1.0
    max_steps: Optional[int] = None  # stop early, for trials; the schedule stays that of `epochs`
    global_batch_size: int = 256  # over all ranks; what a rank gets follows from it
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    unlabeled: UnlabeledConfig = field(default_factory=UnlabeledConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    # of views after the first, where a method takes several; starts as a copy of view
    second_view: Optional[ViewConfig] = None
    # of evaluation
    eval_view: ViewConfig = field(
        default_factory=lambda: ViewConfig(crop="center", flip_probability=0.0)
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
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
    # top-1 error in % that a paper reports for this; the report shows it beside ours
    reference_error: Optional[float] = None


@dataclass(frozen=True)
class MethodTraits:
    """What others must know of a method before its code is loaded.

    ``code``: its class, as "module:name" or itself.
    """

    code: str | type
    num_views: int = 1  # differently augmented views of each image in a training batch
    headline: str = "top1"  # the metric that tells its runs apart
    needs_labels: bool = True  # of data.root; false: any images will do
    has_classifier: bool = True  # of the data set's own classes
    # what unlabeled.root must be
    second_set: Literal["none", "unlabeled", "pseudo_labeled"] = "none"
    scores_pools: bool = False  # python -m lt_train score can use it
    from_finished: bool = False  # needs a trained backbone in model.init_from
    linear_head: bool = False  # has no use for another classifier.head
    own_loss: bool = False  # takes no keys of loss
    mixes_images: bool = False  # knows mixup and CutMix
    # sends all views through the network at once, which must be of one size
    views_together: bool = False
    contrasts: bool = False  # samples of a batch with one another: no part of it will do


METHODS: dict[str, MethodTraits] = {
    "moco": MethodTraits(
        "lt_train.methods.moco:Moco",
        num_views=2,
        headline="knn_top1",
        needs_labels=False,
        has_classifier=False,
        contrasts=True,
    ),
    "rotation": MethodTraits(
        "lt_train.methods.rotation:Rotation",
        headline="knn_top1",
        needs_labels=False,
        has_classifier=False,
    ),
    "classifier": MethodTraits("lt_train.methods.classifier:Classifier", mixes_images=True),
    "crt": MethodTraits("lt_train.methods.decoupled:Crt", from_finished=True, mixes_images=True),
    "lws": MethodTraits(
        "lt_train.methods.decoupled:Lws", from_finished=True, linear_head=True, mixes_images=True
    ),
    "experts": MethodTraits("lt_train.methods.experts:Experts", own_loss=True),
    "proco": MethodTraits(
        "lt_train.methods.proco:Proco", num_views=3, views_together=True, contrasts=True
    ),
    "semi": MethodTraits(
        "lt_train.methods.semi:Semi", second_set="pseudo_labeled", mixes_images=True
    ),
    "fixmatch": MethodTraits(
        "lt_train.methods.fixmatch:Fixmatch",
        num_views=2,
        second_set="unlabeled",
        views_together=True,
    ),
    "sourcing": MethodTraits(
        "lt_train.methods.sourcing:Sourcing",
        has_classifier=False,
        second_set="unlabeled",
        scores_pools=True,
    ),
}


@dataclass(frozen=True)
class LossTraits:
    """``code``: a function like those in lt_train/methods/losses.py, as "module:name" or itself."""

    code: str | Callable
    cosine_head: bool = False  # is defined for cosines only
    smooths_labels: bool = True  # is defined for smoothed labels too


LOSSES: dict[str, LossTraits] = {
    "cross_entropy": LossTraits("lt_train.methods.losses:cross_entropy"),
    "focal": LossTraits("lt_train.methods.losses:focal", smooths_labels=False),
    "ldam": LossTraits("lt_train.methods.losses:ldam", cosine_head=True),
    "balanced_softmax": LossTraits("lt_train.methods.losses:balanced_softmax"),
    "logit_adjustment": LossTraits("lt_train.methods.losses:logit_adjustment"),
}

SAMPLERS: dict[str, str | type] = {  # classes like those in lt_train/data/order.py
    "instance_balanced": "lt_train.data.order:InstanceBalanced",
    "class_balanced": "lt_train.data.order:ClassBalanced",
    "square_root": "lt_train.data.order:SquareRoot",
    "progressively_balanced": "lt_train.data.order:ProgressivelyBalanced",
    "effective_number": "lt_train.data.order:EffectiveNumber",
}

BACKBONES: dict[str, str | Callable] = {  # functions like those in lt_train/models/backbones.py
    "resnet10": "lt_train.models.backbones:resnet10",
    "resnet18": "lt_train.models.backbones:resnet18",
    "resnet50": "lt_train.models.backbones:resnet50",
    "resnet101": "lt_train.models.backbones:resnet101",
    "resnet152": "lt_train.models.backbones:resnet152",
    "resnext50_32x4d": "lt_train.models.backbones:resnext50_32x4d",
    "resnet14_cifar": "lt_train.models.backbones:resnet14_cifar",
    "resnet32_cifar": "lt_train.models.backbones:resnet32_cifar",
    "wrn_28_10": "lt_train.models.backbones:wrn_28_10",
}


def code_of(table: Mapping[str, Any], name: str) -> Any:
    """The class or function that ``name`` stands for in one of the tables, imported only now."""
    entry = table[name]
    code = getattr(entry, "code", entry)
    if not isinstance(code, str):
        return code
    module, _, attribute = code.partition(":")
    return getattr(importlib.import_module(module), attribute)


def has_start(model: ModelConfig) -> bool:
    """Whether the backbone starts from weights that can be had again, not at random."""
    return bool(model.init_from) or model.pretrained


def training_views(config: Config) -> dict[str, ViewConfig]:
    """The configs of training views by their keys."""
    views = {"view": config.view, "second_view": config.second_view}
    return {key: view for key, view in views.items() if view is not None}


def views_in_order(config: Config) -> list[ViewConfig]:
    """The configs of all views of an image in the training batches of the config's method."""
    others = METHODS[config.method].num_views - 1
    return [config.view, *[config.second_view or config.view] * others]


def labeled_batch(config: Config) -> int:
    """Samples of the first set in a global batch: what the share of the second one leaves.

    At least one of each, where there are two; with ``unlabeled.share`` null both sets are sampled
    as one, and this is the whole batch.
    """
    size, share = config.global_batch_size, config.unlabeled.share
    if not config.unlabeled.root or share is None:
        return size
    return min(max(1, round(size * (1 - share))), max(1, size - 1))
