"""The range of every number of a config, where its meaning gives one."""

import math
from collections.abc import Callable
from typing import NamedTuple

from lt_train.errors import UserError

LARGEST_COUNT = 2**31 - 1
VIEWS = ("second_view.", "eval_view.")  # their numbers have the ranges of view's


class Range(NamedTuple):
    words: str  # as in "KEY must be WORDS"
    holds: Callable[[float], bool]
    why: str = ""


ANY = Range("a number", lambda value: True)
POSITIVE = Range("more than 0", lambda value: value > 0)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
SHARE = Range("from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = Range("from 0 to below 1", lambda value: 0 <= value < 1)

RANGES = {
    "seed": Range("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63),
    "epochs": POSITIVE,
    "compress": POSITIVE,
    "compressed_by": POSITIVE,
    "max_steps": Range("more than 0 or null", lambda value: value > 0),
    "global_batch_size": POSITIVE,
    "run.log_every": POSITIVE,
    "run.checkpoint_every": POSITIVE,
    "run.checkpoint_minutes": POSITIVE,
    "run.keep_checkpoints": POSITIVE,
    "run.evaluate_every": POSITIVE,
    "data.max_samples": Range("at least 1 or null", lambda value: value >= 1),
    "data.decode_threads": NOT_NEGATIVE,
    "data.eval_batch_size": POSITIVE,
    "data.max_bad_share": SHARE,
    "data.cache_gb": Range("more than 0 or null", lambda value: value > 0),
    "unlabeled.share": Range("more than 0 and less than 1, or null", lambda value: 0 < value < 1),
    "unlabeled.min_confidence": SHARE,
    "unlabeled.max_samples": Range("at least 1 or null", lambda value: value >= 1),
    "sampler.samples_per_class": POSITIVE,
    "sampler.beta": BELOW_1,
    "view.size": POSITIVE,
    "view.scale": Range("more than 0 and at most 1", lambda value: 0 < value <= 1),
    "view.ratio": POSITIVE,
    "view.padding": NOT_NEGATIVE,
    "view.resize": POSITIVE,
    "view.flip_probability": SHARE,
    "view.jitter": NOT_NEGATIVE,
    "view.jitter_probability": SHARE,
    "view.grayscale_probability": SHARE,
    "view.blur_probability": SHARE,
    "view.blur_sigma": NOT_NEGATIVE,
    "view.randaugment_ops": NOT_NEGATIVE,
    "view.randaugment_magnitude": Range("from 0 to 30 or null", lambda value: 0 <= value <= 30),
    "view.cutout": SHARE,
    "model.mean": ANY,
    "model.std": POSITIVE,
    "lora.rank": POSITIVE,
    "lora.alpha": POSITIVE,
    "adapter.dim": POSITIVE,
    "adapter.scale": POSITIVE,
    "optim.lr": NOT_NEGATIVE,
    "optim.head_lr_factor": POSITIVE,
    "optim.lr_batch_size": POSITIVE,
    "optim.momentum": SHARE,
    "optim.betas": BELOW_1,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.trust": POSITIVE,
    "optim.warmup_epochs": NOT_NEGATIVE,
    "optim.step_epochs": NOT_NEGATIVE,
    "optim.step_factors": NOT_NEGATIVE,
    "optim.clip_grad_norm": Range("more than 0 or null", lambda value: value > 0),
    "engine.zero_stage": Range("0, 1 or 2", lambda value: 0 <= value <= 3),  # 3: see checks.py
    "engine.accumulate": POSITIVE,
    "engine.cpu_threads": NOT_NEGATIVE,
    "loss.gamma": NOT_NEGATIVE,
    "loss.max_margin": NOT_NEGATIVE,
    "loss.tau": ANY,
    "loss.label_smoothing": BELOW_1,
    "loss.label_aware_smoothing": BELOW_1,
    "loss.beta": BELOW_1,
    "loss.weights_from_epoch": NOT_NEGATIVE,
    "classifier.scale": POSITIVE,
    "classifier.mixup_alpha": NOT_NEGATIVE,
    "classifier.cutmix_alpha": NOT_NEGATIVE,
    "moco.dim": POSITIVE,
    "moco.queue_size": POSITIVE,
    "moco.temperature": POSITIVE,
    "moco.ema_momentum": BELOW_1,
    "moco.bn_splits": NOT_NEGATIVE,
    "knn.k": POSITIVE,
    "knn.temperature": POSITIVE,
    "semi.weight": NOT_NEGATIVE,
    "fixmatch.threshold": SHARE,
    "fixmatch.weight": NOT_NEGATIVE,
    "fixmatch.ema_momentum": BELOW_1,
    "proco.dim": Range(
        "at least 16", lambda value: value >= 16, ": the density's normaliser is inexact below"
    ),
    "proco.temperature": POSITIVE,
    "proco.weight": NOT_NEGATIVE,
    "experts.taus": ANY,
    "reference_error": Range("from 0 to 100, in %, or null", lambda value: 0 <= value <= 100),
}


def check_ranges(values: dict) -> None:
    """Raise a :class:`UserError` for the first number out of range; ``values``: flat, by key."""
    for key, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check(key, number)


def of_first_view(key: str) -> str:
    """The key of ``view`` that a key of another view is like; any other as it is."""
    for view in VIEWS:
        if key.startswith(view):
            return f"view.{key.removeprefix(view)}"
    return key


def range_of(key: str) -> Range:
    return RANGES[of_first_view(key)]


def _check(key: str, number: float) -> None:
    allowed = range_of(key)
    if not math.isfinite(number):
        raise UserError(f"{key} must be a finite number, not {number}")
    if not allowed.holds(number):
        raise UserError(f"{key} must be {allowed.words}, not {number}{allowed.why}")
    if isinstance(number, int) and number > LARGEST_COUNT and key != "seed":
        raise UserError(f"{key} must be at most {LARGEST_COUNT}, not {number}")
