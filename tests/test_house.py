"""Who may import whom, and what the packages may not hold."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for package in ("launch", "lt_train", "data_prep")
    for path in (ROOT / package).rglob("*.py")
)
FORBIDDEN = {  # importer (prefix of its dotted name) -> modules that it may not import
    "launch": [
        "data_prep",
        "lt_train.methods",
        "lt_train.engine",
        "lt_train.data",
        "lt_train.models",
    ],
    "lt_train": ["launch", "data_prep"],
    "lt_train.methods": ["lt_train.engine", "lt_train.checkpoint", "lt_train.train"],
    "lt_train.data.manifest": ["torch", "nvidia", "lt_train.data.loader"],
    "lt_train.config": ["torch", "lt_train.data"],
    "data_prep": [
        "launch",
        "torch",
        "lt_train.train",
        "lt_train.engine",
        "lt_train.methods",
        "lt_train.metrics",
    ],
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_architecture(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for importer, forbidden in FORBIDDEN.items():
        if within(name, importer):
            broken = {
                module for module in imports(path) for other in forbidden if within(module, other)
            }
            assert not broken


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_print_and_a_docstring_in_every_module(path):
    tree = ast.parse(path.read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not calls and ast.get_docstring(tree)
