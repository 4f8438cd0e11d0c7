"""Numbers of epochs given as shares of a training."""

import pytest

from lt_train.config.load import load_config, to_yaml
from lt_train.errors import UserError

SHARES = [
    "optim.warmup_epochs=2.5%",
    "optim.step_epochs=[80%,150,90%]",
    "optim.step_factors=[0.1,0.01,0.001]",
    "loss.weights_from_epoch=80%",
    "run.evaluate_every=5%",
]


def in_epochs(config) -> tuple:
    optim = config.optim
    return (
        optim.warmup_epochs,
        optim.step_epochs,
        config.loss.weights_from_epoch,
        config.run.evaluate_every,
    )


def test_a_share_is_of_the_epochs_whatever_comes_first(empty):
    """Exactly: 80 % of 200 are 160."""
    shares = [word.replace("150,", "") for word in SHARES]
    shares[2] = "optim.step_factors=[0.1,0.01]"
    expected = (5.0, (160.0, 180.0), 160.0, 10.0)
    for words in (["epochs=200", *shares], [*shares, "epochs=200"]):
        assert in_epochs(load_config(empty, words)) == expected
    halved = load_config(empty, [*shares, "epochs=200", "compress=2"])
    assert in_epochs(halved) == (2.5, (80.0, 90.0), 80.0, 5.0)


def test_shares_and_epochs_stand_in_one_list_and_a_later_word_wins(empty):
    config = load_config(empty, ["epochs=500", *[word.replace("150", "420") for word in SHARES]])
    assert config.optim.step_epochs == (400.0, 420.0, 450.0)
    later = load_config(empty, ["epochs=100", "+drw", "loss.weights_from_epoch=7"])
    assert later.loss.weights_from_epoch == 7.0


def test_files_have_shares_too_and_a_run_saves_what_they_mean(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 40\nloss: {class_weights: inverse, weights_from_epoch: 25%}\n")
    config = load_config(str(path))
    assert config.loss.weights_from_epoch == 10.0
    path.write_text(to_yaml(config))
    assert load_config(str(path)) == config
    assert load_config(str(path), ["epochs=60"]).loss.weights_from_epoch == 10.0


@pytest.mark.parametrize(
    "word",
    [
        "epochs=50%",
        "optim.lr=80%",
        "optim.warmup_epochs=-5%",
        "optim.warmup_epochs=x%",
        "optim.warmup_epochs=5 %%",
        "optim.step_epochs=80%",
        "run.evaluate_every=0%",
    ],
)
def test_what_is_no_share_is_one_line(empty, word):
    with pytest.raises(UserError, match=word.partition("=")[0]) as caught:
        load_config(empty, [word])
    assert "\n" not in str(caught.value)
