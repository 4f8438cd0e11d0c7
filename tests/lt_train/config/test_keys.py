"""Every key in words."""

import pytest

from lt_train.__main__ import main
from lt_train.config.keys import find_keys, list_keys
from lt_train.config.reading import flatten, to_dict
from lt_train.config.schema import Config
from lt_train.errors import UserError


def test_every_key_is_there_once_with_its_meaning():
    names = [key.name for key in list_keys()]
    flat = flatten(to_dict(Config()))
    assert sorted({*names} - {"eval_view"}) == sorted(
        name for name in flat if not name.startswith("eval_view.")
    )
    assert len(set(names)) == len(names)
    assert not [key.name for key in list_keys() if not key.meaning]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("optim.scale_lr", "=true  (true or false) scale linearly with the global batch size"),
        ("data.cache_dir", "=null  (text, or null) the node cache: copy the sets to"),
        ("view.ratio", "=[0.75,1.33333]  (a list of 2, each a number, more than 0) random_resized"),
        ("optim.name", "=sgd  (sgd | adamw | lars) AdamW"),
        ("lora.targets", "=[]  (a list of any number, each text) names of layers"),
        ("second_view", "=null  (a section with the keys of view) of views after the first"),
    ],
)
def test_a_key_in_words(name, line):
    (key,) = find_keys(name)
    assert key.line.startswith(name + line)


def test_choices_are_those_that_are_taken():
    (key,) = find_keys("sampler.name")
    assert "class_balanced" in key.choices
    assert find_keys("engine.compile")[0].choices == ("true", "false")


def test_the_command_lists_a_section_and_what_matches(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--list-keys", "moco"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].startswith("moco.dim=128  (a whole number, more than 0)")
    with pytest.raises(UserError, match="no key matches 'optim.lrr', did you mean 'optim.lr'"):
        main(["--list-keys", "optim.lrr"])
