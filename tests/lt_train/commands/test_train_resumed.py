"""Going on with a run: what belongs to it, and what a kill or a stranger has left there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lt_train.training import precision
from tests.helpers.commands import (
    CLASSES,
    HELD_OUT,
    TRAIN,
    checkpoint,
    images,
    read,
    refused,
    run,
    torchrun,
)
from tests.helpers.commands import words as train_words

CONFIG = "classifier_cifar10_lt"


def rows(folder: Path) -> list[tuple[int, str | None]]:
    """Step and split of each row of metrics.jsonl."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record.get("split")) for record in records]


@pytest.fixture
def half(copied) -> Path:
    """The run, cut off at step 10."""
    (copied / "result.json").unlink()
    for step in (15, 20):
        shutil.rmtree(copied / "checkpoints" / f"step-{step:08d}")
    return copied


def test_checkpoints_of_another_seed_and_another_config_without_its_file_are_refused(
    half, tinted, tmp_path, capsys
):
    other = tmp_path / "other"
    shutil.copytree(half / "checkpoints", other / "checkpoints")
    for folder in (other, half):
        (half / "config.yaml").unlink(missing_ok=True)
        line = refused(capsys, *train_words(CONFIG, tinted, folder, "seed=5"))
        assert "another config (seed: 0 -> 5)" in line and "allow_changes=[seed]" in line
    run(*train_words(CONFIG, tinted, half))
    assert read(half)["steps"] == 20


def test_a_run_goes_on_and_is_evaluated_in_the_precision_it_has_begun_in(
    tinted, tmp_path, monkeypatch
):
    """With engine.precision=auto, where the other one has become the faster."""
    folder, auto = tmp_path / "run", "engine.precision=auto"
    monkeypatch.setattr(precision, "_faster", lambda device: "bf16")
    run(*train_words(CONFIG, tinted, folder, auto, "max_steps=5"))
    monkeypatch.setattr(precision, "_faster", lambda device: "fp32")
    run(
        *train_words(
            CONFIG, tinted, folder, auto, "max_steps=10", "resume.allow_changes=[max_steps]"
        )
    )
    result = read(folder)
    assert (result["steps"], result["precision"]) == (10, "bfloat16")
    assert result["config"]["engine"]["precision"] == "auto"
    run("evaluate", str(folder))
    evaluated = json.loads((folder / "evaluation.json").read_text())
    assert evaluated["metrics"] == result["metrics"]


@pytest.mark.slow
def test_a_run_goes_on_with_another_engine_on_other_ranks(half, tinted):
    """What DDP began on one rank, ZeRO on two takes up, and DDP ends."""
    zero = ("engine.name=deepspeed", "engine.zero_stage=2", "max_steps=15")
    assert "resumed from step 10 of 15" in torchrun(*train_words(CONFIG, tinted, half, *zero))
    assert "resumed from step 15 of 20" in torchrun(*train_words(CONFIG, tinted, half))
    assert (read(half)["steps"], read(half)["ranks"]) == (20, 2)


def test_a_set_may_lie_elsewhere_when_a_run_goes_on(half, tinted, tmp_path):
    """It is known by its content, so that no flag switches the comparison off."""
    moved = shutil.copytree(tinted, tmp_path / "elsewhere")
    run(*train_words(CONFIG, moved, half))
    assert read(half)["steps"] == 20


def test_a_result_of_another_config_is_not_this_one_s(copied, tinted, capsys):
    (copied / "config.yaml").unlink()
    line = refused(capsys, *train_words(CONFIG, tinted, copied, "seed=5"))
    assert "another config (seed: 0 -> 5)" in line


@pytest.mark.parametrize("finished", [False, True])
def test_another_set_at_the_same_place_is_not_trained_on(
    finished, tinted, prepare, tmp_path, capsys
):
    root, folder = tmp_path / "set", tmp_path / "run"
    shutil.copytree(tinted, root)
    options = train_words(CONFIG, root, folder, "max_steps=5")
    run(*options)
    before = read(folder)
    shutil.rmtree(root)
    held_out = np.repeat(np.arange(CLASSES), HELD_OUT)
    labels = {"train": np.repeat(np.arange(CLASSES), TRAIN), "val": held_out, "test": held_out}
    splits = {split: (images(of_split, 77), of_split) for split, of_split in labels.items()}
    shutil.copytree(prepare(splits, samples_per_shard=16), root)
    more = () if finished else ("max_steps=6",)
    line = refused(capsys, *options, *more)
    assert f"other data than there is in data.root={root} now" in line
    run(*options, *more, "resume.allow_changes=[data.root]")
    assert (read(folder) == before) == finished


