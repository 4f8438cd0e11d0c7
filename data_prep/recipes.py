"""The data sets of the command line: those of every module in ``data_prep.sets``, by ``RECIPES``,
and those of modules that the user names.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from data_prep import sets
from data_prep.reading.source import Recipe
from lt_train.errors import UserError

LOOKING = ("verify", "info")  # commands that make no data set


def find_recipes(modules: Sequence[str] = ()) -> dict[str, Recipe]:
    """Name -> recipe: our own in the order of their files' names, then those of ``modules``.

    A :class:`UserError` if one cannot be imported, has no RECIPES, or has a name that is taken.
    """
    recipes = dict(RECIPES)
    if modules:
        from lt_train.config.load import import_modules

        import_modules(modules, "--import")
        for name in dict.fromkeys(modules):
            _add(recipes, importlib.import_module(name))
    return recipes


def _add(recipes: dict[str, Recipe], module: ModuleType) -> None:
    found = getattr(module, "RECIPES", None)
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"the module '{module.__name__}' has no RECIPES, a dict from names of data sets to"
            " data_prep.reading.source.Recipe"
        )
    for name, recipe in found.items():
        if not isinstance(recipe, Recipe):
            raise UserError(
                f"'{name}' in the RECIPES of the module '{module.__name__}' is no"
                " data_prep.reading.source.Recipe"
            )
        if name in recipes or name in LOOKING:
            raise UserError(
                f"the module '{module.__name__}' has a data set '{name}', but there is a command"
                " of that name already; rename it"
            )
        recipes[name] = recipe


def _own() -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for module in pkgutil.iter_modules(sets.__path__, f"{sets.__name__}."):
        _add(recipes, importlib.import_module(module.name))
    return recipes


RECIPES = _own()
