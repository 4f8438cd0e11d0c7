"""Whole runs through the commands that users type: kill and resume, ranks, bad input, launcher."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ("view.size=32", "eval_view.size=32", "eval_view.resize=36")
SMALL = ("global_batch_size=16", *VIEWS, "epochs=3", "run.log_every=1")
# photographs of many sizes, which the demo's own configs do not take
DECODED = ("data.loader=dali", "view.crop=random_resized", "model.backbone=resnet10")
COMPARED = [  # what the demo's report says of pairs of runs
    ("self-supervised pre-training", "pretrained", "scratch"),
    ("unlabeled images, by pre-training and pseudo-labels", "semi", "scratch"),
]
UNEVALUATED = ("data.val_split=none", "data.test_split=none")
LIMIT = 240  # seconds that any one command may take


def torchrun(ranks: int, *arguments: str) -> list[str]:
    options = ["--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", *arguments]


def single(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def local(experiment: str, *arguments: str) -> list[str]:
    """launch/local.py on two ranks."""
    launcher = str(ROOT / "launch" / "local.py")
    return [sys.executable, launcher, experiment, "--ranks", "2", *arguments]


def call(command: list[str], limit: float = LIMIT, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, **settings)


def succeed(command: list[str], **settings) -> subprocess.CompletedProcess:
    done = call(command, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def settings(root: Path, folder: Path, *more: str) -> list[str]:
    return [f"data.root={root}", f"run.dir={folder}", *SMALL, *DECODED, *more]


def last_step(folder: Path) -> int:
    """The last step that a run has logged, 0 before the first."""
    logged = records(folder) if (folder / "metrics.jsonl").exists() else []
    return logged[-1]["step"] if logged else 0


def wait_for_step(step: int, process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while last_step(folder) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def kill_everything(pid: int) -> None:
    """SIGKILL a launcher and all below it, ranks first: they have sessions of their own."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        kill_everything(int(child))
    os.kill(pid, signal.SIGKILL)


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    state = torch.load(newest / "state.pt", weights_only=True)
    entries = state["optimizer"]["state"].items()
    momenta = {f"momentum.{key}": entry["momentum_buffer"] for key, entry in entries}
    return {**state["method"], **momenta}


