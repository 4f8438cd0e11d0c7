"""A model of the step time on 1 to 1,024 GPUs: ``python docs/scaling.py [--gloo | --ranks]``
writes the tables of docs/scaling.md.

Message sizes come from the modules themselves, rates from docs/benchmarks.md, the network is an
assumption. ``--gloo`` measures this project's collectives with 2, 4 and 8 local ranks and compares
them with latency and bandwidth fitted to 2 ranks. ``--ranks`` measures what one rank of 8, 64 and
1,024 does by itself (rank_costs.py).
"""

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CORES = 14  # CPU cores a GPU (DGX H100: 112 for 8); the loader was measured with 16
VIEW_BYTES = 3 * 224 * 224 * 2  # an image of ShuffleBN, bf16
# s a trained tensor: ResNet-32's step on the H100, bound by kernel launches, over its 93 tensors
LAUNCH = 17.9e-3 / 93
# images/s of docs/benchmarks.md (H100, batch 256), training alone and fed by the loader
CLASSIFIER = 3980, 3472
MOCO = 1364, 1323  # of one rank, with split batch norm
JITTER = 0.02  # assumed: standard deviation of a rank's step over its mean
BUCKETS = 1 << 20, 25 << 20  # bytes: the first of DDP's gradient buckets, the others
GLOO_RANKS = 2, 4, 8

Point = tuple[str, int]  # a collective and its bytes


