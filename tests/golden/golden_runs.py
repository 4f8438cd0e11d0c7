"""Runs whose numbers must not change: every method, with both loaders, on one and two ranks.

``python -m tests.golden.golden_runs`` records them anew into runs.json, for a change that means to
change numbers.
"""

import argparse
import contextlib
import hashlib
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data_prep.reading.images import PngArray
from data_prep.reading.source import Source, SourceSplit
from data_prep.writing.plan import make_plan
from data_prep.writing.shards import write
from lt_train.config.load import load_config
from lt_train.data.tables import add_columns
from lt_train.distributed import World
from lt_train.models.weights import BACKBONE_FILE, read_tensors
from lt_train.training.trainer import Trainer
from tests.helpers.ranks import run_on_ranks

HERE = Path(__file__).resolve().parent
RECORD = HERE / "runs.json"
COUNTS = {"train": (14, 8, 5, 3), "val": (3, 3, 2, 2)}
POOL = 24
STEPS = 5  # losses kept: later ones are far from what another processor's rounding gives
TWO_SETS = ["unlabeled.root={pool}"]
PSEUDO_LABELED = [*TWO_SETS, "unlabeled.label_column=pseudo_label"]
METHODS = {  # the classifier first: cRT and LWS start from it
    "classifier": ["method=classifier"],
    "ldam_drw": [
        "method=classifier",
        "+ldam_drw",
        "loss.weights_from_epoch=1",
        "sampler.name=class_balanced",
        "sampler.samples_per_class=2",
    ],
    "mixup": ["method=classifier", "+mixup", "+cutmix", "+focal", "sampler.name=effective_number"],
    "crt": [
        "method=crt",
        "model.init_from={runs}/classifier",
        "sampler.name=class_balanced",
        "sampler.samples_per_class=1",
    ],
    "lws": ["method=lws", "model.init_from={runs}/classifier", "decoupled.freeze_bn_stats=false"],
    "moco": ["method=moco", "view.crop=random_resized", "view.scale=[0.3,1.0]"],
    "rotation": ["method=rotation"],
    "experts": ["method=experts", "sampler.name=square_root"],
    "proco": ["method=proco", "+balanced_softmax", "sampler.name=progressively_balanced"],
    "semi": ["method=semi", *PSEUDO_LABELED, "unlabeled.share=null", "semi.weight=0.5", "+cb_ce"],
    "semi, a share": [
        "method=semi",
        *PSEUDO_LABELED,
        "unlabeled.share=0.4",
        "unlabeled.min_confidence=0.2",
        "semi.weight=2",
    ],
    "fixmatch": [
        "method=fixmatch",
        *TWO_SETS,
        "unlabeled.share=0.6",
        "second_view.randaugment_ops=2",
        "second_view.randaugment_magnitude=null",
        "second_view.cutout=0.5",
    ],
    "sourcing": ["method=sourcing", *TWO_SETS, "unlabeled.max_samples=20"],
}
LOADERS = {
    "resident": ["data.loader=resident", "view.crop=pad"],
    "dali": ["data.loader=dali", "view.blur_probability=0.5"],
}
ON_TWO_RANKS = {"resident": list(METHODS), "dali": ["classifier", "moco", "fixmatch"]}


