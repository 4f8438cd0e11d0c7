"""A cluster of four nodes for the tests of this folder."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.slurm.bench import LIMIT, RANK, Bench, processes_of, state_of
from tests.slurm.cluster import NEEDED, Cluster, wait_for


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Started once; skipped where Slurm is not installed, unless LT_TRAIN_REQUIRE_SLURM is set, as
    in CI.
    """
    missing = [
        name
        for name in NEEDED
        if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    ]
    if missing or os.geteuid() != 0:
        reason = (
            "a Slurm cluster needs root and slurm-wlm, munge, slurmdbd, mariadb-server (missing:"
            f" {', '.join(missing) or 'root'})"
        )
        (pytest.fail if os.environ.get("LT_TRAIN_REQUIRE_SLURM") else pytest.skip)(reason)
    root = Path(tempfile.mkdtemp(prefix="lt-train-slurm-"))
    made = Cluster(root, 4)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        left = processes_of(str(root))
        shutil.rmtree(root, ignore_errors=True)
        assert not left, f"left behind: {left}"


@pytest.fixture
def bench(cluster, tmp_path, demo_root) -> Iterator[Bench]:
    made = Bench(cluster, tmp_path, demo_root)
    yield made
    cluster.clear()
    wait_for(lambda: not made.pids(RANK), "ranks to be gone", 30.0)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, demo_root) -> dict[str, torch.Tensor]:
    """The same run of two ranks under torchrun: its final state is what every disturbed one must
    reach, bit for bit.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    bench = Bench.__new__(Bench)
    bench.data = demo_root
    name, *settings = bench.settings()
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "lt_train", name, *settings]
    environment = {**os.environ, "SLURM_CPUS_PER_TASK": "1"}  # bits depend on the number of threads
    subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        timeout=LIMIT,
    )
    return state_of(folder / "run")
