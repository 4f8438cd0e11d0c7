"""Small runs of every method, and of both engines, that say whether a run ends as it should."""

from pathlib import Path

from tests.golden.golden_runs import LOADERS, METHODS

SETTINGS = ["optim.lr=0.01", *LOADERS["resident"]]  # a rate that tells another rounding soon

ZERO = ["engine.name=deepspeed", "engine.zero_stage=2"]
LORA = [
    "method=classifier",
    "model.init_from={runs}/classifier",
    "model.trainable=lora",
    "optim.name=adamw",
    "optim.head_lr_factor=3",
]
RUNS = {
    **METHODS,
    "lora": LORA,
    "lora, ZeRO": ZERO + LORA,
    "classifier, ZeRO": ZERO + METHODS["classifier"],
    "moco, ZeRO": ZERO + METHODS["moco"],
}


def settings_of(name: str, sets: dict[str, str], runs: Path) -> list[str]:
    """A run's overrides of golden/base.yaml.

    ``sets``: as draw_sets makes them; ``runs``: where the run "classifier" lies, from which some
    start.
    """
    words = {"pool": sets["pool"], "runs": str(runs)}
    own = [word.format(**words) for word in (*SETTINGS, *RUNS[name])]
    return [f"data.root={sets['set']}", *own]
