"""A run whose ranks are killed again and again, at whatever moment, ends bit for bit as one that
nobody has touched.

``LT_TRAIN_TRIALS=100 python -m pytest tests/reliability/test_kills.py`` kills so many times, over
all methods on one to four ranks; few times in CI.
"""

import itertools
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lt_train.__main__ import main
from lt_train.errors import run_cli
from lt_train.run_files import parse_log
from tests.golden.golden_runs import HERE, draw_sets
from tests.helpers.all_methods import RUNS, settings_of
from tests.helpers.ranks import be_rank
from tests.helpers.trials import SEED, trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]  # every attempt has a limit of its own

KILLS, KILLS_A_RUN = trials(4), 2
RANKS = (1, 2, 3, 4)
STEPS = 6
SHORT = [f"max_steps={STEPS}", "epochs=4", "run.checkpoint_every=2", "run.evaluate_every=2"]
LIMIT = 240  # seconds that any attempt may take, on a busy machine too
SEEN_AFTER = 0.3  # seconds within which a launcher sees that a rank is gone
# of ranks that had to leave since another was gone: as they should, as signals end them, and done
LEFT = {74, 75, 76, -15, 0}
STARTED = [  # what every rank imports, once for all of them
    "lt_train.training.trainer",
    "accelerate",
    "torch._dynamo",
    "tests.reliability.test_kills",
]

Run = tuple[str, int]  # its name, its ranks


def run_rank(rank: int, ranks: int, port: int, words: list[str], said: Path) -> None:
    """The command as a launcher starts it, in a process of its own."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    be_rank(rank, ranks, port)
    os.environ.update(
        SLURM_CPUS_PER_TASK="1",  # threads, see World.cpu_threads
        OMP_NUM_THREADS="1",
    )
    run_cli("lt_train", lambda: main(words))


class Launcher:
    """Starts ranks as forks of one process that has imported everything: in half a second, not in
    five.
    """

    def __init__(self, folder: Path):
        self.folder, self._number = folder, itertools.count()
        self.sets = draw_sets(folder)
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(STARTED)
        self._said = folder / "said"

    def words(self, name: str, run: Path) -> list[str]:
        own = settings_of(name, self.sets, self.folder)
        return [str(HERE / "base.yaml"), *own, *SHORT, f"run.dir={run}"]

    def start(self, run: Run, folder: Path) -> list[BaseProcess]:
        name, ranks = run
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._store = store  # serves until the next attempt
        self._said = self.folder / f"said {next(self._number)}"
        common = (ranks, store.port, self.words(name, folder), self._said)
        started = []
        for rank in range(ranks):
            process = self._processes.Process(target=run_rank, args=(rank, *common))
            process.start()
            started.append(process)
        return started

    def undisturbed(self, run: Run, folder: Path) -> float:
        """Run to the end; the seconds that it took."""
        began = time.monotonic()
        started = self.start(run, folder)
        assert ends(started, LIMIT) == [0] * run[1], self.said()
        return time.monotonic() - began

    def killed(self, run: Run, folder: Path, after: float, draw: random.Random) -> bool:
        """Kill one rank, or all, after so many seconds; the others are then asked to leave, as by a
        launcher. False if the run was over before.
        """
        started = self.start(run, folder)
        if not waits(started, after):
            return False
        victims = started if draw.random() < 0.5 else [draw.choice(started)]
        for process in victims:
            process.kill()
        time.sleep(draw.uniform(0, SEEN_AFTER))
        others = [process for process in started if process not in victims]
        for process in others:
            process.terminate()
        statuses = ends(started, LIMIT)
        found = {status for process, status in zip(started, statuses) if process in others}
        assert found <= LEFT, f"{found}: {self.said()}"
        return True

    def said(self) -> str:
        return self._said.read_text(errors="replace")[-4000:]


def waits(started: list[BaseProcess], seconds: float) -> list[BaseProcess]:
    """Those that still run after so many seconds; sooner if none does."""
    deadline, running = time.monotonic() + seconds, started
    while running and time.monotonic() < deadline:
        wait([process.sentinel for process in running], deadline - time.monotonic())
        running = [process for process in running if process.exitcode is None]
    return running


def ends(started: list[BaseProcess], limit: float) -> list[int | None]:
    """Exit statuses, None of those that had to be killed after the ``limit``."""
    late = waits(started, limit)
    for process in late:
        process.kill()
    for process in started:
        process.join()
    return [None if process in late else process.exitcode for process in started]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory) -> Launcher:
    made = Launcher(tmp_path_factory.mktemp("kills"))
    made.undisturbed(("classifier", 1), made.folder / "classifier")  # from which others start
    return made


def tensors(content: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All in nested dictionaries, by their path."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from tensors(value, f"{name}/{key}")
    else:
        yield name, content


def ending(folder: Path) -> tuple[dict[str, torch.Tensor], list[float], dict]:
    """State, losses of all steps, and metrics of a run that is done."""
    state = folder / "checkpoints" / f"step-{STEPS:08d}" / "state.pt"
    records, odd = parse_log((folder / "metrics.jsonl").read_bytes())
    assert not odd
    losses = [record["loss"] for record in records if "loss" in record]
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return dict(tensors(torch.load(state, weights_only=True))), losses, metrics


def assert_same_ending(one: Path, other: Path, what: str) -> None:
    (first, *rest), (second, *others) = ending(one), ending(other)
    assert first.keys() == second.keys(), what
    assert [key for key, value in first.items() if not value.equal(second[key])] == [], what
    assert rest == others, what


def test_killed_at_any_moment_a_run_ends_as_if_it_had_not_been(launcher):
    draw = random.Random(SEED)
    runs = [*itertools.product(RUNS, RANKS)]
    draw.shuffle(runs)
    kills = 0
    for number, run in enumerate(itertools.cycle(runs)):
        calm, killed = (launcher.folder / f"{number} {state}" for state in ("calm", "killed"))
        seconds = launcher.undisturbed(run, calm)
        for _ in range(KILLS_A_RUN):
            kills += launcher.killed(run, killed, draw.uniform(0, seconds), draw)
        launcher.undisturbed(run, killed)
        assert_same_ending(calm, killed, f"SEED={SEED}, run {number}: {run}")
        if kills >= KILLS:
            break
