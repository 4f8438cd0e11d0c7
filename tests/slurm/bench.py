"""What tests do on the cluster: submit from a folder, disturb, wait, look at what is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.slurm.cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
ON_THE_WAY = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "NODE_FAIL", "PREEMPTED")
RANK = "submitit.core._submit"  # stands in the command line of every rank
LIMIT = 240.0  # seconds that anything on the cluster may take
# photographs of many sizes, which the demo's own configs do not take
DECODED = ("data.loader=dali", "view.crop=random_resized", "model.backbone=resnet10")
SMALL = (
    "engine.precision=fp32",  # ends of runs are compared bit for bit
    "global_batch_size=16",
    *DECODED,
    "view.size=32",
    "eval_view.size=32",
    "eval_view.resize=36",
    "run.log_every=1",
    "run.checkpoint_every=10",
)
SITE = """\
cpu_ranks_per_node: 1
cpus_per_gpu: 1
time: "01:00:00"
signal_before_end: 60
max_requeues: 5
environment: {GLOO_SOCKET_IFNAME: lo}
"""


def processes() -> Iterator[tuple[int, bytes, bytes]]:
    """Number, command line and environment of every other process that lives."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            yield int(folder.name), command, environment


def processes_of(text: str) -> list[str]:
    """Command lines of those that hold a text, in it or in their environment."""
    return [
        command.decode(errors="replace")
        for _, command, environment in processes()
        if text.encode() in command or text.encode() in environment
    ]


class Bench:
    """A folder to submit from, on a cluster that is idle at the start and at the end."""

    def __init__(self, cluster: Cluster, folder: Path, data: Path):
        self.cluster, self.folder, self.data = cluster, folder, data
        (folder / "site.yaml").write_text(SITE)

    def settings(self, epochs: float = 12) -> list[str]:
        """Of a small run of the demo's classifier on 16 images a step."""
        return [
            "classifier_demo",
            f"data.root={self.data}",
            "run.dir=run",
            f"epochs={epochs}",
            *SMALL,
        ]

    def launch(self, *arguments: str, code: Path = ROOT, status: int = 0) -> str:
        """What launch/slurm.py prints, both streams."""
        environment = {**self.cluster.environment, "PYTHONPATH": str(code)}
        done = subprocess.run(
            [sys.executable, str(code / "launch" / "slurm.py"), *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, *arguments: str, nodes: int = 2, code: Path = ROOT) -> str:
        """Submit one stage; returns its job."""
        said = self.launch(*arguments, "--site", "site.yaml", "--nodes", str(nodes), code=code)
        return said.split(": job ")[1].split(",")[0]

    def records(self, job: str) -> list[str]:
        """The states of all attempts, oldest first, as accounting has them."""
        return self.cluster.run("sacct", "-n", "-X", "-P", "-D", "-j", job, "-o", "State").split(
            "\n"
        )[:-1]

    def nodes_of(self, job: str) -> str:
        """Those of the job's last attempt."""
        return self.cluster.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "NodeList").split()[-1]

    def wait(self, job: str, state: str = "COMPLETED") -> None:
        """Wait until the job's last attempt has ended so."""

        def ended() -> bool:
            last = (self.records(job) or [""])[-1].split()[:1]
            assert not last or last[0] in (state, *ON_THE_WAY), self.log()
            return last == [state]

        wait_for(ended, f"job {job}: {state}; {self.records(job)}", LIMIT, 0.5)

    def wait_for_ranks(self, attempt: int, number: int = 2) -> None:
        """Wait until so many ranks of an attempt have started; they are not in training yet."""
        stage = self.folder / "run" / "slurm" / "1" / "classifier_demo"
        folder = stage / "attempts" / str(attempt)
        wait_for(
            lambda: len(list(folder.glob("rank-*"))) == number,
            f"the ranks of attempt {attempt}",
            LIMIT,
        )

    def wait_for_step(self, step: int) -> None:
        """Wait until the run has logged a step beyond a checkpoint."""
        checkpoints = self.folder / "run" / "checkpoints"
        wait_for(
            lambda: self.step() >= step and any(checkpoints.glob("step-*")), f"step {step}", LIMIT
        )

    def step(self) -> int:
        path = self.folder / "run" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return len([line for line in lines if '"loss"' in line])

    def log(self) -> str:
        """All logs of all stages."""
        return "\n".join(
            f"--- {path}\n{path.read_text(errors='replace')}"
            for path in sorted(self.folder.rglob("*_log.out"))
        )

    def pids(self, text: str) -> list[int]:
        """Processes of this cluster whose command line has a text, such as ranks."""
        own = f"SLURM_CONF={self.cluster.environment['SLURM_CONF']}".encode()
        return sorted(
            pid
            for pid, command, environment in processes()
            if text.encode() in command and own in environment.split(b"\0")
        )

    def kill_rank_on(self, node: str) -> None:
        os.kill(self.pid_of_rank_on(node), signal.SIGKILL)

    def pid_of_rank_on(self, node: str) -> int:
        for pid in self.pids(RANK):
            try:
                entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
                program = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            on_node = environment.get("SLURMD_NODENAME") == node
            is_rank = program != "srun" and "SLURM_PROCID" in environment
            if on_node and is_rank and str(self.folder) in environment.get("PYTHONPATH", ""):
                return pid
        raise AssertionError(f"no rank on {node}")

    def assert_ends_as(self, expected: dict[str, torch.Tensor]) -> None:
        """Weights, statistics and momenta at the end of the run are these, bit for bit."""
        state = state_of(self.folder / "run")
        assert state.keys() == expected.keys()
        different = [name for name, tensor in state.items() if not tensor.equal(expected[name])]
        assert not different


def is_stopped(pid: int) -> bool:
    """By SIGSTOP, or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True


def state_of(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    state = torch.load(newest / "state.pt", weights_only=True)
    momenta = {
        f"momentum.{key}": entry["momentum_buffer"]
        for key, entry in state["optimizer"]["state"].items()
    }
    return {**state["method"], **momenta}
