"""Is the cluster fit for a run: ``python launch/slurm.py --check --nodes N`` starts this on every
rank, and prints a line a node.

Each node tells its host name, ranks and devices, the bandwidth of an all_reduce, whether DALI
decodes, whether a file that rank 0 wrote is seen, how far its clock is from rank 0's, and its
versions.
"""

import io
import math
import os
import platform
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.collectives import all_reduce_, broadcast_object, gather_objects
from lt_train.distributed import World
from lt_train.errors import UserError

MEGABYTES, REPEATS = 64, 5
SEEN_WITHIN = 20.0  # seconds
MAX_SKEW = 2.0  # seconds between clocks; file times beyond it confuse make, caches and people
PACKAGES = ("torch", "nvidia-dali-cuda130", "accelerate", "deepspeed")


def main(words: list[str]) -> int:
    """Check this rank; rank 0 prints. Exit status 2 if anything is wrong."""
    parser = Parser(prog="launch/check.py")
    parser.add_argument("folder", type=Path, help="on the file system that all nodes share")
    folder = parser.parse_args(words).folder
    with distributed.joined() as world:
        found = gather_objects(_look(world, folder))
    if not world.is_main:
        return 0
    problems = _report(found)
    if problems:
        raise UserError("; ".join(problems))
    sys.stdout.write("all nodes are fit\n")
    return 0


def _look(world: World, folder: Path) -> dict:
    """What one rank sees. Collective."""
    job = os.environ.get("SLURM_JOB_ID", os.getpid())
    restart = os.environ.get("SLURM_RESTART_COUNT", 0)
    marker = Path(broadcast_object(str(folder / f"seen-{job}-{restart}")))
    if world.is_main:
        marker.write_text("rank 0 was here\n")
    seen = _wait_for(marker)
    world.barrier()
    before = time.time()
    clock = broadcast_object(time.time())
    skew = (before + time.time()) / 2 - clock
    bandwidth = _bandwidth(world)
    if world.is_main:
        marker.unlink()
    on_gpu = world.device.type == "cuda"
    packages = {name: _version(name) for name in PACKAGES}
    return {
        "host": socket.gethostname(),
        "rank": world.rank,
        "device": torch.cuda.get_device_name(world.device) if on_gpu else "CPU",
        "bandwidth": bandwidth,
        "dali": _decode(world),
        "seen": seen,
        "skew": skew,
        "versions": {"python": platform.python_version(), **packages},
    }


def _wait_for(path: Path) -> float | None:
    """Seconds until the file is there; None if it does not come."""
    started = time.monotonic()
    while time.monotonic() - started < SEEN_WITHIN:
        try:
            os.listdir(path.parent)  # makes a network file system look again
            if path.read_bytes():
                return time.monotonic() - started
        except OSError:
            pass
        time.sleep(0.05)
    return None


def _bandwidth(world: World) -> float:
    """Bus bandwidth of an all_reduce in GB/s: bytes times 2 (n - 1) / n over time, as nccl-tests
    count it; 0 for a single rank.
    """
    if world.size == 1:
        return 0.0
    tensor = torch.zeros(MEGABYTES << 18, device=world.device)  # float32
    all_reduce_(tensor)
    seconds = []
    for _ in range(REPEATS):
        _wait(world)
        started = time.monotonic()
        all_reduce_(tensor)
        _wait(world)
        seconds.append(time.monotonic() - started)
    bus_bytes = tensor.numel() * 4 * 2 * (world.size - 1) / world.size
    return bus_bytes / sorted(seconds)[REPEATS // 2] / 1e9


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    world.barrier()


def _decode(world: World) -> str:
    """Empty if DALI decodes an image on this rank's device, else why not."""
    try:
        from nvidia.dali import fn, pipeline_def, types

        buffer = io.BytesIO()
        Image.new("RGB", (32, 24), (200, 100, 50)).save(buffer, "JPEG")
        content = np.frombuffer(buffer.getvalue(), np.uint8)
        on_gpu = world.device.type == "cuda"

        @pipeline_def(batch_size=1, num_threads=1, device_id=world.device.index if on_gpu else None)
        def decode():
            encoded = fn.external_source(source=lambda: [content], dtype=types.UINT8)
            return fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu")

        pipeline = decode()
        pipeline.build()
        image = pipeline.run()[0][0]
        shape = tuple(image.shape()) if callable(image.shape) else tuple(image.shape)
        return "" if shape == (24, 32, 3) else f"DALI gives an image of shape {shape}"
    except Exception as error:  # whatever a broken installation raises is the finding
        return f"DALI does not decode: {' '.join(str(error).split())[:200]}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _report(found: list[dict]) -> list[str]:
    """Print a line a node; what is wrong."""
    problems = []
    nodes: dict[str, list[dict]] = {}
    for rank in found:
        nodes.setdefault(rank["host"], []).append(rank)
    for host, ranks in nodes.items():
        expected, own = found[0]["versions"], ranks[0]["versions"]
        bad = next((rank["dali"] for rank in ranks if rank["dali"]), "")
        seen = [rank["seen"] for rank in ranks]
        late = math.inf if None in seen else max(seen)
        skew = max((rank["skew"] for rank in ranks), key=abs)
        other = {name: value for name, value in own.items() if value != expected[name]}
        if bad:
            problems.append(f"{host}: {bad}")
        if late == math.inf:
            problems.append(
                f"{host} does not see a file that rank 0 wrote: is the run's folder on a shared"
                " file system?"
            )
        if abs(skew) > MAX_SKEW:
            problems.append(f"{host}: its clock is {skew:+.1f} s off")
        if other:
            problems.append(f"{host} has other versions than rank 0: {other}")
        numbers = ", ".join(str(rank["rank"]) for rank in ranks)
        bandwidth = min(rank["bandwidth"] for rank in ranks)
        versions = ", ".join(f"{name} {value}" for name, value in own.items())
        sys.stdout.write(
            f"{host}: ranks {numbers}, {ranks[0]['device']}, all_reduce {bandwidth:.2f} GB/s,"
            f" {bad or 'DALI decodes'}, shared file seen after {late:.2f} s, clock {skew:+.3f} s,"
            f" {versions}\n"
        )
    return problems
