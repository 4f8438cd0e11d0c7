"""What each run was made of, and by which command: the last table of a report."""

from typing import Any

from lt_train.report.rows import Row, with_values
from lt_train.report.runs import Run

COLUMNS = (
    "run",
    "method",
    "data set",
    "network",
    "learning rate",
    "batch",
    "epochs",
    "steps",
    "seed",
    "commit",
)
TEXT_COLUMNS = ("method", "data set", "network", "learning rate", "seed", "commit")
SHORT_COMMIT = 10  # digits that tell it from others


def settings(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text, a line for each row; columns that nothing is known for are left
    out.
    """
    return with_values([list(COLUMNS), *map(_cells, rows)])


def _cells(row: Row) -> list[str]:
    run = row.runs[0]
    result = run.result
    return [
        row.label,
        result["method"],
        _data(run),
        _network(run),
        _learning_rate(run),
        str(result["global_batch_size"]),
        f"{result['epochs']:g}",
        str(result["steps"]),
        _each(row, lambda run: run.result.get("seed")),
        _each(row, lambda run: _short(str(run.result.get("commit") or ""))),
    ]


def _each(row: Row, value) -> str:
    """The ``value`` of all seeds, each once."""
    found = [value(run) for run in row.runs]
    return ", ".join(dict.fromkeys(str(each) for each in found if each not in (None, "")))


def _short(commit: str) -> str:
    first, space, rest = commit.partition(" ")
    return first[:SHORT_COMMIT] + space + rest


def _data(run: Run) -> str:
    root, pool = run.setting("data.root"), run.setting("unlabeled.root")
    return " and ".join(str(each) for each in (root, pool) if each)


def _network(run: Run) -> str:
    backbone, start = run.setting("model.backbone"), run.setting("model.init_from")
    if backbone is None:
        return ""
    return f"{backbone}, from {start}" if start else str(backbone)


def _learning_rate(run: Run) -> str:
    """The one that the schedule starts from (Schedule.base_lr), and how it goes on."""
    rate, of_batch = run.setting("optim.lr"), run.setting("optim.lr_batch_size")
    if not _is_positive(rate):
        return ""
    if run.setting("optim.scale_lr") and _is_positive(of_batch):
        rate *= run.result["global_batch_size"] / of_batch
    schedule = run.setting("optim.schedule")
    return f"{rate:.4g}, {schedule}" if schedule else f"{rate:.4g}"


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0
