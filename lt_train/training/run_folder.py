"""What a run leaves in its folder, and whose folder it is."""

import json
from pathlib import Path

from safetensors import SafetensorError

from lt_train.config.load import RENAMED, flatten, read_yaml, to_dict, to_yaml
from lt_train.config.schema import Config
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.files import write_atomically
from lt_train.methods.base import Method
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights

# may change between a run and its resumption without changing what is learnt
FREE_KEYS = (
    "description",
    "reference_error",
    "max_steps",
    "run.",
    "resume.",
    "data.decode_threads",
    "data.eval_batch_size",
    "data.cache_dir",
)


class RunFolder:
    """``run.dir``: config.yaml, metrics.jsonl, checkpoints/, weights and result.json."""

    def __init__(self, config: Config, world: World):
        self.config, self.world = config, world
        self.path = Path(config.run.dir)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def claim(self) -> None:
        """Make the folder and save the config, or refuse to mix two configs. Collective."""
        if self.world.is_main:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                saved = self.path / "config.yaml"
                if saved.exists() and self._has_work():
                    self._check_same_config(saved)
                write_atomically(saved, to_yaml(self.config).encode())
            except OSError as error:
                raise UserError(
                    f"cannot write to run.dir {self.path}: {error.strerror}; choose another run.dir"
                ) from error
        self.world.barrier()

    def finished(self, steps: int) -> dict | None:
        """result.json of a training that has ended after so many ``steps``."""
        try:
            result = json.loads((self.path / "result.json").read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return result if result.get("steps") == steps else None

    def finish(self, method: Method, result: dict) -> None:
        """Write the weights, and result.json, which says that the run is done. Collective."""
        if self.world.is_main:
            about = {
                "method": self.config.method,
                "backbone": self.config.model.backbone,
                "steps": str(result["steps"]),
            }
            try:
                export_weights(method.backbone, self.path / BACKBONE_FILE, about)
                if hasattr(method, "classifier"):
                    export_weights(method.classifier, self.path / CLASSIFIER_FILE, about)
                content = (json.dumps(result, indent=1) + "\n").encode()
                write_atomically(self.path / "result.json", content)
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"cannot write the results to {self.path}: {error}; the last checkpoint is kept"
                ) from error
        self.world.barrier()

    def stop_nonfinite(self, step: int, loss: float, sample_ids: list[int]) -> None:
        """Name the step and the samples whose loss was not finite, and raise."""
        if self.world.is_main:
            content = json.dumps({"step": step, "sample_ids": sample_ids}).encode()
            write_atomically(self.path / "nonfinite.json", content)
        raise UserError(
            f"the loss is {loss} at step {step} (sample ids {', '.join(map(str, sample_ids[:8]))}, "
            f"...; all in {self.path}/nonfinite.json); the last checkpoint is kept; "
            "try a lower optim.lr, optim.clip_grad_norm or engine.precision=fp32"
        )

    def _has_work(self) -> bool:
        """Whether another config could spoil anything; a start that failed leaves nothing."""
        return (self.path / "result.json").exists() or any(self.checkpoints.glob("step-*"))

    def _check_same_config(self, saved: Path) -> None:
        defaults = flatten(to_dict(Config()))  # for keys that are newer than the saved config
        before = {**defaults, **flatten(read_yaml(saved))}
        now = flatten(to_dict(self.config))
        free = (*FREE_KEYS, *self.config.resume.allow_changes)
        keys = [key for key in sorted(before.keys() | now.keys()) if not key.startswith(free)]
        changed = [key for key in keys if before.get(key) != now.get(key)]
        renamed = [key for key in changed if key in RENAMED]
        if renamed:
            raise UserError(
                f"{self.path} holds a run of an earlier version of lt_train ({renamed[0]} is "
                f"{RENAMED[renamed[0]]} now); choose another run.dir or remove the folder"
            )
        if changed:
            changes = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed]
            raise UserError(
                f"{self.path} holds a run with another config ({', '.join(changes)}); choose "
                "another run.dir, remove the folder, or go on with "
                f"resume.allow_changes=[{','.join(changed)}]"
            )
