"""Ranks that are stopped: all together they go on, and a single one is named by the others."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.test_runs import (
    LIMIT,
    UNEVALUATED,
    is_running,
    kill_everything,
    last_step,
    local,
    settings,
    wait_for_step,
)

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    "LT_TRAIN_TIMEOUT_MINUTES": "0.8",  # so that 5 s of silence are borne
    "SLURM_CPUS_PER_TASK": "1",
    "OMP_NUM_THREADS": "1",
}
BORNE = 5.0
ERROR = re.compile(
    r"lt_train: error: rank 0 lost contact with another rank: rank 2 on \S+"
    r" \(last seen at step (\d+)\) has given no sign of life for \d+ s"
)


def ranks_of(launcher: subprocess.Popen) -> dict[int, int]:
    """The process of each rank."""
    found = {}
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        rank = re.search(rb"\0RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = int(child)
    return found


def test_ranks_stopped_together_go_on_and_one_that_hangs_is_named(demo_root, tmp_path):
    folder = tmp_path / "run"
    options = ["epochs=10000", "run.checkpoint_every=100000", *UNEVALUATED]
    command = local("classifier_demo", *settings(demo_root, folder, *options), "--ranks", "3")
    launcher = subprocess.Popen(
        command, env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for_step(2, launcher, folder)
        ranks = ranks_of(launcher)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in ranks.values():
                os.kill(pid, number)
            if number == signal.SIGSTOP:
                time.sleep(1.5 * BORNE)
        wait_for_step(last_step(folder) + 5, launcher, folder)
        os.kill(ranks[2], signal.SIGSTOP)
        said = next(filter(ERROR.match, launcher.stderr))
        os.kill(ranks[2], signal.SIGCONT)  # or the launcher waits 30 s until it kills it
        _, errors = launcher.communicate(timeout=LIMIT)
    finally:
        if launcher.poll() is None:
            kill_everything(launcher.pid)
    assert launcher.returncode == 76 and "Traceback" not in errors
    assert 0 < int(ERROR.match(said)[1]) <= last_step(folder) + 1
    assert "failed (exit status 76)" in errors.splitlines()[-1]
    assert sorted(ranks) == [0, 1, 2] and not any(map(is_running, ranks.values()))
