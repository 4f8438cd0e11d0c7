"""What one rank of many allocates, computes and receives: the first of them, run here for some
steps in torch's fake process group, in which the others are played by nobody.

``python docs/scaling.py --ranks`` runs it once a method and number of ranks, each in a process of
its own, and makes the table.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_train.config.load import load_config
from lt_train.data.batch import Batch
from lt_train.data.batch_plan import TrainPlan
from lt_train.distributed import World
from lt_train.methods.moco import Shuffle
from lt_train.training.trainer import Trainer

RANKS = 8, 64, 1024
METHODS = {  # by config: what it needs beside it
    "classifier_imagenet_lt": [],
    "moco_imagenet_lt": [],
    "semi_imagenet_lt": ["unlabeled.root={root}", "unlabeled.label_column=label"],
}
A_NODE = 8  # ranks
LOCAL_BATCH = 16  # images a rank, of 64 pixels
STEPS, REPEATS = 3, 20
ENDLESS = 10**6  # steps or epochs, none of which comes
SETTINGS = [
    "view.size=64",
    "eval_view.size=64",
    "eval_view.resize=73",
    f"epochs={ENDLESS}",
    "optim.lr=0",
    "optim.schedule=constant",
    "optim.warmup_epochs=0",
    "engine.precision=fp32",
    f"run.log_every={ENDLESS}",
    f"run.checkpoint_every={ENDLESS}",
    f"run.evaluate_every={ENDLESS}",
]


class Collectives(TorchDispatchMode):
    """Counts the calls of every collective, and the bytes that each leaves on this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__.strip("_")
            self.calls[name] += 1
            # the first argument is what comes out, a tensor or lists of them
            results = [leaf for leaf in tree_leaves(arguments[0]) if torch.is_tensor(leaf)]
            self.bytes[name] += sum(result.nbytes for result in results)
        return function(*arguments, **(keywords or {}))


class Reducing(DistributedDataParallel):
    """DDP whose sums are waited for by Python: those of nobody bring torch's own hook no result."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.register_comm_hook(None, self._sum)

    @staticmethod
    def _sum(_, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        dist.all_reduce(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done


class Measured(Exception):
    """The run is through with what is counted."""


class MeasuredTrainer(Trainer):
    """A trainer whose training is :data:`STEPS` steps that are looked at."""

    def run(self) -> dict:
        """What was counted and measured."""
        self.found: dict = {}
        with suppress(Measured), Collectives() as self.at_start:
            super().run()
        self.found["sampling"] = self._sampling()
        self.found["shuffling"] = self._shuffling()
        return self.found

    def train(self, batches: Iterable[Batch], first_step: int) -> float:
        at_start = dict(self.at_start.calls)
        self.batch = next(iter(batches))
        super().train([self.batch], first_step)  # in which DDP orders its buckets anew
        with Collectives() as in_steps:
            super().train([self.batch] * STEPS, first_step + 1)
        self.found = {
            "at start": at_start,
            "steps": {name: calls / STEPS for name, calls in in_steps.calls.items()},
            "bytes": {name: size / STEPS for name, size in in_steps.bytes.items()},
            "peak": peak_memory(),
            "files": open_files(),
        }
        raise Measured

    def _sampling(self) -> float:
        """Seconds for the samples and views of a batch."""
        plan = TrainPlan(self.config, self.data.train_sets[0], self.world, 0, ENDLESS)

        def draw(step: int) -> None:
            batches = range(step, step + 1)
            plan.views(batches, plan.sample_ids(batches))

        return least_seconds(draw)

    def _shuffling(self) -> float | None:
        """Seconds for ShuffleBN's plan, which is made while the step before is under way."""
        if not hasattr(self.engine.method, "key_encoder"):
            return None
        of_batch = self.config.global_batch_size, self.config.seed
        first = int(self.batch.place[0])
        return least_seconds(lambda step: Shuffle.make(*of_batch, step, first, self.world.device))


def peak_memory() -> int:
    """Bytes that this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def open_files() -> int:
    """Descriptors that this process has."""
    return len(os.listdir("/proc/self/fd"))


@torch.no_grad()
def least_seconds(work: Callable[[int], object]) -> float:
    """Of calls of ``work``, which is given a step: the one that others have disturbed least."""
    seconds = []
    for step in range(REPEATS):
        started = time.perf_counter()
        work(step)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure_rank(config: str, ranks: int, root: str, *more: str) -> dict:
    """What the first of so many ranks finds, with a set in ``root``; ``more``: overrides."""
    world = World(0, ranks, 0, min(ranks, A_NODE))
    os.environ.update(RANK="0", WORLD_SIZE=str(ranks), LOCAL_RANK="0", MASTER_ADDR="localhost")
    os.environ["LOCAL_WORLD_SIZE"] = str(world.local_size)
    torch.nn.parallel.DistributedDataParallel = Reducing
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    words = [word.format(root=root) for word in METHODS[config]]
    words += [f"data.root={root}", f"global_batch_size={LOCAL_BATCH * ranks}", *SETTINGS]
    before, files = peak_memory(), open_files()
    with tempfile.TemporaryDirectory() as folder:
        trainer = MeasuredTrainer(load_config(config, [*words, f"run.dir={folder}", *more]), world)
        found = trainer.run()
    return found | {"peak": found["peak"] - before, "files": found["files"] - files}


def rank_table() -> Iterator[str]:
    """Markdown: a row a method and number of ranks."""
    yield (
        "| method | ranks | collectives a step | at start | gathered a step, MB | "
        "exchanged a step, MB | peak memory, MB | sampling, ms | shuffle's plan, ms | open files |"
    )
    yield "|---" * 10 + "|"
    with tempfile.TemporaryDirectory() as folder:
        root = f"{folder}/demo"
        make = [sys.executable, "-m", "data_prep", "demo", "--out", root]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for config in METHODS:
            for ranks in RANKS:
                command = [sys.executable, __file__, config, str(ranks), root]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                yield _row(config, ranks, json.loads(done.stdout.splitlines()[-1]))


def _row(config: str, ranks: int, found: dict) -> str:
    calls, received = found["steps"], found["bytes"]
    shuffling = found["shuffling"]
    cells = [
        config.partition("_")[0],
        f"{ranks:,}",
        ", ".join(f"{number:g} {name}" for name, number in sorted(calls.items())),
        f"{sum(found['at start'].values())}",
        f"{received.get('allgather_base', 0) / 1e6:.3g}",
        f"{received.get('alltoall_base', 0) / 1e6:.3g}",
        f"{found['peak'] / 1e6:,.0f}",
        f"{1e3 * found['sampling']:.2f}",
        "-" if shuffling is None else f"{1e3 * shuffling:.2f}",
        f"{found['files']}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    config, ranks, root, *more = sys.argv[1:]
    sys.stdout.write(json.dumps(measure_rank(config, int(ranks), root, *more)) + "\n")
