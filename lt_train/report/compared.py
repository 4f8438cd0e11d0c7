"""What pairs of runs say: one with something, such as pre-training, and one without."""

import math
from statistics import mean

from lt_train.errors import UserError
from lt_train.report.rows import Row


def compare(rows: list[Row], what: str, with_it: str, without: str) -> str:
    """The difference of two runs' top-1 in words: "what: +6.1 points (± 2.7), 70.1 % to 76.2 %",
    and whether it is within the noise.

    The interval, of 95 %, is that of two accuracies on independent test images, so too wide rather
    than too narrow where both runs are tested on the same. A :class:`UserError` if ``rows`` hold no
    run of one of the names with a top-1.
    """
    before, after = _find(rows, without), _find(rows, with_it)
    low, high = mean(before.values("top1")), mean(after.values("top1"))
    found = f"{what}: {high - low:+.1f} points"
    if before.margin is None or after.margin is None:
        return f"{found}, {low:.1f} % to {high:.1f} %"
    noise = math.hypot(before.margin, after.margin)
    found += f" (± {noise:.1f}), {low:.1f} % to {high:.1f} %"
    return found if abs(high - low) > noise else f"{found}: within the noise of this test set"


def _find(rows: list[Row], name: str) -> Row:
    """The run of this name, or of this folder in a pipeline."""
    runs = [row for row in rows if not row.is_posthoc and row.values("top1")]
    for row in runs:
        if row.name == name or row.name.endswith(f"/{name}"):
            return row
    known = ", ".join(row.name for row in runs)
    raise UserError(f"--compare: no run '{name}' has an accuracy here; there are {known}")
