"""Pipelines on a real cluster: chains of jobs, arrays, what is skipped, what failures cancel."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_train.data.dataset import read_dataset
from lt_train.data.scores import ScoreStore
from tests.slurm.bench import DECODED, LIMIT, ROOT
from tests.slurm.cluster import wait_for

PIPELINE = """\
description: For the tests
stages:
  data:
    prepare: folder --source images --name small --samples-per-shard 5 --out data/set
    tasks: 3
  first:
    config: classifier_demo
    after: [data]
    resources: {nodes: 2}
  second:
    config: crt_demo
    after: [first]
    set: {model.init_from: "{first}"}
  look:
    run: "evaluate {second} --split train"
    after: [second]
    resources: {nodes: 2}
"""
SETTINGS = (
    "data.root=data/set",
    "data.loader=resident",
    "global_batch_size=8",
    "view.size=32",
    "eval_view.size=32",
    "eval_view.resize=32",
    "epochs=1",
    "run.log_every=1",
)


@contextmanager
def killed_once(bench, text: str) -> Iterator[None]:
    """SIGKILL the first process of the cluster that has a text in its command line."""

    def kill() -> None:
        wait_for(lambda: bench.pids(text), f"a process with {text}", LIMIT, 0.05)
        os.kill(bench.pids(text)[0], signal.SIGKILL)

    with ThreadPoolExecutor() as threads:
        done = threads.submit(kill)
        yield
        done.result()


@pytest.fixture
def code(bench) -> Path:
    """A checkout with a pipeline of its own, and images for it where the jobs run."""
    code = bench.folder / "checkout"
    for name in ("launch", "lt_train", "data_prep", "configs"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "configs" / "pipelines" / "small.yaml").write_text(PIPELINE)
    generator = np.random.default_rng(0)
    for label in range(3):
        (bench.folder / "images" / f"class_{label}").mkdir(parents=True)
        for index in range(10):
            pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(
                bench.folder / "images" / f"class_{label}" / f"{index}.png"
            )
    return code


def jobs_of(said: str) -> dict[str, str]:
    """Stage -> job, of what launch/slurm.py printed."""
    return {
        line.split(":")[0]: line.split(": job ")[1].split(",")[0]
        for line in said.splitlines()
        if ": job " in line
    }


def files_of(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


def root_of(bench) -> Path:
    """The folder of the only experiment there, which is named after its overrides too."""
    (root,) = (bench.folder / "runs").glob("small,*")
    return root


def test_a_chain_runs_in_order_and_the_same_command_again_skips_what_is_done(bench, code):
    """One task of its array is killed, which starts again alone; the other stages wait for it."""
    with killed_once(bench, "--task 1/3"):
        said = bench.launch("small", "--site", "site.yaml", "--follow", *SETTINGS, code=code)
    assert len(re.findall("was killed: restart 1 of at most 5", bench.log())) == 1
    jobs = jobs_of(said)
    assert list(jobs) == ["data", "first", "second", "look"] and "first: job " in said
    assert "2 node(s), 2 rank(s), global batch 8, 4 a rank" in said
    options = ("-j", ",".join(jobs.values()), "-o", "JobID,State,Start,End,NNodes")
    lines = bench.cluster.run("sacct", "-n", "-X", "-P", *options).splitlines()
    rows = {line.split("|")[0]: line.split("|") for line in lines}
    assert all(row[1] == "COMPLETED" for row in rows.values())
    tasks = [row for name, row in rows.items() if name.startswith(f"{jobs['data']}_")]
    assert len(tasks) == 3, "an array job"
    first, second, look = (rows[jobs[name]] for name in ("first", "second", "look"))
    assert max(row[3] for row in tasks) <= first[2] <= first[3] <= second[2]
    assert [first[4], second[4], look[4]] == ["2", "1", "2"] and second[3] <= look[2]
    root = root_of(bench)
    evaluation = json.loads((root / "second" / "evaluation.json").read_text())
    assert evaluation["metrics"]["train"]["samples"] == 30
    assert "second" in (root / "report.md").read_text()

    single = bench.folder / "single"
    words = ["--source", "images", "--name", "small", "--samples-per-shard", "5", "--workers", "1"]
    command = [sys.executable, "-m", "data_prep", "folder", *words, "--out", str(single)]
    subprocess.run(command, cwd=bench.folder, check=True, capture_output=True, timeout=LIMIT)
    assert files_of(bench.folder / "data" / "set") == files_of(single), (
        "three array tasks made the bytes of one process"
    )

    shutil.rmtree(root / "second")
    again = bench.launch("small", "--site", "site.yaml", *SETTINGS, code=code)
    assert list(jobs_of(again)) == ["second", "look"] and again.count("finished, skipped") == 2
    bench.wait(jobs_of(again)["look"])


def test_a_failed_stage_cancels_those_that_wait_for_it(bench, code):
    (bench.folder / "images" / "class_0" / "0.png").write_bytes(b"no image")
    said = bench.launch("small", "--site", "site.yaml", "--follow", *SETTINGS, code=code, status=1)
    jobs = jobs_of(said)
    bench.wait(jobs["first"], "CANCELLED")
    bench.wait(jobs["second"], "CANCELLED")
    assert not (root_of(bench) / "first").exists()
    log = bench.log()
    assert "cannot be used" in log and "a restart would not mend" in log


SOURCING = """\
stages:
  data: {prepare: folder --source images --out data/set}
  pool: {prepare: tinyimages --source pool.npy --samples-per-shard 25 --out data/pool, tasks: 2}
  source: {config: sourcing_cifar10, after: [data, pool]}
  score: {score: sourcing_cifar10, after: [source], set: {run.dir: "{source}"}, tasks: 2}
