"""The suite as a whole, of two small experiments: what it leaves when it ends well, is cut off, or
fails in part.
"""

import json
from pathlib import Path

import pytest
import torch

from lt_train.benchmark.__main__ import main
from lt_train.benchmark.machine import cpu_model
from lt_train.benchmark.measure import ALL_RUNS
from lt_train.benchmark.rows import LARGE, SECONDS, Experiment, Row
from lt_train.benchmark.suite import Bench, check_suite, measure_rows
from lt_train.benchmark.suite_report import NOT_YET, Report
from lt_train.distributed import World
from lt_train.errors import MachineFault, UserError

SETTINGS = (
    "global_batch_size=4",
    "data.loader=dali",
    "view.crop=random_resized",
    "view.size=32",
    "eval_view.size=32",
    "eval_view.resize=36",
    "model.backbone=resnet32_cifar",
    "engine.precision=fp32",
    "epochs=20",
    "run.evaluate_every=10",
)
TRAINS = Experiment("trains", "classifier_demo", SETTINGS, (*ALL_RUNS, SECONDS))
# in another precision, which accelerate would not have in one process
LOADS = Experiment("loads", "moco_demo", (*SETTINGS, "engine.precision=bf16"), ("loader",))
ROWS = [
    Row("loop", ("trains", "synthetic"), (("trains", "bare_loop"),), 0.99),
    Row("loader", ("loads", "loader"), aim=1, unit="images/s"),
    Row("all epochs", ("trains", SECONDS), aim=1e9, unit="s"),
]
VALUES = {"synthetic": [2.0, 4.0, 3.0], "bare_loop": [4.0] * 3, SECONDS: [1.0] * 3}


class Files:
    """A report's three files."""

    def __init__(self, folder: Path):
        names = ("suite.json", "suite.md", "suite.png")
        self.json, self.markdown, self.picture = (folder / name for name in names)
        self.report = Report(self.json, self.markdown, self.picture)
        self.report.begin("cpu", ROWS)

    def rows(self) -> dict:
        found = json.loads(self.json.read_text())
        assert [*found["rows"]] == [row.name for row in ROWS]
        lines = self.markdown.read_text().splitlines()
        assert all(any(line.startswith(f"| {row.name} |") for line in lines) for row in ROWS)
        assert self.picture.read_bytes().startswith(b"\x89PNG")
        assert found["complete"] == (NOT_YET not in self.markdown.read_text())
        return found["rows"]


@pytest.fixture
def files(tmp_path) -> Files:
    return Files(tmp_path)


@pytest.mark.slow
def test_a_suite_ends_with_every_row_in_its_files(files, demo_root, tmp_path):
    bench = Bench(World(), {LARGE: demo_root}, tmp_path, repeats=2, seconds=0.05)
    assert measure_rows(ROWS, [TRAINS, LOADS], bench, files.report) == 0
    rows = files.rows()
    for row in rows.values():
        assert row["min"] <= row["median"] <= row["max"] and len(row["repeats"]) == 2
        assert row["over_aim"] > 0
    found = json.loads(files.json.read_text())
    assert found["complete"] and found["machine"]["device"] == cpu_model()
    assert found["rates"]["trains"].keys() == {*ALL_RUNS, SECONDS}
    (step,) = found["steps"].values()
    assert step["operations"] > 100 and step["waits"] < 2
    assert all(step["parts"][part] > 0 for part in ("forward", "backward", "optimizer", "data"))


def test_what_is_cut_off_leaves_the_rows_before(files):
    def bench(experiment):
        if experiment is LOADS:
            raise KeyboardInterrupt
        return VALUES, {}

    with pytest.raises(KeyboardInterrupt):
        measure_rows(ROWS, [TRAINS, LOADS], bench, files.report)
    rows = files.rows()
    assert (rows["loop"]["min"], rows["loop"]["median"], rows["loop"]["max"]) == (0.5, 0.75, 1)
    assert rows["loop"]["over_aim"] == pytest.approx(0.75 / 0.99, abs=1e-4)
    assert "median" not in rows["loader"] and "median" not in rows["all epochs"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory\nmore"), MachineFault("2 ranks")])
def test_a_row_that_fails_says_so_and_the_others_go_on(error, files):
    def bench(experiment):
        if experiment is LOADS:
            raise error
        return VALUES, {}

    assert measure_rows(ROWS, [TRAINS, LOADS], bench, files.report) == 1
    rows = files.rows()
    assert str(error).split("\n")[0] in rows["loader"]["failed"]
    assert rows["all epochs"]["median"] == 1 and json.loads(files.json.read_text())["complete"]


def test_a_users_mistake_ends_it(files):
    bench = Bench(World(), {LARGE: Path("nowhere")}, files.json.parent, 1, 0.05)
    with pytest.raises(UserError, match="not a prepared data set"):
        measure_rows(ROWS, [TRAINS, LOADS], bench, files.report)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--suite", "tpu"], "--suite tpu: there are cpu and gpu"),
        ([], "name a config, or give --suite"),
        (["moco_demo", "--suite", "cpu"], "give no CONFIG"),
        (["--suite", "cpu", "--baseline"], "no --baseline"),
        (["moco_demo", "--markdown", "x.md"], "go with --suite"),
        (["--suite", "cpu", "--seconds", "0"], "--seconds more than 0"),
    ],
)
def test_mistakes_on_the_command_line(words, message):
    with pytest.raises(UserError, match=message):
        main(words)


def test_a_suite_is_for_its_machine():
    gpu = World(device=torch.device("cuda", 0))
    check_suite("cpu", World())
    check_suite("gpu", gpu)
    for suite, world, message in (
        ("gpu", World(), "there is no GPU"),
        ("cpu", gpu, "CUDA_VISIBLE_DEVICES="),
        ("cpu", World(size=2), "without torchrun"),
    ):
        with pytest.raises(UserError, match=message):
            check_suite(suite, world)


@pytest.mark.parametrize("kind", ["json", "markdown", "picture"])
def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(kind, tmp_path):
    paths = dict.fromkeys(("json", "markdown", "picture"))
    report = Report(**{**paths, kind: tmp_path / "nowhere" / "file"})
    with pytest.raises(UserError, match=f"cannot write --{kind} .*No such file"):
        report.begin("cpu", ROWS)
