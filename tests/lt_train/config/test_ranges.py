"""Every number has a range, and infinity is in none."""

import pytest

from lt_train.config.load import flatten, load_config, to_dict
from lt_train.config.ranges import RANGES, check_ranges, range_of
from lt_train.config.reading import bare, kind_of
from lt_train.config.schema import Config, ViewConfig
from lt_train.errors import UserError


def number_keys() -> dict[str, type]:
    """Every key that holds numbers, with the type of one."""
    found = {}
    for key in flatten(to_dict(Config(second_view=ViewConfig()))):
        kind = Config
        for name in key.split("."):
            kind = bare(kind_of(kind, name))
        inner = getattr(kind, "__args__", (kind,))[0]
        if inner in (int, float):
            found[key] = inner
    return found


NUMBERS = number_keys()


def test_every_number_of_the_schema_has_a_range_and_no_other_key():
    assert {key for key in NUMBERS if not key.startswith(("second_view.", "eval_view."))} == set(
        RANGES
    )
    assert all(range_of(key) for key in NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_no_finite_number_is_refused_for_every_key(key):
    for value in (float("inf"), float("-inf"), float("nan")):
        with pytest.raises(UserError, match=f"^{key} must be a finite number, not {value}$"):
            check_ranges({key: [value]})
    if NUMBERS[key] is int:
        with pytest.raises(UserError, match=f"^{key} must be "):
            check_ranges({key: 2**63})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr=.inf", "optim.lr must be a finite number, not inf"),
        ("optim.lr=nan", "optim.lr must be a finite number, not nan"),
        ("epochs=1e999", "epochs must be a finite number, not inf"),
        ("view.ratio=[1,.inf]", "view.ratio must be a finite number"),
        ("data.max_bad_share=-9", "data.max_bad_share must be from 0 to 1, not -9"),
        ("data.decode_threads=-1", "data.decode_threads must be 0 or more"),
        ("unlabeled.min_confidence=1.1", "unlabeled.min_confidence must be from 0 to 1"),
        ("view.flip_probability=1.5", "view.flip_probability must be from 0 to 1, not 1.5"),
        ("eval_view.padding=-1", "eval_view.padding must be 0 or more, not -1"),
        ("view.jitter=[0,0,-1,0]", "view.jitter must be 0 or more, not -1.0"),
        ("view.scale=[0.5,2]", "view.scale must be more than 0 and at most 1, not 2"),
        ("seed=-1", r"seed must be from 0 to 2\*\*63 - 1, not -1"),
        ("seed=9223372036854775808", "seed must be from 0"),
        ("optim.momentum=1.1", "optim.momentum must be from 0 to 1, not 1.1"),
        ("optim.weight_decay=-1e-4", "optim.weight_decay must be 0 or more"),
        ("optim.clip_grad_norm=0", "optim.clip_grad_norm must be more than 0 or null"),
        ("optim.warmup_epochs=-1", "optim.warmup_epochs must be 0 or more"),
        ("moco.dim=0", "moco.dim must be more than 0"),
        ("run.log_every=4294967296", "run.log_every must be at most 2147483647"),
        ("reference_error=-3", "reference_error must be from 0 to 100"),
        ("compress=1e-320", "compress.*|epochs must be a finite number, not inf"),
    ],
)
def test_a_number_out_of_range_is_named(empty, override, words):
    with pytest.raises(UserError, match=words):
        load_config(empty, [override])


def test_the_ends_of_ranges_are_in_them(empty):
    words = ["seed=9223372036854775807", "optim.momentum=0", "data.max_bad_share=1", "optim.lr=0"]
    config = load_config(empty, [*words, "view.jitter=[2,0,0,0.5]", "run.log_every=2147483647"])
    assert (config.seed, config.view.jitter[3]) == (2**63 - 1, 0.5)
