"""One folder, one run: two commands at once, a holder that is killed, one that is overtaken."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lt_train.locks import WAIT
from tests.helpers.data_prep_runs import tree
from tests.integration.test_runs import (
    LIMIT,
    ROOT,
    assert_same_state,
    call,
    column,
    local,
    settings,
    single,
    succeed,
    torchrun,
    wait_for_step,
)

pytestmark = pytest.mark.slow

CONFIG, OPTIONS = "classifier_demo", ("run.checkpoint_every=4", "data.val_split=none")
IN_USE = r"is in use by pid \d+ on \S+ \(.*\), since \d{4}-\d\d-\d\d .*; wait for it, stop it, or"


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def errors_of(text: str) -> list[str]:
    """Ours; torchrun adds a report of its own."""
    assert f'Traceback (most recent call last):\n  File "{ROOT}' not in text
    return [line for line in text.splitlines() if line.startswith("lt_train: error:")]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A rank each: two that spin for each other's threads take ten times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def calm(demo_root, tmp_path_factory) -> Path:
    """The run of one process, undisturbed."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    succeed(single("lt_train", CONFIG, *settings(demo_root, folder, *OPTIONS)))
    assert not (folder / "run.lock").exists()
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_of_two_trainings_in_one_folder_one_ends_and_the_other_is_told(ranks, demo_root, tmp_path):
    folder = tmp_path / "run"
    words = ("lt_train", CONFIG, *settings(demo_root, folder, *OPTIONS))
    command = single(*words) if ranks == 1 else torchrun(ranks, *words)
    with running(command) as first, running(command) as second:
        said = [process.communicate(timeout=LIMIT)[1] for process in (first, second)]
        statuses = [first.returncode, second.returncode]
    if sum(statuses):
        assert min(statuses) == 0
        lost = said[statuses.index(max(statuses))]
        (line,) = {*errors_of(lost)}  # of one rank or, on a busy machine, of both
        assert re.search(IN_USE, line)
    else:  # the first was through before the second lost its patience
        assert sum("is already done" in each for each in said) == 1
    steps = column(folder, "step")
    assert steps == list(range(1, len(steps) + 1))


def test_a_killed_holder_is_in_nobody_s_way(demo_root, calm, tmp_path):
    folder = tmp_path / "run"
    command = single("lt_train", CONFIG, *settings(demo_root, folder, *OPTIONS))
    with running(command) as process:
        wait_for_step(6, process, folder)
        process.send_signal(signal.SIGSTOP)  # or it would end meanwhile
        refused = call(command)
        (line,) = errors_of(refused.stderr)
        assert refused.returncode == 2 and f"in use by pid {process.pid} on" in line
        process.kill()
        done = succeed(command)
    assert "resumed from step" in done.stderr
    assert_same_state(calm, folder)
    assert not (folder / "run.lock").exists()


def test_an_overtaken_attempt_that_wakes_up_writes_nothing(demo_root, calm, tmp_path):
    """Slurm has started the job again, but the old attempt was not killed."""
    folder = tmp_path / "run"
    command = single("lt_train", CONFIG, *settings(demo_root, folder, *OPTIONS))
    job = {"SLURM_JOB_ID": "77"}
    with running(command, **job) as old:
        wait_for_step(6, old, folder)
        old.send_signal(signal.SIGSTOP)
        other = call(command, env=os.environ | {"SLURM_JOB_ID": "78", "SLURM_RESTART_COUNT": "1"})
        assert other.returncode == 2 and "job 77" in errors_of(other.stderr)[0]
        again = {**job, "SLURM_RESTART_COUNT": "1"}
        with running(command, **again) as new:
            wait_for_step(10, new, folder)
            new.send_signal(signal.SIGSTOP)
            before = tree(folder)
            old.send_signal(signal.SIGCONT)
            _, said = old.communicate(timeout=LIMIT)
            assert old.returncode == 2, "nobody starts it again"
            (line,) = errors_of(said)
            assert f"taken over by pid {new.pid} on" in line and "writes nothing more" in line
            assert tree(folder) == before
            new.send_signal(signal.SIGCONT)
            assert new.wait(timeout=LIMIT) == 0
    assert_same_state(calm, folder)
    assert column(folder, "loss") == column(calm, "loss")


def test_whoever_is_asked_to_waits_and_finds_the_run_done(demo_root, tmp_path):
    """As launchers ask for: two pipelines share a stage."""
    folder = tmp_path / "run"
    words = settings(demo_root, folder, *OPTIONS)
    with running(single("lt_train", CONFIG, *words)) as first:
        wait_for_step(1, first, folder)
        first.send_signal(signal.SIGSTOP)
        with running(local(CONFIG, *words)) as second:
            assert f"in use by pid {first.pid} on" in until_it_waits(second)
            first.send_signal(signal.SIGCONT)
            _, said = second.communicate(timeout=LIMIT)
        assert second.returncode == 0, said
        assert "already done" in said and first.wait(timeout=LIMIT) == 0


def until_it_waits(process: subprocess.Popen) -> str:
    """The line that says so."""
    return next(line for line in process.stderr if "waiting for it to end" in line)


def test_who_waits_can_be_asked_to_leave(demo_root, tmp_path):
    folder = tmp_path / "run"
    command = single("lt_train", CONFIG, *settings(demo_root, folder))
    with running(command) as first:
        wait_for_step(1, first, folder)
        first.send_signal(signal.SIGSTOP)
        with running(command, **{WAIT: "1"}) as second:
            until_it_waits(second)
            second.send_signal(signal.SIGTERM)
            _, said = second.communicate(timeout=LIMIT)
        assert second.returncode == 75 and "stopped before the first step as asked" in said


def test_a_run_that_is_done_needs_no_lock(demo_root, calm):
    held = {"token": 1}
    (calm / "run.lock").write_text(json.dumps(held))
    before = tree(calm)
    words = json.loads((calm / "result.json").read_text())["config"]["data"]["root"]
    assert words == str(demo_root)
    done = call(single("lt_train", str(calm / "config.yaml")))
    assert done.returncode == 0 and "already done" in done.stderr and tree(calm) == before
    (calm / "run.lock").unlink()
