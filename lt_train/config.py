"""Typed configuration: YAML files and ``key=value`` overrides, validated against frozen dataclasses.

A config file may name another as its ``base``; ``configs/<name>.yaml`` is found by its bare name. The resolved config is
one immutable :class:`Config`, saved with every run. Errors are :class:`~lt_train.errors.UserError` with one line.
"""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import yaml
from omegaconf import OmegaConf
from omegaconf._yaml import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from lt_train.errors import UserError

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class RunConfig:
    dir: str = ""  # where everything of the run goes; empty: runs/<config name>
    log_every: int = 20  # steps; the only times at which the host waits for the device
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2
    evaluate_every: int = 10  # epochs, on the validation split where there is one; the end is always evaluated


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
    root: str = ""  # a second folder written by data_prep, of which every batch takes a share; its labels are not used
    split: str = "train"
    share: float = 0.5  # of the global batch
    max_samples: Optional[int] = None  # use a draw of so many, by the seed; what the resident loader can hold of a large pool


@dataclass(frozen=True)
class SamplerConfig:
    name: Literal["instance_balanced", "class_balanced"] = "instance_balanced"
    samples_per_class: int = 4  # class_balanced: how many positions in a row a class gets


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


@dataclass(frozen=True)
class ModelConfig:
    backbone: Literal["resnet10", "resnet18", "resnet50", "resnet32_cifar", "wrn_28_10"] = "resnet50"
    init_from: Optional[str] = None  # a run folder or a .safetensors file with a backbone


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
class MocoConfig:
    dim: int = 128
    queue_size: int = 65536
    temperature: float = 0.2
    ema_momentum: float = 0.999
    bn_splits: int = 0  # groups a rank's batch is cut into for batch norm; 0: 1 on many ranks, up to 4 on one
    knn_k: int = 200
    knn_temperature: float = 0.07


@dataclass(frozen=True)
class ClassifierConfig:
    loss: Literal["cross_entropy"] = "cross_entropy"


@dataclass(frozen=True)
class DecoupledConfig:
    method: Literal["crt"] = "crt"
    freeze_bn_stats: bool = True


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. See the comments in lt_train/config.py for units."""

    description: str = ""
    stage: Literal["moco", "classifier", "decoupled", "sourcing"] = "classifier"
    seed: int = 0
    epochs: float = 90.0
    max_steps: Optional[int] = None  # stop early, for trials; the schedule stays that of `epochs`
    global_batch_size: int = 256  # over all ranks; what a rank gets follows from it
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    unlabeled: UnlabeledConfig = field(default_factory=UnlabeledConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    eval_view: ViewConfig = field(default_factory=lambda: ViewConfig(crop="center", flip_probability=0.0))
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    decoupled: DecoupledConfig = field(default_factory=DecoupledConfig)


def load_config(name: str, overrides: list[str] = ()) -> Config:
    """Resolve a config: dataclass defaults, then its ``base`` files, then itself, then ``key=value`` overrides.

    ``name`` is a path to a YAML file or the bare name of one in ``configs/``.
    """
    path = find_config(name)
    layers = _read_layers(path)
    layers += [(f"'{override}': ", _parse_override(override)) for override in overrides]
    config = _structured()
    for origin, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}{_explain(error, layer)}") from error
    try:
        resolved = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    if not resolved.run.dir:
        resolved = dataclasses.replace(resolved, run=dataclasses.replace(resolved.run, dir=f"runs/{path.stem}"))
    _check(resolved)
    return resolved


def find_config(name: str, pipelines: list[str] = ()) -> Path:
    """The YAML file that ``name`` means, or a :class:`UserError` that names the nearest config (or one of ``pipelines``)."""
    for candidate in (Path(name), CONFIG_DIR / f"{name}.yaml"):
        if candidate.suffix in (".yaml", ".yml") and candidate.is_file():
            return candidate
    known = [*pipelines, *sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))]
    what = "config or pipeline" if pipelines else "config"
    raise UserError(f"no {what} '{name}' in {CONFIG_DIR.name}/{nearest(name, known)}; known: {', '.join(known)}")


def list_configs(folder: Path = CONFIG_DIR) -> list[tuple[str, str]]:
    """(name, one-line description) of every config in ``folder``."""
    return [(path.stem, str(read_yaml(path).get("description", ""))) for path in sorted(folder.glob("*.yaml"))]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, without interpolations resolved."""
    try:
        content = yaml.load(path.read_text("utf-8"), _yaml_loader())
        content = OmegaConf.to_container(OmegaConf.create(content)) if isinstance(content, dict) else content
    except (OSError, yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} does not hold 'key: value' lines")
    return content or {}


def _yaml_loader() -> Any:
    """OmegaConf's own, but 12:30:00 stays text: YAML 1.1 takes it for a number to the base of 60."""
    loader = get_yaml_loader()  # a new class at every call
    loader.add_constructor("tag:yaml.org,2002:int", lambda self, node: node.value if ":" in node.value else self.construct_yaml_int(node))
    return loader


def to_yaml(config: Config) -> str:
    """The resolved config as YAML text, in the order of the dataclasses."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dicts and lists, as read back by :func:`read_yaml`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as YAML has them


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optim": {"lr": 1}}`` -> ``{"optim.lr": 1}``."""
    flat = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _structured() -> Any:
    """The schema; OmegaConf makes frozen dataclasses read-only, which merging has to lift."""
    config = OmegaConf.structured(Config)
    OmegaConf.set_readonly(config, False)
    for section in dataclasses.fields(Config):
        if OmegaConf.is_config(config[section.name]):
            OmegaConf.set_readonly(config[section.name], False)
    return config


def _read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The file's chain of bases, lowest first, and itself: (what to put before an error, content)."""
    if path in seen:
        raise UserError(f"{path}: the chain of 'base' files comes back to itself")
    layer = read_yaml(path)
    base = layer.pop("base", None)
    layers = []
    if base is not None:
        base_path = path.parent / f"{base}.yaml"
        if not base_path.is_file():
            raise UserError(f"{path}: its base '{base}' is not at {base_path}")
        layers = _read_layers(base_path, (*seen, path))
    return [*layers, (f"{path}: ", layer)]


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not of the form key=value")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"cannot read the override '{override}': {_first_line(error)}") from error


def _explain(error: OmegaConfBaseException, layer: dict[str, Any]) -> str:
    """One line for a merge error; for an unknown key, the nearest valid one."""
    valid = flatten(to_dict(Config()))
    sections = {key.partition(".")[0] for key in valid}
    for key, value in flatten(layer).items():
        if key not in valid and not (value is None and key in sections):
            if key in sections:
                return f"'{key}' is a group of keys, not a value; use {key}.NAME=VALUE"
            return f"unknown key '{key}'{nearest(key, [*valid, *sections])}"
    key, line = getattr(error, "full_key", None), _first_line(error)
    if "$VALUE" in line:  # OmegaConf fills its template for single values only
        line = "one of its values has the wrong type"
    return f"{key}: {line}" if key else line


def nearest(word: str, choices: list[str]) -> str:
    """``, did you mean '...'?`` with the choice most like ``word``, or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if not close:  # a right name in the wrong group: compare the last parts alone
        last = {choice.rpartition(".")[2]: choice for choice in choices}
        close = [last[match] for match in difflib.get_close_matches(word.rpartition(".")[2], last, n=1, cutoff=0.6)]
    return f", did you mean '{close[0]}'?" if close else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check(config: Config) -> None:
    """What types cannot say."""
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
