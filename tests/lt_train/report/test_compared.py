"""What a report says of two runs, and of how sure their accuracies are."""

import pytest

from lt_train.errors import UserError
from tests.helpers.finished_runs import report, split_metrics, table_of, write_run

PAIR = ("--compare", "pre-training", "pretrained", "scratch")


def write_pair(folder, before: float, after: float, samples: int) -> None:
    for name, top1 in (("scratch", before), ("pretrained", after)):
        write_run(folder / name, {"test": {**split_metrics(top1), "samples": samples}})


def test_a_difference_has_the_interval_of_the_test_images(tmp_path, capsys):
    """Of 1,000: 1.96 sqrt((0.6 * 0.4 + 0.7 * 0.3) / 1000) = 4.2 points."""
    write_pair(tmp_path, 60.0, 70.0, 1000)
    markdown, page = report(tmp_path, *PAIR)
    said = "pre-training: +10.0 points (± 4.2), 60.0 % to 70.0 %"
    for text in (markdown, page, capsys.readouterr().out):
        assert said in text and "within the noise" not in text
    assert table_of(markdown)["scratch"]["95 %"] == "± 3.0"


@pytest.mark.parametrize(("after", "change"), [(63.0, "+3.0"), (57.0, "-3.0"), (60.0, "+0.0")])
def test_what_may_be_chance_is_said_to_be(after, change, tmp_path):
    write_pair(tmp_path, 60.0, after, 1000)
    (line,) = (line for line in report(tmp_path, *PAIR)[0].splitlines() if "pre-training" in line)
    assert f"{change} points" in line and "within the noise of this test set" in line


def test_seeds_do_not_narrow_what_their_common_test_images_leave_open(tmp_path):
    for seed, (before, after) in enumerate([(59.0, 69.0), (61.0, 71.0)]):
        write_run(
            tmp_path / f"p-seed{seed}" / "scratch",
            {"test": {**split_metrics(before), "samples": 1000}},
            seed=seed,
        )
        write_run(
            tmp_path / f"p-seed{seed}" / "pretrained",
            {"test": {**split_metrics(after), "samples": 1000}},
            seed=seed,
        )
    markdown, _ = report(tmp_path / "p-seed0", tmp_path / "p-seed1", *PAIR)
    assert "pre-training: +10.0 points (± 4.2), 60.0 % to 70.0 %" in markdown


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path):
    write_run(tmp_path / "scratch")
    with pytest.raises(UserError, match="--compare: no run 'pretrained' .* there are scratch"):
        report(tmp_path, *PAIR)
