"""What a person sees of a run: a progress bar, metrics.jsonl and TensorBoard events. Only rank 0 writes."""

import json
import logging
import time
import warnings
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal
console = Console(stderr=True, soft_wrap=True)


def say(line: str) -> None:
    """Write a line as it is, on whatever rank."""
    console.print(line, highlight=False, markup=False)


class ConsoleHandler(logging.Handler):
    """Log lines beside the progress bar, never wrapped."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(f"{time.strftime('%X')} {record.getMessage()}", markup=False, highlight=False)


def setup_logging(is_main: bool) -> None:
    """Log to the console; ranks other than 0 speak up only to warn."""
    logging.basicConfig(level=logging.WARNING, handlers=[ConsoleHandler()], force=True)
    logging.getLogger("lt_train").setLevel(logging.INFO if is_main else logging.WARNING)
    # accelerate 1.15 passes the only name that torch 2.11 knows; torch 2.14 prefers another
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")


class Monitor:
    """Records of one run: ``record`` at log steps, ``evaluated`` after an evaluation. Use as a context manager."""

    def __init__(self, folder: Path, title: str, first_step: int, last_step: int, enabled: bool):
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._file = folder / "metrics.jsonl"
        self._drop_after(first_step)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self._title, self._last_plain = title, 0.0
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=last_step, completed=first_step, rate="", loss="")

    def __enter__(self) -> "Monitor":
        if self.enabled:
            self._bar.start()
        return self

    def __exit__(self, *_exception) -> None:
        if self.enabled:
            self._bar.stop()
            self._writer.close()

    def record(self, step: int, values: dict[str, float], remaining: float) -> None:
        """Log training ``values`` at ``step``; ``remaining`` in seconds."""
        if not self.enabled:
            return
        self._append({"step": step, **values}, "train")
        rate, loss = f"{values['images_per_s']:,.0f} images/s", f"loss {values['loss']:.3f}"
        self._bar.update(self._task, completed=step, rate=rate, loss=loss)
        if not console.is_terminal and time.monotonic() - self._last_plain > PLAIN_EVERY:
            self._last_plain = time.monotonic()
            total = self._bar.tasks[0].total
            console.print(f"{self._title}: step {step}/{total}, {rate}, {loss}, {remaining:.0f} s left", highlight=False)

    def evaluated(self, step: int, split: str, metrics: dict) -> None:
        """Log an evaluation's scalars."""
        if self.enabled:
            scalars = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
            self._append({"step": step, "split": split, **scalars}, split)

    def _append(self, record: dict, prefix: str) -> None:
        with open(self._file, "a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(f"{prefix}/{name}", value, record["step"])

    def _drop_after(self, step: int) -> None:
        """Forget records past the checkpoint that the run goes on from: it will write them again."""
        if self._file.exists():
            lines = self._file.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            self._file.write_text("".join(kept))