"""


def test_a_pool_is_sharded_and_scored_by_array_jobs(bench, code):
    (code / "configs" / "pipelines" / "small.yaml").write_text(SOURCING)
    np.save(
        bench.folder / "pool.npy",
        np.random.default_rng(1).integers(0, 256, (150, 32, 32, 3), np.uint8),
    )
    small = (
        "data.root=data/set",
        "unlabeled.root=data/pool",
        "model.backbone=resnet32_cifar",
        "global_batch_size=8",
        "epochs=1",
        "run.log_every=1",
    )
    said = bench.launch("small", "--site", "site.yaml", "--follow", *small, code=code)
    assert list(jobs_of(said)) == ["data", "pool", "source", "score"]
    pool = read_dataset(bench.folder / "data" / "pool")
    parts = list(ScoreStore(root_of(bench) / "source" / "scores", pool).read(3))
    assert [len(labels) for _, labels, _ in parts] == [25] * 6
    assert all((scores > 0).all() for _, _, scores in parts)
    log = bench.log()
    assert "part 0 of 2: 75 images scored" in log and "part 1 of 2: 75 images scored" in log


def test_seeds_have_folders_and_jobs_of_their_own(bench):
    said = bench.launch(*bench.settings(epochs=1), "--site", "site.yaml", "--array-seeds", "3-4")
    jobs = [line.split(": job ")[1].split(",")[0] for line in said.splitlines() if ": job " in line]
    assert len(jobs) == 2
    for job, seed in zip(jobs, (3, 4)):
        bench.wait(job)
        run = bench.folder / f"run,seed={seed}"
        assert f"\nseed: {seed}\n" in (run / "config.yaml").read_text()
        assert (run / "result.json").exists()


def test_benchmark_measures_one_and_more_nodes(bench):
    words = [
        *bench.settings()[:2],
        *DECODED,
        "global_batch_size=8",
        "view.size=32",
        "eval_view.size=32",
        "eval_view.resize=36",
    ]
    said = bench.launch(
        *words, "--seconds", "0.2", "--site", "site.yaml", "--nodes", "2", "--benchmark"
    )
    rows = [line.split() for line in said.splitlines() if re.match(r"\s*[12] +[12] ", line)]
    assert [row[:2] for row in rows] == [["1", "1"], ["2", "2"]]
    assert rows[0][-1] == "1.00" and 0.1 < float(rows[1][-1]) < 2
    written = bench.folder / "runs" / "benchmark-classifier_demo" / "slurm" / "1" / "scaling.md"
    assert written.read_text().count("\n") == 4
