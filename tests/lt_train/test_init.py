"""The names that programs of others use: all there, and nothing loaded before it is asked for."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lt_train

LOADED = """
import json, sys
import lt_train
from lt_train.__main__ import main
seen = dir(lt_train)
try:
    main(["--version"])
except SystemExit:
    loaded = [name for name in ("torch", "PIL", "pyarrow") if name in sys.modules]
    print(json.dumps([loaded, sorted(set(lt_train.__all__) - set(seen))]))
"""


def test_importing_it_or_asking_the_version_loads_nothing_else():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[], []], done.stderr


@pytest.mark.parametrize("name", lt_train.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    assert getattr(lt_train, name).__doc__
    assert name in dir(lt_train)


def test_another_name_is_an_attribute_error_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'lt_train' has no attribute 'no_such_name'"):
        _ = lt_train.no_such_name
    with pytest.raises(ImportError):
        from lt_train import no_such_name  # noqa: F401


def test_type_checkers_see_the_very_same_names():
    tree = ast.parse(Path(lt_train.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    found = {}
    for node in block.body:
        found |= {alias.name: node.module for alias in node.names}
    assert sorted(found) == sorted(lt_train.__all__)
    homes = {name: home for home, names in lt_train._HOMES.items() for name in names}
    assert found == homes
    assert (Path(lt_train.__file__).parent / "py.typed").is_file()