def draw_sets(folder: Path) -> dict[str, str]:
    """The labeled set and the pool, as data_prep writes them: blocks of colour that the class has a
    part in.
    """
    generator = np.random.default_rng(0)

    def images(labels: np.ndarray) -> PngArray:
        blocks = generator.integers(0, 180, (len(labels), 9, 9, 3))
        blocks[..., 0] += 20 * labels[:, None, None]
        return PngArray(blocks.astype(np.uint8).repeat(4, 1).repeat(4, 2))

    def split(labels: np.ndarray, labeled: bool = True) -> SourceSplit:
        return SourceSplit(
            labels if labeled else None,
            [f"{index:04d}" for index in range(len(labels))],
            images(labels),
        )

    splits = {
        name: split(np.repeat(np.arange(len(counts)), counts)) for name, counts in COUNTS.items()
    }
    pool_labels = np.arange(POOL) % 4
    classes = [f"class {label}" for label in range(4)]
    sources = {
        "set": Source("set", classes, splits),
        "pool": Source("pool", classes, {"train": split(pool_labels, labeled=False)}),
    }
    for name, source in sources.items():
        write(
            make_plan(source, folder / name, 0, 10),
            1,
            0.0,
            "golden runs",
            lambda images, size: None,
        )
    columns = {
        "pseudo_label": pa.array((pool_labels + (np.arange(POOL) % 5 == 0)) % 4, pa.int32()),
        "confidence": pa.array(np.linspace(0, 1, POOL), pa.float32()),
    }
    add_columns(folder / "pool", "train", columns, "golden runs")
    return {name: str(folder / name) for name in sources}


def run_case(world: World, name: str, loader: str, sets: dict[str, str], runs: Path) -> dict:
    """Losses of the first steps, ids of the global batches in rank order, and the sha256 of the
    backbone that came out.
    """
    words = {"pool": sets["pool"], "runs": str(runs)}
    settings = [word.format(**words) for word in METHODS[name]]
    if any(word.startswith("view.crop=") for word in settings):  # MoCo's own crop
        settings = [*LOADERS[loader], *settings]
    else:
        settings = [*settings, *LOADERS[loader]]
    if loader == "dali":
        settings = [word for word in settings if not word.startswith("second_view")] + [
            word for word in settings if word.startswith("second_view")
        ]
    config = load_config(
        str(HERE / "base.yaml"), [f"data.root={sets['set']}", f"run.dir={runs / name}", *settings]
    )
    trainer, ids = Trainer(config, world), []
    train = trainer.data.train

    def recorded(*arguments):
        for batch in train(*arguments):
            ids.append(batch.sample_id.tolist())
            yield batch

    trainer.data.train = recorded
    result = trainer.run()
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    digest = hashlib.sha256()
    for tensor_name, tensor in sorted(read_tensors(runs / name / BACKBONE_FILE).items()):
        digest.update(tensor_name.encode() + tensor.contiguous().numpy().tobytes())
    headline = result["metrics"]["val"][result["headline"]]
    losses = [line["loss"] for line in lines if "loss" in line][:STEPS]
    return {"losses": losses, "ids": ids, "backbone": digest.hexdigest(), "headline": headline}


def run_cases(
    world: World, cases: list[tuple[str, str]], sets: dict[str, str], folder: Path
) -> dict[str, dict]:
    """The cases, (method, loader), one after the other, in one thread."""
    torch.set_num_threads(1)
    return {
        f"{name}, {loader}": run_case(world, name, loader, sets, folder / loader)
        for name, loader in cases
    }


def run_all(folder: Path) -> dict[str, dict]:
    """Every case by ``method, loader, ranks``."""
    sets = draw_sets(folder)
    threads = torch.get_num_threads()
    alone = [(name, loader) for loader in LOADERS for name in METHODS]
    found = {
        f"{name}, 1 rank": case
        for name, case in run_cases(World(), alone, sets, folder / "1").items()
    }
    torch.set_num_threads(threads)
    together = [(name, loader) for loader, names in ON_TWO_RANKS.items() for name in names]
    ranks = run_on_ranks(2, run_cases, together, sets, folder / "2", timeout=600)
    for name, case in ranks[0].items():
        found[f"{name}, 2 ranks"] = case | {
            "ids": [first + second for first, second in zip(case["ids"], ranks[1][name]["ids"])]
        }
    return found


def machine() -> dict[str, str]:
    """What decides the last bits of a float."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [
            next(line for line in lines if line.startswith(key)).partition(":")[2].strip()
            for key in ("vendor_id", "cpu family", "model")
        ]
        return {
            "cpu": " ".join(names),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
    return {
        "cpu": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = run_all(Path(folder))
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    RECORD.write_text(f'{{"machine": {json.dumps(machine())},\n"cases": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
