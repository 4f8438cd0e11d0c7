"""What a value means: text as typed, numbers as people write them; and what no file may do."""

from pathlib import Path

import pytest

from lt_train.config.load import flatten, load_config, read_yaml, to_dict, to_yaml
from lt_train.config.reading import MOST_VALUES
from lt_train.errors import UserError

TEXTS = [
    "20240105_1200",
    "12:30",
    "007",
    "off",
    "1e3",
    "0x1f",
    "1_000",
    "yes",
    ".inf",
    "2026-01-02",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_kept_as_typed_in_overrides_and_files_and_saved_configs(empty, tmp_path, text):
    file = tmp_path / "own.yaml"
    file.write_text(
        f"run: {{dir: {text}}}\ndescription: {text}\nmodel: {{init_from: {text}}}\n"
        f"resume: {{allow_changes: [{text}]}}\n"
    )
    keys = ("run.dir", "description", "model.init_from")
    words = [f"{key}={text}" for key in keys]
    by_words = load_config(empty, [*words, f"resume.allow_changes=[{text}]"])
    config = load_config(str(file))
    assert config == by_words
    assert [flatten(to_dict(config))[key] for key in keys] == [text] * 3
    assert config.resume.allow_changes == (text,)
    file.write_text(to_yaml(config))
    assert load_config(str(file)) == config
    assert read_yaml(file) == to_dict(config), "also for those who know no types"


@pytest.mark.parametrize(
    "text", ["", " a #1", "a: b", "[a", "@a", "%a", "*a", "&a", "- a", "a, 'b'", "{a}", "\\", "ä"]
)
def test_an_override_of_a_text_needs_no_yaml(empty, text):
    assert load_config(empty, [f"description={text}"]).description == text


def test_quotes_and_null_mean_what_they_do_in_yaml(empty):
    config = load_config(empty, ['description="a \\"b\\": c"', "run.dir='null'", "data.root=''"])
    assert (config.description, config.run.dir, config.data.root) == ('a "b": c', "null", "")
    for nothing in ("null", "~", ""):
        words = ["model.init_from=x", f"model.init_from={nothing}"]
        assert load_config(empty, words).model.init_from is None


def test_an_empty_value_in_a_file_is_empty_text_or_none(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("data: {root: }\nmodel:\n  init_from:\n")
    config = load_config(str(file))
    assert (config.data.root, config.model.init_from) == ("", None)


@pytest.mark.parametrize(
    ("text", "epochs"), [("1e1", 10), (".5", 0.5), ("1_0", 10), ("0x10", 16), ("+3", 3), ("2.", 2)]
)
def test_a_number_means_the_same_in_overrides_and_files(empty, tmp_path, text, epochs):
    (tmp_path / "own.yaml").write_text(f"epochs: {text}\n")
    assert load_config(empty, [f"epochs={text}"]).epochs == epochs
    assert load_config(str(tmp_path / "own.yaml")).epochs == epochs


def test_a_time_is_no_number(empty):
    with pytest.raises(UserError, match="epochs.*'12:30'"):
        load_config(empty, ["epochs=12:30"])


def test_lists_and_groups_are_flow_yaml(empty):
    config = load_config(empty, ["view.scale=[.1, 1]", "optim={lr: 1e-2, nesterov: yes}"])
    assert (config.view.scale, config.optim.lr, config.optim.nesterov) == ((0.1, 1.0), 0.01, True)


def test_merge_keys_and_aliases_are_read_by_the_type_of_each_key(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "description: &word 007\nseed: *word\nview: &first {size: 64, resize: 80}\n"
        "eval_view:\n  <<: *first\n  size: 32\n  crop: center\n"
    )
    config = load_config(str(file))
    assert (config.description, config.seed) == ("007", 7)
    assert (config.eval_view.size, config.eval_view.resize, config.view.size) == (32, 80, 64)
    content = read_yaml(file)
    assert content["eval_view"] == {"size": 32, "resize": 80, "crop": "center"}


def test_aliases_cannot_make_a_small_file_large(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"bomb.yaml: .*more than {MOST_VALUES} values"):
        read_yaml(tmp_path / "bomb.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"description: caf\xe9\n", r"it is not UTF-8 text \(byte 16\)"),
        (b"\xff\xfed\0e\0", "it is not UTF-8 text"),
        (b"d: \x07\n", ".*not allowed"),
        (b"\x80", "it is not UTF-8 text"),
    ],
)
def test_bytes_that_are_no_text_are_named(tmp_path, content, words):
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"own.yaml: {words}") as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(str(tmp_path / "own.yaml")).seed == 3


def test_keys_are_texts(tmp_path):
    (tmp_path / "own.yaml").write_text("on: 1\n100: 2\n007: 3\n")
    assert read_yaml(Path(tmp_path / "own.yaml")) == {"on": 1, "100": 2, "007": 3}
