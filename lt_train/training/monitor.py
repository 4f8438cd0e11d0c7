"""What is recorded of a run: a progress bar, metrics.jsonl and TensorBoard events.

Only rank 0 writes.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from lt_train.config.schema import Config
from lt_train.console import Every, console, say
from lt_train.files import write_atomically
from lt_train.run_files import parse_log, write_record
from lt_train.training.board import Board

log = logging.getLogger(__name__)


class Monitor:
    """Records of one run: ``record`` at log steps, ``evaluated`` after an evaluation.

    A context manager. ``check``: called before anything is written; see :meth:`FolderLock.check`.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        last_step: int,
        enabled: bool,
        check: Callable[[], None] = lambda: None,
    ):
        self.enabled, self.step, self._check = enabled, first_step, check
        if not enabled:
            return
        self._file = folder / "metrics.jsonl"
        self._evaluated = self._drop_after(first_step)
        self._board = Board(folder, first_step)
        self._title = folder.name
        self._first, self._last, self._plain = first_step, last_step, Every()
        self._recorded = False
        self._redrawn = Every(0.5)
        self._bar = Progress(
            # what gives way on narrow terminals
            TextColumn("[bold]{task.description}", table_column=Column(overflow="ellipsis")),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[saved]}"),
            console=console,
            disable=not console.is_terminal,
        )
        texts = {"rate": "", "loss": "", "saved": _saved(first_step) if first_step else ""}
        self._task = self._bar.add_task(self._title, total=last_step, completed=first_step, **texts)

    def __enter__(self) -> "Monitor":
        if self.enabled:
            self._report, threading.excepthook = threading.excepthook, self._on_failed_thread
            self._bar.start()
        return self

    def __exit__(self, *_exception) -> None:
        if self.enabled:
            with contextlib.suppress(OSError):  # a terminal that has hung up
                self._bar.stop()
            try:
                self._board.close()
            finally:
                threading.excepthook = self._report

    def _on_failed_thread(self, failure: threading.ExceptHookArgs) -> None:
        """What ends TensorBoard's thread is no traceback of its own: flush raises it again."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._report(failure)

    def passed(self, step: int) -> None:
        """``step`` steps are under way or done, for the bar and :meth:`present`."""
        self.step = step
        if self.enabled and console.is_terminal and self._redrawn.due():
            self._bar.update(self._task, completed=step)

    def saved(self, step: int) -> None:
        """The checkpoint of ``step`` is whole, for the bar."""
        if self.enabled:
            self._bar.update(self._task, saved=_saved(step))

    def present(self) -> str:
        """Where training is, in a few words; nothing where a bar shows it."""
        if not self.enabled or console.is_terminal:
            return ""
        if self.step == self._first:
            return f"{self._title}: the first step of {self._last - self._first} is under way"
        return f"{self._title}: at step {self.step}/{self._last}"

    def record(self, step: int, values: dict[str, float]) -> None:
        """Log training ``values`` at ``step``, images_per_s, loss and seconds_left among them."""
        if not self.enabled:
            return
        self._append({"step": step, **values}, "train")
        rate, loss = f"{values['images_per_s']:,.0f} images/s", f"loss {values['loss']:.3f}"
        self._bar.update(self._task, completed=step, rate=rate, loss=loss)
        if not console.is_terminal and self._plain.due(at_once=not self._recorded):
            self._recorded = True
            total, left = self._bar.tasks[0].total, values["seconds_left"]
            say(f"{self._title}: step {step}/{total}, {rate}, {loss}, {left:.0f} s left")

    def begin(self, config: Config) -> None:
        """Tell TensorBoard whose run this is."""
        self._show(lambda: self._board.begin(config))

    def end(self) -> None:
        """Tell TensorBoard that the run is done, once all is evaluated."""
        self._show(lambda: self._board.end())

    def show(self, step: int, draw: Callable[[], dict[str, np.ndarray]]) -> None:
        """Have TensorBoard show what ``draw``, called where that is written, returns: images
        (H, W, 3) uint8 by their tags.
        """
        if self.enabled:
            pictures = draw()
            self._show(lambda: self._board.pictures(step, pictures))

    def _show(self, write: Callable[[], None]) -> None:
        if self.enabled:
            self._check()
            write()
            self._board.flush()

    def evaluated(self, step: int, split: str, metrics: dict) -> bool:
        """Log an evaluation's scalars; whether it has.

        Once a step and split: the last step's may stand there already, where the run was cut off
        between that and its end, and weights that were selected are evaluated at their step again.
        """
        if not self.enabled or (step, split) in self._evaluated:
            return False
        self._evaluated.add((step, split))
        scalars = {
            name: value for name, value in metrics.items() if isinstance(value, (int, float))
        }
        self._append({"step": step, "split": split, **scalars}, split)
        return True

    def has_evaluated(self, step: int, split: str) -> bool:
        """Whether that evaluation is recorded; of the rank that writes."""
        return (step, split) in self._evaluated

    def _append(self, record: dict, prefix: str) -> None:
        with open(self._file, "ab") as file:
            # only now: whoever takes the folder over puts another file in this one's place first
            self._check()
            self._board.scalars(record["step"], prefix, record)
            self._board.flush()  # or its thread would write later, and unchecked
            file.write(write_record(record))

    def _drop_after(self, step: int) -> set[tuple[int, str]]:
        """Forget records past the checkpoint that the run goes on from: it writes them again.

        What is no record goes too. Returns the steps and splits of the evaluations that are left.
        """
        if not self._file.exists():
            return set()
        records, odd = parse_log(self._file.read_bytes())
        kept, evaluated = [], set()
        for record in records:
            evaluation = (record["step"], record.get("split"))
            if record["step"] > step or evaluation in evaluated:
                continue
            kept.append(write_record(record))  # with a checksum, if an earlier version wrote none
            if "split" in record:
                evaluated.add(evaluation)
        if odd:
            log.warning("%s: %d unreadable line(s) are dropped", self._file, len(odd))
        self._check()
        write_atomically(self._file, b"".join(kept))
        return evaluated


def _saved(step: int) -> str:
    return f"saved {step}"
