"""The one owner of the format of a scored pool: what a sourcing classifier thinks of every sample.

    scores.json               which pool and which model, and the names of the classes
    train-000000.arrow ...    a file a shard, one row a sample of it, in its order:
                              sourced_label int32, score float32

``sourced_label`` is the likeliest of the known classes, ``score`` the probability that the
classifier gives it. A sample that could not be read has label -1 and score 0. A file is complete or
absent, so scoring goes on where it stopped. NumPy and Arrow only.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from lt_train.data.dataset import Dataset
from lt_train.errors import UserError
from lt_train.files import atomic_file, write_atomically
from lt_train.locks import one_at_a_time

SPLIT = "train"  # the one split of a pool
SCHEMA = pa.schema([("sourced_label", pa.int32()), ("score", pa.float32())])


class ScoreStore:
    """The scores of one pool by one model."""

    def __init__(self, folder: Path, pool: Dataset):
        if SPLIT not in pool.splits:
            raise UserError(f"the pool '{pool.name}' has no split '{SPLIT}'")
        self.folder, self.pool, self.shards = folder, pool, pool.splits[SPLIT].shards

    def begin(self, classes: list[str], model: str) -> None:
        """Start, or go on with, scores by the model with this sha256.

        A :class:`UserError` if the folder holds other ones.
        """
        about = {"pool": self.pool.made_by.get("fingerprint"), "classes": classes, "model": model}
        path = self.folder / "scores.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.folder / ".lock"):  # of two that begin at once, one comes first
            if not path.is_file():
                write_atomically(path, json.dumps(about).encode())
        if self._about() != about:
            raise UserError(
                f"'{self.folder}' holds scores of another pool or by another model; "
                "choose another folder or remove it"
            )

    def is_done(self, shard: int) -> bool:
        return self._path(shard).is_file()

    def write(self, shard: int, labels: np.ndarray, scores: np.ndarray) -> None:
        """The scores of all samples of shard number ``shard``: (n,) each."""
        columns = [pa.array(labels, pa.int32()), pa.array(scores, pa.float32())]
        batch = pa.record_batch(columns, schema=SCHEMA)
        with atomic_file(self._path(shard)) as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_batch(batch)

    def read(self, num_classes: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first sample_id, labels, scores) shard by shard.

        A :class:`UserError` if any are missing, damaged or of other classes.
        """
        self._check_whole(num_classes)
        first = 0
        for number, shard in enumerate(self.shards):
            try:
                table = pa.ipc.open_file(self._path(number).read_bytes()).read_all()
                labels, scores = table["sourced_label"].to_numpy(), table["score"].to_numpy()
            except (OSError, pa.ArrowInvalid, KeyError) as error:
                raise UserError(
                    f"cannot read {self._path(number)}: {error}; remove it and score again"
                ) from error
            if len(labels) != shard.samples:
                raise UserError(
                    f"{self._path(number)} has {len(labels)} rows for {shard.samples} samples; "
                    "remove it and score again"
                )
            yield first, labels, scores
            first += shard.samples

    def _check_whole(self, num_classes: int) -> None:
        about = self._about()
        if about["pool"] != self.pool.made_by.get("fingerprint"):
            raise UserError(
                f"'{self.folder}' holds scores of another pool than '{self.pool.name}'; "
                "score this one"
            )
        if len(about["classes"]) != num_classes:
            raise UserError(
                f"'{self.folder}' holds scores for {len(about['classes'])} classes, "
                f"not {num_classes}"
            )
        missing = sum(not self.is_done(shard) for shard in range(len(self.shards)))
        if missing:
            raise UserError(
                f"'{self.folder}': {missing} of {len(self.shards)} shards are not scored yet; "
                "run python -m lt_train score again"
            )

    def _about(self) -> dict:
        try:
            about = json.loads((self.folder / "scores.json").read_bytes())
            classes = list(about["classes"])
            return {"pool": about["pool"], "classes": classes, "model": about["model"]}
        except OSError as error:
            raise UserError(
                f"'{self.folder}' holds no scores ({error.strerror}); "
                "make them with python -m lt_train score"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.folder}/scores.json is damaged ({error}); remove the folder and score again"
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"{self.shards[shard].name.removesuffix('.tar')}.arrow"