def records(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def column(folder: Path, name: str) -> list:
    """What was logged under this name, step by step."""
    return [record[name] for record in records(folder)]


def assert_same_state(one: Path, other: Path) -> None:
    first, second = final_state(one), final_state(other)
    assert first.keys() == second.keys() and len(first) > 50
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize("config", ["moco_demo", "classifier_demo"])
def test_killed_at_any_step_a_run_ends_with_the_same_weights(config, demo_root, tmp_path):
    """SIGKILL of every process of a 2-rank run, twice; the end is bit for bit a calm run's."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    options = ["run.checkpoint_every=4", "data.val_split=none"]
    command = torchrun(2, "lt_train", config, *settings(demo_root, killed, *options))
    succeed(torchrun(2, "lt_train", config, *settings(demo_root, calm, *options)))
    steps = records(calm)[-1]["step"]
    generator = random.Random(steps)
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        target = min(last_step(killed) + generator.randint(5, 9), steps - 1)
        wait_for_step(target, process, killed)
        time.sleep(generator.random() * 0.1)
        kill_everything(process.pid)
        process.wait()
        assert not (killed / "result.json").exists()
    done = succeed(command)
    assert "resumed from step" in done.stderr
    assert_same_state(calm, killed)
    assert column(killed, "step") == list(range(1, steps + 1))
    assert column(killed, "loss") == column(calm, "loss")


def test_sigterm_saves_and_leaves_and_the_same_command_goes_on(demo_root, tmp_path):
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    command = single("lt_train", "classifier_demo", *settings(demo_root, asked))
    succeed(single("lt_train", "classifier_demo", *settings(demo_root, calm)))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_step(1, process, asked)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 75 and "stopped at step" in errors and "Traceback" not in errors
    succeed(command)
    assert_same_state(calm, asked)
    again = succeed(command)
    assert "already done" in again.stderr


def test_sigterm_to_the_launcher_reaches_the_ranks(demo_root, tmp_path):
    folder = tmp_path / "run"
    command = local("classifier_demo", *settings(demo_root, folder))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_step(1, process, folder)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 75 and "stopped by SIGTERM" in errors and "Traceback" not in errors
    assert list((folder / "checkpoints").glob("step-*")) and not (folder / "result.json").exists()
    succeed(command)


def test_ranks_whose_launcher_was_killed_save_and_leave(demo_root, tmp_path):
    folder = tmp_path / "run"
    options = settings(demo_root, folder, *UNEVALUATED)
    process = subprocess.Popen(torchrun(2, "lt_train", "classifier_demo", *options))
    wait_for_step(1, process, folder)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(is_running(int(child)) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list((folder / "checkpoints").glob("step-*")) and not (folder / "result.json").exists()


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie, which nobody here may wait for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_saves_and_leaves_and_the_same_command_goes_on(demo_root, tmp_path):
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    succeed(single("lt_train", "classifier_demo", *settings(demo_root, calm, *UNEVALUATED)))
    options = settings(demo_root, asked, "run.checkpoint_every=500", *UNEVALUATED)
    command = single("lt_train", "classifier_demo", *options)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_step(1, process, asked)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "stopped at step" in errors and "Traceback" not in errors
    assert "resumed from step" in succeed(command).stderr
    assert_same_state(calm, asked)


def test_srun_tasks_train_as_one_run_as_under_torchrun(demo_root, tmp_path):
    """SLURM's variables alone make ranks: losses are torchrun's, not those of two lone runs."""
    ours, theirs = tmp_path / "srun", tmp_path / "torchrun"
    options = ["max_steps=4", *UNEVALUATED]
    succeed(torchrun(2, "lt_train", "classifier_demo", *settings(demo_root, theirs, *options)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    command = single("lt_train", "classifier_demo", *settings(demo_root, ours, *options))
    ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    tasks = [subprocess.Popen(command, env=os.environ | common | rank) for rank in ranks]
    assert [task.wait(timeout=LIMIT) for task in tasks] == [0, 0]
    assert column(ours, "loss") == column(theirs, "loss") and len(records(ours)) == 4


def test_a_run_that_is_past_the_steps_asked_for_is_refused(demo_root, tmp_path):
    options = settings(demo_root, tmp_path / "run")
    succeed(single("lt_train", "classifier_demo", *options, "max_steps=3"))
    refused = call(single("lt_train", "classifier_demo", *options, "max_steps=2"))
    assert refused.returncode == 2 and "past the 2 steps" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_may_go_on_with_another_number_of_ranks(demo_root, tmp_path):
    """The same global batches in the same order: losses of 1 rank, and of 2 ranks taken over by 3,
    are close.
    """
    options = ["run.checkpoint_every=5", "engine.precision=fp32", *UNEVALUATED]
    one, many = tmp_path / "one", tmp_path / "many"
    for ranks, folder, steps in ((1, one, 10), (2, many, 5), (3, many, 10)):
        config = settings(demo_root, folder, *options, "optim.lr=0.001", f"max_steps={steps}")
        succeed(torchrun(ranks, "lt_train", "classifier_demo", *config))
    # batch norm sees each rank's share alone, so the losses are close, not equal
    assert column(many, "loss") == pytest.approx(column(one, "loss"), rel=0.35)
    assert column(many, "epoch") == column(one, "epoch")


def test_evaluation_counts_every_sample_once_on_any_number_of_ranks(demo_root, tmp_path):
    """The same backbone has the same accuracies on 1 and on 3 ranks, over the same 50 samples."""
    base, results = tmp_path / "base", []
    succeed(single("lt_train", "classifier_demo", *settings(demo_root, base)))
    for ranks in (1, 3):
        folder = tmp_path / f"ranks{ranks}"
        options = [f"model.init_from={base}", "max_steps=1", "optim.lr=0", "engine.precision=fp32"]
        succeed(torchrun(ranks, "lt_train", "crt_demo", *settings(demo_root, folder, *options)))
        results.append(json.loads((folder / "result.json").read_text())["metrics"])
    assert results[0]["test"]["samples"] == 50
    assert results[0] == results[1]


def test_pipeline_runs_skips_and_reports(demo_root, tmp_path):
    """Its stages on 2 ranks, a report of their numbers, and a second call that trains nothing, on
    one rank.
    """
    (tmp_path / "data").mkdir()
    command = local("demo", *SMALL, "max_steps=12")
    done = succeed(command, limit=2 * LIMIT, cwd=tmp_path)  # of eight stages
    (pipeline,) = (tmp_path / "runs").glob("demo,*")
    files = list(pipeline.glob("*/result.json"))
    results = {path.parent.name: json.loads(path.read_text()) for path in files}
    trained = {"scratch", "pretrained", "semi", "crt"}
    assert set(results) == {"rotation", *trained}
    report = (pipeline / "report.md").read_text()
    top1 = {name: results[name]["metrics"]["test"]["top1"] for name in trained}
    assert all(f"{top1[name]:.1f}" in report and name in report for name in trained)
    for what, with_it, without in COMPARED:
        said = f"{what}: {top1[with_it] - top1[without]:+.1f} points"
        assert said in report and said in done.stdout
    assert f"tensorboard --logdir runs/{pipeline.name}" in done.stderr
    assert (pipeline / "crt" / "backbone.safetensors").is_file()
    assert list((pipeline / "rotation" / "tensorboard").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    again = succeed([*command, "--ranks", "1"], limit=2 * LIMIT, cwd=tmp_path)
    assert again.stderr.count("already done") == 5
    assert times == [path.stat().st_mtime_ns for path in files]
    assert set(files) == set(pipeline.glob("*/result.json"))
    assert "Traceback" not in done.stderr


def test_benchmark_writes_its_table_and_json(demo_root, tmp_path):
    out, config = tmp_path / "b.json", settings(demo_root, tmp_path / "unused")
    options = ["--baseline", "--repeats", "1", "--seconds", "0.2", "--json", str(out)]
    done = succeed(single("lt_train.benchmark", "classifier_demo", *config, *options))
    result = json.loads(out.read_text())
    for name in ("synthetic", "loader", "end_to_end", "baseline", "bare_loop"):
        assert result[name]["images_per_s"] > 0 and name in done.stdout
    assert not (tmp_path / "unused").exists()


BAD_INPUT = {
    "missing data set": (["classifier_demo", "data.root=nowhere"], "not a prepared data set"),
    "no data set": (["classifier_demo", "data.root=''"], "data.root is not set"),
    "unknown config": (["clasifier_demo"], "did you mean 'classifier_demo'"),
    "misspelt key": (
        ["classifier_demo", "optim.learning_rate=1"],
        "unknown key 'optim.learning_rate'",
    ),
    "run.dir below a file": (["classifier_demo", "run.dir={file}/run"], "cannot write to run.dir"),
    "missing backbone": (["crt_demo", "model.init_from=nowhere"], "model.init_from"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gives_one_line_and_a_nonzero_exit(case, demo_root, tmp_path):
    arguments, words = BAD_INPUT[case]
    (tmp_path / "file").write_text("")
    config, *others = [argument.format(file=tmp_path / "file") for argument in arguments]
    defaults = [f"data.root={demo_root}", f"run.dir={tmp_path / 'run'}"]
    done = call(single("lt_train", config, *defaults, *others))
    assert done.returncode == 2 and words in done.stderr
    lines = done.stderr.splitlines()
    said = re.compile(r"[0-9:]{8} |.*warn", re.IGNORECASE)  # what was understood before it
    assert [line for line in lines if not said.match(line)] == lines[-1:]


def test_more_ranks_than_a_class_balanced_batch_allows(demo_root, tmp_path):
    sampler = ["sampler.name=class_balanced", "sampler.samples_per_class=4"]
    options = settings(demo_root, tmp_path / "run", "global_batch_size=8", *sampler)
    done = call(torchrun(3, "lt_train", "classifier_demo", *options))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "lt_train: error:" in line]
    assert all("use at most 2 ranks" in line for line in said)
    assert done.stderr.splitlines()[-2] == f"  traceback : {said[0]}", "torchrun's last word"


def test_a_changed_config_is_refused_with_the_difference_and_may_be_allowed(demo_root, tmp_path):
    options = settings(demo_root, tmp_path / "run", "max_steps=2")
    succeed(single("lt_train", "classifier_demo", *options))
    refused = call(single("lt_train", "classifier_demo", *options, "optim.lr=0.3"))
    assert refused.returncode == 2 and "optim.lr: 0.1 -> 0.3" in refused.stderr
    assert "Traceback" not in refused.stderr
    allowed = ["optim.lr=0.3", "max_steps=3", "resume.allow_changes=[optim.lr]"]
    succeed(single("lt_train", "classifier_demo", *options, *allowed))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 3


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(demo_root, tmp_path):
    explosive = ["optim.lr=1e30", "optim.warmup_epochs=0", "engine.precision=fp32"]
    options = settings(demo_root, tmp_path / "run", *explosive)
    done = call(single("lt_train", "classifier_demo", *options))
    assert done.returncode == 2 and "the loss is" in done.stderr and "Traceback" not in done.stderr
    named = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert len(named["sample_ids"]) == 16 and f"at step {named['step']}" in done.stderr


def test_a_shard_that_goes_missing_is_one_line(demo_root, damaged_copy, tmp_path):
    root = damaged_copy(demo_root)
    (root / "train-000001.tar").unlink()
    done = call(torchrun(2, "lt_train", "classifier_demo", *settings(root, tmp_path / "run")))
    assert done.returncode != 0 and "cannot read shard" in done.stderr
    assert f'Traceback (most recent call last):\n  File "{ROOT}' not in done.stderr
