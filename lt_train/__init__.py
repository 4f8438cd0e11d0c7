"""Distributed training for long-tailed image recognition.

The names in ``__all__`` are for programs of your own, as docs/library.md shows, and keep their
meaning: the version's second number grows when there are more of them, its first when one changes.
Each is imported when it is first asked for, so that ``import lt_train`` alone takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_train.config.data_sections import SamplerConfig
    from lt_train.config.schema import LossConfig
    from lt_train.data import torch_dataset
    from lt_train.data.image_dataset import ImageDataset
    from lt_train.data.samplers import (
        ClassBalancedSampler,
        EffectiveNumberSampler,
        ElasticSampler,
        InstanceBalancedSampler,
        ProgressivelyBalancedSampler,
        SquareRootSampler,
    )
    from lt_train.errors import UserError
    from lt_train.methods.criteria import (
        BalancedSoftmaxLoss,
        CrossEntropyLoss,
        FocalLoss,
        LDAMLoss,
        LogitAdjustmentLoss,
    )
    from lt_train.methods.losses import Criterion
    from lt_train.models.heads import CosineClassifier
    from lt_train.models.loading import load_backbone

__version__ = "0.2.0"

__all__ = [
    "BalancedSoftmaxLoss",
    "ClassBalancedSampler",
    "CosineClassifier",
    "Criterion",
    "CrossEntropyLoss",
    "EffectiveNumberSampler",
    "ElasticSampler",
    "FocalLoss",
    "ImageDataset",
    "InstanceBalancedSampler",
    "LDAMLoss",
    "LogitAdjustmentLoss",
    "LossConfig",
    "ProgressivelyBalancedSampler",
    "SamplerConfig",
    "SquareRootSampler",
    "UserError",
    "load_backbone",
    "torch_dataset",
]

_HOMES = {
    "lt_train.config.data_sections": ["SamplerConfig"],
    "lt_train.config.schema": ["LossConfig"],
    "lt_train.data": ["torch_dataset"],
    "lt_train.data.image_dataset": ["ImageDataset"],
    "lt_train.data.samplers": [
        "ClassBalancedSampler",
        "EffectiveNumberSampler",
        "ElasticSampler",
        "InstanceBalancedSampler",
        "ProgressivelyBalancedSampler",
        "SquareRootSampler",
    ],
    "lt_train.errors": ["UserError"],
    "lt_train.methods.criteria": [
        "BalancedSoftmaxLoss",
        "CrossEntropyLoss",
        "FocalLoss",
        "LDAMLoss",
        "LogitAdjustmentLoss",
    ],
    "lt_train.methods.losses": ["Criterion"],
    "lt_train.models.heads": ["CosineClassifier"],
    "lt_train.models.loading": ["load_backbone"],
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
