"""Words that a user might type, right ones and wrong ones mixed at random: a config, or one line.

``LT_TRAIN_TRIALS`` asks for more trials, ``LT_TRAIN_SEED`` for others.
"""

import random

import pytest

from lt_train.config.load import (
    flatten,
    list_configs,
    list_variants,
    load_config,
    read_yaml,
    to_dict,
    to_yaml,
)
from lt_train.config.schema import Config, ViewConfig
from lt_train.errors import exit_status
from tests.helpers.trials import SEED, trials

TRIALS = trials(1000)
KEYS = list(flatten(to_dict(Config(second_view=ViewConfig()))))
ODD_KEYS = ["", ".", "a", "a..b", "view.scale[0]", "[", "optim", "view", "second_view", "base"]
ODD_KEYS += ["lr", "<<", "~", "on", "3", "optim.lr.x", "run.", ".dir", "!!int a", "ä", "x" * 300]
VALUES = [
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "1e3",
    "1e999",
    "1e-320",
    ".inf",
    "-.inf",
    ".nan",
    "nan",
    "9" * 30,
]
VALUES += [
    "007",
    "12:30",
    "0x1f",
    "0b1",
    "1_000",
    "true",
    "off",
    "null",
    "~",
    "",
    "x",
    "a b",
    "???",
]
VALUES += [
    "[",
    "]",
    "{",
    "}",
    "[]",
    "{}",
    "[a",
    "[1, 2]",
    "[1, [2]]",
    "[0.1, 1]",
    "[[[[]]]]",
    "{a: 1}",
]
VALUES += [
    "[.inf, 0]",
    "{lr: 0.1}",
    "{size: 32}",
    "[null]",
    "[true]",
    "[a, '', 1]",
    "&a [*a]",
    "*a",
]
VALUES += [
    "!!int a",
    "!!int 5",
    "!!float x",
    "!!bool 3",
    "!!null 4",
    "!!set {a}",
    "!!binary x",
    "!x y",
]
VALUES += [
    "!!timestamp x",
    "!!python/object:os.system x",
    "!!str 5",
    "!!map {a: b}",
    "!!seq [a]",
    "&a",
]
VALUES += [
    "${seed}",
    "${oc.env:HOME}",
    "${oc.env:LT_TRAIN_DATA,data}/x",
    "${x}",
    "${",
    "$",
    "\\${seed}",
]
VALUES += ["80%", "[80%, 90.5%]", "[20%, x]", "0%", "-5%", "%", "1e3%", "9" * 400 + "%"]
VALUES += [
    "${data.root}",
    "${oc.env:${seed}}",
    "${oc.decode:1}",
    "${..seed}",
    "${.}",
    "${view}",
    "${}",
]
VALUES += [
    "~/x",
    "~nobody/x",
    "\0",
    "\udcff",
    "\x1b[31m",
    "a\nb",
    "ä",
    "\u2028",
    "'",
    '"',
    "'a'",
    '"\\0"',
]
VALUES += [
    "# a",
    "a #b",
    "a: b",
    "- a",
    "? a",
    "|",
    ">",
    "@",
    "`",
    "%",
    "moco",
    "crt",
    "resident",
    "pad",
]
VALUES += [
    "cosine",
    "runs/x",
    ".",
    "..",
    "/",
    "a" * 300,
    "[" * 3000,
    "- " * 3000,
    "=",
    "+ldam",
    "\t",
    "𝒳",
]
NAMES = [f"+{name}" for name, _ in list_variants()] + [
    "+",
    "++",
    "+ldm",
    "+../base/moco",
    "+" + "n" * 300,
]
CONFIGS = [name for name, _ in list_configs()]
BASES = ["base/moco", "classifier_folder", "nowhere", "a" * 300, "..", "[a]", "{}", "3", "/", "\\0"]


def value_of(draw: random.Random) -> str:
    return draw.choice(VALUES[:5] if draw.random() < 0.4 else VALUES)


def override(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(NAMES)
    if kind < 0.2:
        return draw.choice(VALUES)
    key = draw.choice(KEYS if kind < 0.9 else ODD_KEYS)
    return f"{key}={value_of(draw)}"


def yaml_text(draw: random.Random) -> str:
    """Lines that a file may hold, each of them possible and their sum not."""
    lines = []
    for _ in range(draw.randint(0, 4)):
        group, _, name = draw.choice(KEYS if draw.random() < 0.85 else ODD_KEYS).rpartition(".")
        value = value_of(draw)
        lines += [f"{group}:", f"  {name}: {value}"] if group else [f"{name}: {value}"]
    if draw.random() < 0.2:
        lines.append(f"base: {draw.choice(BASES)}")
    if draw.random() < 0.2:
        lines.insert(
            0, draw.choice(["- a", "---", "...", "\t", "%YAML 1.1", "? [a]", "a", "<<: 3"])
        )
    return "\n".join(lines) + "\n"


def outcome(name: str, words: list[str], capsys) -> Config | None:
    """The config, or None after one line on stderr; anything else would be raised."""
    found = []

    def load() -> None:
        found.append(load_config(name, words))

    status = exit_status("lt_train", load)
    said = capsys.readouterr().err
    assert (status, said.count("\n"), bool(found)) in ((0, 0, True), (2, 1, False)), said
    return found[0] if found else None


def survives_being_saved(config: Config, path) -> None:
    path.write_text(to_yaml(config), "utf-8")
    assert load_config(str(path)) == config
    assert read_yaml(path) == to_dict(config)


@pytest.mark.slow
def test_random_words_give_a_config_or_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LT_TRAIN_DATA", raising=False)
    draw, made = random.Random(SEED), 0
    for _ in range(TRIALS // 2):
        name = draw.choice(CONFIGS)
        words = [override(draw) for _ in range(draw.randint(1, 2))]
        try:
            config = outcome(name, words, capsys)
            if config is not None:
                survives_being_saved(config, tmp_path / "config.yaml")
        except Exception as error:
            pytest.fail(f"{name} {words!r}: {error!r}")
        made += config is not None
    assert TRIALS // 20 < made < TRIALS // 2, "some of both"


@pytest.mark.slow
def test_random_files_give_a_config_or_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LT_TRAIN_DATA", raising=False)
    draw, path, made = random.Random(SEED + 1), tmp_path / "own.yaml", 0
    for _ in range(TRIALS // 2):
        text = yaml_text(draw)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            config = outcome(str(path), [], capsys)
            if config is not None:
                survives_being_saved(config, tmp_path / "config.yaml")
        except Exception as error:
            pytest.fail(f"{text!r}: {error!r}")
        made += config is not None
    assert TRIALS // 20 < made < TRIALS // 2, "some of both"


def test_a_config_that_cannot_be_named_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    names = [
        "",
        ".",
        "/",
        "~",
        "run",
        "run/",
        "folder.yaml",
        "loop.yaml",
        "\0",
        "\udcff",
        "a" * 5000,
    ]
    for name in [*names, "a.yaml/b.yaml", "+ldam", "a=b", "\n.yaml", "~nobody/a.yaml"]:
        assert outcome(name, [], capsys) is None, name
