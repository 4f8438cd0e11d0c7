"""Numbers of epochs: as shares of a training, and compressed."""

import dataclasses
import re
from typing import Any

from omegaconf import OmegaConf

from lt_train.config.reading import flatten, to_dict
from lt_train.config.schema import Config

# what counts epochs of a training, beside its length: one number, or a list of them
IN_EPOCHS = {
    "optim.warmup_epochs": float,
    "optim.step_epochs": list,
    "loss.weights_from_epoch": float,
    "run.evaluate_every": float,
}
PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)%", re.ASCII)
RESOLVER = "percent_of_epochs"

OmegaConf.register_resolver(
    RESOLVER, lambda percent, *, _root_: percent * _root_.epochs / 100, replace=True
)


def with_shares(layer: dict[str, Any], above: str = "") -> dict[str, Any]:
    """``layer`` with ``80%`` of a key in epochs as what OmegaConf will look up once it knows how
    many epochs there are: a later layer may change them.
    """
    content = {}
    for name, value in layer.items():
        key = f"{above}{name}"
        if isinstance(value, dict):
            value = with_shares(value, f"{key}.")
        elif IN_EPOCHS.get(key) is list and isinstance(value, list):
            value = [_share(item) for item in value]
        elif IN_EPOCHS.get(key) is float:
            value = _share(value)
        content[name] = value
    return content


def _share(value: Any) -> Any:
    """``80%`` as an interpolation; anything else as it is."""
    percent = PERCENT.fullmatch(value) if isinstance(value, str) else None
    return f"${{{RESOLVER}:{percent[1]}}}" if percent else value


def compressed(config: Config) -> Config:
    """``config`` with every number of epochs divided by ``compress``, as ``compressed_by`` says."""
    by, values = config.compress, flatten(to_dict(config))
    sections: dict[str, dict[str, Any]] = {}
    for key in IN_EPOCHS:
        (section, name), value = key.split("."), values[key]
        quotient = tuple(epoch / by for epoch in value) if isinstance(value, list) else value / by
        sections.setdefault(section, {})[name] = quotient
    changed = {
        section: dataclasses.replace(getattr(config, section), **quotients)
        for section, quotients in sections.items()
    }
    changed |= {"epochs": config.epochs / by, "compressed_by": config.compressed_by * by}
    return dataclasses.replace(config, compress=1.0, **changed)
