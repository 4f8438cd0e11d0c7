"""How far a data set is prepared, for a person who waits."""

import time

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.writing.plan import Plan, Task
from lt_train.console import Every, console, say


class Bar:
    """Progress with images/s, MB/s and the time left; where there is no terminal, a line every ten
    seconds.
    """

    def __init__(self, plan: Plan, task: Task):
        self.name = plan.source.name
        self.started, self.every = time.monotonic(), Every()
        self.images = self.bytes = self.found = 0  # written now, and finished before
        self.total = sum(len(shard.indices) for shard in plan.shards[task.index :: task.count])
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task(escape(self.name), total=self.total, rate="")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *_exception) -> None:
        self.progress.stop()

    def report(self, images: int, size: int) -> None:
        """Count ``images`` of ``size`` bytes together; 0 bytes: finished before."""
        if not size:
            self.found += images
        else:
            self.images, self.bytes = self.images + images, self.bytes + size
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = f"{self.images / seconds:,.0f} images/s, {self.bytes / 1e6 / seconds:,.0f} MB/s"
        done = self.images + self.found
        self.progress.update(self.bar, completed=done, rate=rate)
        if not console.is_terminal and self.images and self.every.due():
            left = (self.total - done) * seconds / self.images
            say(f"{self.name}: {done:,}/{self.total:,}, {rate}, {left:.0f} s left")
