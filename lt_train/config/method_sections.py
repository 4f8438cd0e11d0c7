"""The sections of a config that one method, or one kind of them, alone reads."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DecoupledConfig:
    """cRT and LWS."""

    freeze_bn_stats: bool = True  # batch norm of the backbone keeps its statistics


@dataclass(frozen=True)
class MocoConfig:
    dim: int = 128  # of what is contrasted
    queue_size: int = 65536  # keys that every query is told apart from
    temperature: float = 0.2  # similarities are divided by it
    ema_momentum: float = 0.999  # of the average that gives the keys
    projector: Literal["mlp", "linear"] = "mlp"  # MoCo v2's or v1's
    # groups a rank's batch is cut into for batch norm; 0: 1 on many ranks, up to 4 on one
    bn_splits: int = 0


@dataclass(frozen=True)
class RotationConfig:
    all_four: bool = False  # every image in all four rotations; false: in one, at random


@dataclass(frozen=True)
class KnnConfig:
    """The k-NN classifier that evaluates self-supervised methods."""

    k: int = 200  # neighbours that vote
    temperature: float = 0.07  # their similarities are divided by it


@dataclass(frozen=True)
class SemiConfig:
    weight: float = 1.0  # omega: of a pseudo-labeled sample in the loss, against 1 of a labeled one


@dataclass(frozen=True)
class FixmatchConfig:
    threshold: float = 0.95  # of the weak view's confidence
    weight: float = 1.0  # of the unlabeled samples' loss
    # of the average that is evaluated and exported; 0: the trained weights themselves
    ema_momentum: float = 0.999


@dataclass(frozen=True)
class ProcoConfig:
    dim: int = 128  # of what is contrasted
    temperature: float = 0.1  # similarities are divided by it
    weight: float = 1.0  # of the contrastive loss beside the classifier's


@dataclass(frozen=True)
class ExpertsConfig:
    # an expert each, by how much its training logits are adjusted
    taus: tuple[float, ...] = (0.0, 1.0, 2.0)
