"""What a run shows in TensorBoard: curves, pictures, texts, and its settings by its metrics."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lt_train.config.load import to_dict, to_yaml
from lt_train.config.reading import flatten
from lt_train.config.run_name import is_told
from lt_train.config.schema import Config

# of metrics.jsonl, whose readers need them: as curves they tell nothing
NO_CURVES = ("step", "last_step", "seconds_left", "samples")


class Board:
    """TensorBoard's files of a run that goes on after ``first_step`` steps.

    What an earlier attempt has written of later steps counts no more. Its thread writes what is
    added; an OSError of its is raised by the next call.
    """

    def __init__(self, folder: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._first = first_step + 1  # where what an attempt says of itself stands
        self._shown: set[tuple[int, str]] = set()
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=self._first)

    def scalars(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Curves ``group/name`` of those values that are numbers."""
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in NO_CURVES:
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Images (H, W, 3) uint8 by their tags, each once a step."""
        for tag, pixels in pictures.items():
            if (step, tag) not in self._shown:
                self._shown.add((step, tag))
                self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def begin(self, config: Config) -> None:
        """The config and the command line as texts, and the settings to compare runs by."""
        texts = {"config": to_yaml(config), "command": shlex.join(sys.orig_argv)}
        for tag, text in texts.items():
            indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's code
            self._writer.add_text(tag, indented, self._first)
        _, start, _ = _hparams(settings(config))
        self._writer.file_writer.add_summary(start)

    def end(self) -> None:
        """The run is done: its settings stand beside the last values of its curves."""
        *_, end = _hparams({})
        self._writer.file_writer.add_summary(end)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _hparams(values: dict[str, str | float]) -> tuple:
    """The plugin's records: of an experiment, of a run's start and of its end.

    That of an experiment is not written: TensorBoard would take one run's list of settings and
    metrics for all of them, and without any puts together those that it finds.
    """
    from torch.utils.tensorboard.summary import hparams

    return hparams(values, {})


def settings(config: Config) -> dict[str, str | float]:
    """By its key, every value of a config that changes what is learnt, and is set."""
    found = {}
    for key, value in flatten(to_dict(config)).items():
        if is_told(key) and value is not None:
            is_plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
            found[key] = value if is_plain else json.dumps(value)
    return found
