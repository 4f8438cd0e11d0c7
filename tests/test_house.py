"""Who may import whom, and what a room looks like: docs/architecture.md, read off the code."""

import ast
from pathlib import Path

import pytest

from lt_train.config.schema import METHODS

ROOT = Path(__file__).parents[1]
PACKAGES = ("launch", "lt_train", "data_prep")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FLOORS = [  # from the ground up; a room imports from lower floors, and from its own folder
    ["lt_train.errors"],
    ["lt_train.heartbeat"],
    [
        "lt_train.arguments",
        "lt_train.files",
        "lt_train.random_streams",
        "lt_train.console",
        "lt_train.distributed",
    ],
    ["lt_train.code_version"],
    ["lt_train.collectives"],
    ["lt_train.run_files", "lt_train.locks"],
    ["lt_train.config"],
    ["lt_train.models", "lt_train.data"],
    ["lt_train.drawing"],
    ["lt_train.methods"],
    ["lt_train.training"],
    ["lt_train.report"],
    ["lt_train.commands", "lt_train.benchmark"],
    ["lt_train.__main__"],
    ["launch"],
]
GROUND = [
    "lt_train.arguments",
    "lt_train.errors",
    "lt_train.files",
    "lt_train.random_streams",
    "lt_train.console",
    "lt_train.locks",
    "lt_train.code_version",
]
ON_DISK = [  # the formats of data sets, of images and of scores
    "lt_train.data.dataset",
    "lt_train.data.tables",
    "lt_train.data.manifest",
    "lt_train.data.shard_files",
    "lt_train.data.scores",
    "lt_train.data.image_size",
    "lt_train.data.decoder",
    "lt_train.data.image_files",
]
PAGES = ["lt_train.drawing.style", "lt_train.report.page", "lt_train.report.thumbnails"]
BESIDE = {  # packages beside lt_train: what they may import of it
    "data_prep": [*GROUND, "lt_train.config", *ON_DISK, *PAGES],
    "launch": [
        *GROUND,
        "lt_train.run_files",
        "lt_train.config",
        "lt_train.distributed",
        "lt_train.collectives",
        "lt_train.commands",
        "lt_train.benchmark",
        "lt_train.__main__",
    ],
}
DATA_PREP_FLOORS = [
    ["data_prep.reading"],
    ["data_prep.writing"],
    ["data_prep.sets"],
]
WITHOUT_TORCH = ["lt_train.config", *ON_DISK, "data_prep"]
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_TEST_FILE = 400, 60, 500


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(path: Path) -> set[str]:
    """Everything that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found


ARROWS = {name: imports(path) for name, path in MODULES.items()}


def room_of(module: str, floors: list[list[str]]) -> tuple[int, str] | None:
    """The floor and the room that a module lies in; None if the floors do not say."""
    for number, rooms in enumerate(floors):
        for room in rooms:
            if within(module, room):
                return number, room
    return None


def wrong_arrows(floors: list[list[str]]) -> list[str]:
    wrong = []
    for importer, imported in ARROWS.items():
        here = room_of(importer, floors)
        for module in imported:
            there = room_of(module, floors)
            if here and there and here[1] != there[1] and there[0] >= here[0]:
                wrong.append(f"{importer} -> {module}")
    return wrong


def test_every_room_of_lt_train_is_on_a_floor():
    homeless = [name for name in MODULES if within(name, "lt_train") and not room_of(name, FLOORS)]
    assert homeless == ["lt_train"], (
        "the package's own __init__ holds the version, and names what others use"
    )


def test_arrows_run_downwards_only():
    assert wrong_arrows(FLOORS) == []
    assert wrong_arrows(DATA_PREP_FLOORS) == []


def test_a_wrong_arrow_would_be_found(monkeypatch):
    upwards = {"lt_train.methods.moco": {"lt_train.training.engine"}}
    sideways = {"lt_train.data.order": {"lt_train.models.heads"}}
    monkeypatch.setattr(f"{__name__}.ARROWS", upwards | sideways)
    assert wrong_arrows(FLOORS) == [
        "lt_train.methods.moco -> lt_train.training.engine",
        "lt_train.data.order -> lt_train.models.heads",
    ]


def test_lt_train_knows_neither_launch_nor_data_prep():
    for name, imported in ARROWS.items():
        if within(name, "lt_train"):
            assert not [other for other in imported if other.split(".")[0] in BESIDE], name


@pytest.mark.parametrize("package", BESIDE)
def test_packages_beside_import_what_they_may(package):
    for name, imported in ARROWS.items():
        if within(name, package):
            others = [
                other for other in imported if other in MODULES and not within(other, package)
            ]
            for other in others:
                may = any(within(other, room) for room in BESIDE[package])
                assert may or other == "lt_train", (
                    f"{name} -> {other}"
                )  # of which they take the version


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_what_must_start_quickly_imports_no_torch(package):
    for name, imported in ARROWS.items():
        if within(name, package):
            assert not [other for other in imported if within(other, "torch")], name


def test_no_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        for other in sorted(ARROWS[module] & MODULES.keys()):
            visit(other, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_commands_have_one_kind_of_parser():
    """Which knows --version; what data sets add to theirs is their own."""
    elsewhere = {"lt_train.arguments", "data_prep.__main__"}
    for name in MODULES.keys() - elsewhere:
        assert "ArgumentParser(" not in MODULES[name].read_text(), f"{name}: take our Parser"


def test_a_method_s_name_is_compared_with_nowhere():
    """Others read its traits (METHODS), so that a new method is a file and a line."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                assert not [text for text in texts if text in METHODS], f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_room_can_be_taken_in(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "every module says what it is"
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name}: {lines} lines"
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") != "print", node.lineno


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BLOCKS = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With, ast.Try)


def loops_in(statement: ast.stmt) -> int:
    """How many loops its comprehensions have; of a block, those in its head."""
    parts = [statement]
    if isinstance(statement, BLOCKS):
        parts = [part for part in ast.iter_child_nodes(statement) if isinstance(part, ast.expr)]
    loops = 0
    for part in parts:
        for node in ast.walk(part):
            loops += len(node.generators) if isinstance(node, COMPREHENSIONS) else 0
    return loops


def test_a_statement_has_one_comprehension():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.stmt):
                assert loops_in(node) <= 1, f"{path}:{node.lineno}"


def test_tests_can_be_taken_in():
    long = [
        path
        for path in (ROOT / "tests").rglob("*.py")
        if path.read_text().count("\n") > LONGEST_TEST_FILE
    ]
    assert not long


def test_tests_mirror_the_rooms():
    """The test of lt_train/data/order.py is test_order.py, or test_order_SUBJECT.py, beside it."""
    for test in (ROOT / "tests").rglob("test_*.py"):
        folder = test.parent.relative_to(ROOT / "tests")
        if folder.parts and folder.parts[0] in PACKAGES:
            subject = test.stem.removeprefix("test_")
            rooms = [path.stem.strip("_") for path in (ROOT / folder).glob("*.py")]
            assert [room for room in rooms if f"{subject}_".startswith(f"{room}_")], test


def test_who_joins_the_ranks_leaves_them_too():
    """By ``with distributed.joined()``, which sees to it on every way out."""
    for name, path in MODULES.items():
        calls = {node.func for node in ast.walk(ast.parse(path.read_text())) if _is_call(node)}
        by_hand = [ast.unparse(function) for function in calls]
        assert not {"distributed.start", "distributed.stop"} & {*by_hand}, name


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
