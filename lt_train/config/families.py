"""Families of backbones, FAMILY/NAME; what ``model.backbone`` takes. No torch here."""

import fnmatch
import importlib
from types import ModuleType

from lt_train.config.schema import BACKBONES

BACKBONE_FAMILIES: dict[str, str] = {  # FAMILY/NAME is made by a module like this one
    "timm": "lt_train.models.timm_backbones",
}


def family_of(backbone: str) -> tuple[ModuleType, str] | None:
    """The module and the name within it of FAMILY/NAME; None for one of BACKBONES."""
    family, slash, name = backbone.partition("/")
    if not slash or family not in BACKBONE_FAMILIES:
        return None
    return importlib.import_module(BACKBONE_FAMILIES[family]), name


def backbone_names(pattern: str) -> list[str]:
    """What ``model.backbone`` may be, of all that matches a shell pattern."""
    found = fnmatch.filter(BACKBONES, pattern)
    for family in BACKBONE_FAMILIES:
        if pattern.startswith((f"{family}/", "*")):
            module, inner = family_of(f"{family}/{pattern.removeprefix(f'{family}/')}")
            found += [f"{family}/{name}" for name in module.names(inner)]
    return found