@dataclass(frozen=True)
class Fabric:
    """The assumed network. Bandwidths are bytes/s one way out of a GPU, times are seconds."""

    gpus: int = 8  # a node
    nvlink: float = 450e9  # half of the 900 GB/s, both ways, of the H100 SXM data sheet
    nic: float = 50e9  # one 400 Gb/s ConnectX-7 a GPU (DGX H100 user guide)
    reached: float = 0.8  # share of these that collectives reach (assumed, like the rest)
    launch: float = 20e-6
    near: float = 1e-6  # a hop inside a node
    far: float = 6e-6  # a hop between nodes

    def seconds(self, kind: str, size: float, ranks: int) -> float:
        """One collective of ``size`` bytes, which count as in :func:`volume`."""
        if ranks == 1:
            return 0.0
        inside, nodes = min(ranks, self.gpus), -(-ranks // self.gpus)
        if kind == "all_to_all":  # what leaves the node does so by the GPU's own NIC
            slower = max(
                size * (inside - 1) / ranks / self.nvlink,
                size * (ranks - inside) / ranks / self.nic,
            )
            return self.launch + (ranks - 1) * self.near + slower / self.reached
        # rings use all NICs of a node
        bandwidth = self.nvlink if nodes == 1 else min(self.nvlink, self.gpus * self.nic)
        hops = (ranks - nodes) * self.near + (nodes > 1) * nodes * self.far  # a ring
        if kind == "all_reduce":  # a tree, up and down
            levels, node_levels = math.ceil(math.log2(inside)), math.ceil(math.log2(nodes))
            hops = 2 * (levels * self.near + node_levels * self.far)
        return self.launch + hops + volume(kind, size, ranks) / (bandwidth * self.reached)


@dataclass(frozen=True)
class Costs:
    """What a method costs one GPU of many: images/s on an H100 with batch 256, bytes in float32."""

    name: str
    end_to_end: float  # training and decoding share the GPU
    loader: float  # alone
    # of the network, forward and backward counting 1 and 2; MoCo's key encoder adds one forward
    passes: float
    gradients: int  # bytes
    tensors: int  # trained ones
    statistics: int  # bytes, batch norm's running means and variances
    checkpoint: int  # bytes, without MoCo's waiting keys
    dim: int = 0  # width of MoCo's keys


def volume(kind: str, size: float, ranks: int) -> float:
    """Bytes that each rank sends: ``size`` is the tensor (all_reduce), the result (all_gather) or a
    rank's input (all_to_all).
    """
    return (2 if kind == "all_reduce" else 1) * size * (ranks - 1) / ranks


def method_costs(classes: int = 1000, dim: int = 128, queue: int = 65536) -> list[Costs]:
    """Classifier and MoCo with ResNet-50; a checkpoint holds weights, momentum, statistics, and
    MoCo's key encoder and queue.

    What was measured of MoCo splits batch norm, which many ranks do not: its step is taken for 4/3
    of the classifier's, and for what decoding added.
    """
    plain, query = model_size("resnet50", classes=classes), model_size("resnet50", dim=dim)
    moco = (query[0], query[1], 2 * query[2], 3 * query[0] + 2 * query[2] + queue * dim * 4, dim)
    decoding = 1 / MOCO[1] - 1 / MOCO[0]
    unsplit = 1 / (4 / 3 / CLASSIFIER[0] + decoding)
    return [
        Costs("classifier", CLASSIFIER[1], 12021, 3, *plain, 2 * plain[0] + plain[2]),
        Costs("moco", unsplit, 8996, 4, *moco),
    ]


def model_size(backbone: str, classes: int = 0, dim: int = 0) -> tuple[int, int, int]:
    """Bytes of gradients, their tensors, bytes of running statistics: the modules of a classifier,
    or of an encoder with projector.
    """
    import torch

    from lt_train.models.backbones import make_backbone
    from lt_train.models.heads import make_projector

    with torch.device("meta"):
        module = make_backbone(backbone)
        if classes:
            head = torch.nn.Linear(module.out_features, classes)
        else:
            head = make_projector(module.out_features, dim)
    parameters = [*module.parameters(), *head.parameters()]
    norms = [norm for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    gradients = 4 * sum(part.numel() for part in parameters)
    return gradients, len(parameters), 4 * sum(2 * norm.num_features for norm in norms)


def step(costs: Costs, ranks: int, local: float, fabric: Fabric = Fabric()) -> dict[str, float]:
    """Seconds of a step of ``local`` images a rank: ``busy`` (the longest of GPU, host and data),
    ``waiting``, ``exposed``, ``total``.
    """
    gpu, data = local / costs.end_to_end, local / costs.loader * 16 / CORES
    host = LAUNCH * costs.tensors * costs.passes / 3
    busy = max(gpu, host, data)
    a_pass = max(gpu, host) / costs.passes  # beside which messages travel
    first, rest = BUCKETS
    # in the order of the backward pass
    buckets = [first] + [rest] * ((costs.gradients - first) // rest)
    buckets.append(costs.gradients - sum(buckets))
    beside_backward = sum(
        fabric.seconds("all_reduce", size, ranks) for size in (*buckets, costs.statistics)
    )
    exposed = 0.0
    if costs.dim:
        images = fabric.seconds("all_to_all", local * VIEW_BYTES, ranks)
        exposed += max(0.0, images - a_pass)  # beside the queries' forward pass
        # nothing runs beside the keys' way back
        exposed += fabric.seconds("all_to_all", local * costs.dim * 4, ranks)
        beside_backward += fabric.seconds("all_gather", ranks * local * costs.dim * 4, ranks)
    last = fabric.seconds("all_reduce", buckets[-1], ranks)
    exposed += max(last, beside_backward - 2 * a_pass)
    # bounds the expected largest of `ranks` normal draws
    waiting = busy * JITTER * math.sqrt(2 * math.log(ranks))
    return {"busy": busy, "waiting": waiting, "exposed": exposed, "total": busy + waiting + exposed}


def efficiency(costs: Costs, ranks: int, local: float, fabric: Fabric = Fabric()) -> float:
    """Images/s a GPU over those of one GPU with the same global batch, or with 256 where that is
    less.
    """
    alone = min(256, ranks * local)
    rate_alone = alone / step(costs, 1, alone)["total"]
    return local / step(costs, ranks, local, fabric)["total"] / rate_alone


def tables() -> list[str]:
    """Markdown: step times with local batch 256 on two networks, and with global batches of 8,192
    and 128.
    """
    slow = Fabric(nic=12.5e9 / 8)
    plans = [
        ("256 a GPU", 0, Fabric()),
        ("global 8,192", 8192, Fabric()),
        ("global 128", 128, Fabric()),
        ("256 a GPU, 100 Gb/s a node", 0, slow),
    ]
    lines = [
        "| method, batch | GPUs | a GPU | busy ms | waiting ms | exposed ms | step ms | images/s |"
        " efficiency |",
        "|---" * 9 + "|",
    ]
    for costs, (label, batch, fabric) in itertools.product(method_costs(), plans):
        for ranks in (1, 8, 64, 256, 1024):
            local = batch / ranks or 256
            # on one GPU, what was measured
            if 1 <= local <= 1024 and (ranks > 1 or local <= 256):
                row = _row(costs, ranks, local, fabric)
                lines.append(f"| {costs.name}, {label} | {ranks:,} | {local:g} | {row}")
    return lines


def _row(costs: Costs, ranks: int, local: float, fabric: Fabric) -> str:
    times = step(costs, ranks, local, fabric)
    row = " | ".join(f"{seconds * 1e3:.1f}" for seconds in times.values())
    images = ranks * local / times["total"]
    return f"{row} | {images:,.0f} | {efficiency(costs, ranks, local, fabric):.2f} |"


def gloo_tables(repeats: int = 7) -> list[str]:
    """Markdown: collectives of 2, 4, 8 gloo ranks, and the model fitted to 2, alone and with the
    cores shared by the ranks.
    """
    small, large = model_size("resnet32_cifar", classes=10), model_size("resnet50", dim=128)
    sizes = {
        "all_reduce": (2 * large[2], small[0], large[0]),
        "all_to_all": tuple(images * VIEW_BYTES for images in (2, 8, 32)),
    }
    sizes["all_gather"] = tuple(batch * 128 * 4 for batch in (128, 1024, 8192))
    points = []
    for kind, group in sizes.items():
        points += [(kind, size) for size in group]
    measured = {ranks: _measure_on(ranks, points, repeats) for ranks in GLOO_RANKS}
    lines = [
        "| collective | bytes | ranks | measured ms | model ms | model, shared cores ms |",
        "|---" * 6 + "|",
    ]
    cores = max(2, len(os.sched_getaffinity(0)))
    for (kind, size), ranks in itertools.product(points, GLOO_RANKS):
        low, high = (volume(kind, end, 2) for end in (sizes[kind][0], sizes[kind][-1]))
        fast, slow = (measured[2][kind, end] for end in (sizes[kind][0], sizes[kind][-1]))
        slope = (slow - fast) / (high - low)
        model = max(0.0, fast - slope * low) + slope * volume(kind, size, ranks)
        times = measured[ranks][kind, size], model, model * max(1, ranks / cores)
        shown = " | ".join(f"{seconds * 1e3:.1f}" for seconds in times)
        lines.append(f"| {kind} | {size:,} | {ranks} | {shown} |")
    return lines


def _measure_on(ranks: int, points: list[Point], repeats: int) -> dict[Point, float]:
    """Seconds of each collective on so many gloo ranks, which are processes of this machine."""
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_measure, (ranks, folder, points, repeats), ranks)
        lines = (Path(folder) / "seconds").read_text().splitlines()
    return dict(zip(points, map(float, lines)))


def _measure(rank: int, ranks: int, folder: str, points: list[Point], repeats: int) -> None:
    """One gloo rank.

    Rank 0 writes the median over repeats of the slowest rank's seconds, a line a point.
    """
    import torch
    import torch.distributed as dist

    from lt_train.collectives import all_gather_rows, all_reduce_, all_to_all_rows

    torch.set_num_threads(1)
    join = f"file://{folder}/join"
    dist.init_process_group("gloo", init_method=join, rank=rank, world_size=ranks)
    medians = []
    for kind, size in points:
        rows = size // 4 // ranks  # float32; the sizes divide by 8 ranks but for a few bytes
        tensor = torch.zeros(rows if kind == "all_gather" else rows * ranks)
        counts = [rows] * ranks
        collective, extra = {
            "all_reduce": (all_reduce_, ()),
            "all_gather": (all_gather_rows, (counts,)),
            "all_to_all": (all_to_all_rows, (counts, counts)),
        }[kind]
        seconds = []
        for _ in range(repeats + 1):
            dist.barrier()
            started = time.perf_counter()
            collective(tensor, *extra)
            own = torch.tensor(time.perf_counter() - started)
            seconds.append(all_reduce_(own, dist.ReduceOp.MAX).item())
        medians.append(statistics.median(seconds[1:]))
    if rank == 0:
        (Path(folder) / "seconds").write_text("\n".join(map(str, medians)))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python docs/scaling.py", description=__doc__.partition(":")[0]
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--gloo", action="store_true", help="measure with 2, 4 and 8 local gloo ranks"
    )
    which.add_argument(
        "--ranks", action="store_true", help="measure what one rank of 8, 64 and 1,024 does"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=7,
        help="with --gloo: how often each is measured (default: 7)",
    )
    arguments = parser.parse_args()
    if arguments.ranks:
        from rank_costs import rank_table

        lines = rank_table()
    else:
        lines = gloo_tables(arguments.repeats) if arguments.gloo else tables()
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":  # not so in the ranks, which import this file anew
    main()