def test_an_earlier_version_s_run_goes_on(half, copied, tinted):
    """It kept neither its data nor, in result.json, its config."""
    run(*train_words(CONFIG, tinted, half))
    result = read(half)
    for key in ("data", "config", "sha256"):
        del result[key]
    (half / "result.json").write_text(json.dumps(result))
    run(*train_words(CONFIG, tinted, half))
    assert read(half) == result


def test_a_kill_while_the_end_is_evaluated_doubles_no_row(copied, tinted):
    before = rows(copied)
    (copied / "result.json").unlink()
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:-1]))
    run(*train_words(CONFIG, tinted, copied))
    assert rows(copied) == before and len(set(before)) == len(before)


def test_an_evaluation_that_was_cut_off_is_made_again(half, tinted, trained):
    """Its step is saved before it begins."""
    expected = rows(trained)
    lines = (half / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] < 10 or b"split" not in line]
    (half / "metrics.jsonl").write_bytes(b"".join(kept))
    run(*train_words(CONFIG, tinted, half))
    assert sorted(rows(half), key=str) == sorted(expected, key=str)


def test_weights_that_are_not_finite_are_not_saved(half, tinted, capsys):
    """The loss of that step is, as it was before the update."""
    before = sorted(half.glob("checkpoints/*"))
    far = ("optim.lr=1e38", "resume.allow_changes=[optim.lr]", "run.log_every=1")
    line = refused(capsys, *train_words(CONFIG, tinted, half, *far, "run.checkpoint_every=1"))
    assert "the norm of the weights is" in line and "after step 11, which is not saved" in line
    assert "step-00000010 is kept" in line and "to go on from step-00000005" in line
    assert sorted(half.glob("checkpoints/*")) == before


def test_a_run_begun_anew_goes_on_where_slurm_starts_it_again(half, tinted, monkeypatch, capsys):
    """resume.enabled=false is about what lay there before, not about its own checkpoints."""
    command = train_words(CONFIG, tinted, half, "resume.enabled=false")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(*command, "max_steps=5")
    assert "resumed" not in capsys.readouterr().err, "what lies there is another's"
    run(*command, "max_steps=10")
    assert "resumed from step 5 of 10" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    run(*command, "max_steps=15")
    assert "resumed" not in capsys.readouterr().err


def test_odd_lines_and_results_do_not_stop_a_run(half, trained, tinted, capsys):
    log, expected = half / "metrics.jsonl", rows(half)
    log.write_bytes(b"[]\n\xff\n5\n" + log.read_bytes() + b'{"step": 20, "lo')
    (half / "result.json").write_text("[]")
    run(*train_words(CONFIG, tinted, half))
    assert sorted(rows(half), key=str) == sorted(expected, key=str)
    assert read(half)["metrics"] == read(trained)["metrics"]
    said = capsys.readouterr().err
    assert said.count("metrics.jsonl: 4 unreadable line(s) are dropped") == 1
    assert said.count("result.json is damaged") == 1


def test_damaged_checkpoints_alone_are_not_taken_for_none(half, trained, tinted, capsys):
    for state in half.glob("checkpoints/*/state.pt"):
        state.write_bytes(state.read_bytes()[:-1])
    before = sorted(half.glob("checkpoints/*"))
    line = refused(capsys, *train_words(CONFIG, tinted, half))
    assert "is damaged (5, 10); remove them, or train anew with resume.enabled=false" in line
    assert sorted(half.glob("checkpoints/*")) == before
    run(*train_words(CONFIG, tinted, half, "resume.enabled=false"))
    weights = checkpoint(half, 20)
    assert all(weights[name].equal(value) for name, value in checkpoint(trained, 20).items())
