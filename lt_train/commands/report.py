"""``python -m lt_train report DIR...``: turns the result.json files of runs into report.md,
report.html and a table.
"""

import argparse
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.arguments import Parser
from lt_train.errors import unreadable
from lt_train.files import write_atomically
from lt_train.report.compared import compare
from lt_train.report.rows import SEED_SUFFIX, make_rows, remarks, table
from lt_train.report.runs import read_runs


def main(words: list[str] | None = None) -> int:
    """The command with these arguments (default: the process's); returns its exit status."""
    arguments = _parse(words)
    out = arguments.out or (arguments.dirs[0] if len(arguments.dirs) == 1 else Path("reports"))
    runs, unfinished = read_runs(arguments.dirs)
    rows = make_rows(runs)
    header, body = table(rows)
    notes = remarks(rows, unfinished)
    compared = [compare(rows, *words) for words in arguments.compare]
    # only now: matplotlib is slow to import
    from lt_train.report.pages import Report, to_html, to_markdown

    title = _title([folder.resolve().name for folder in arguments.dirs])
    report = Report(title, rows, header, body, notes, compared, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.md", to_markdown(report).encode())
        write_atomically(out / "report.html", to_html(report).encode())
    except OSError as error:
        message = f"cannot write the report to '{out}': {error.strerror}"
        raise unreadable(error, f"{message}; choose another folder with --out") from error
    _show(header, body, notes)
    written = [*compared, out / "report.md", out / "report.html"]
    for line in map(str, written):
        Console(soft_wrap=True).print(line, highlight=False, markup=False)
    return 0


def _title(names: list[str]) -> str:
    """Of one folder its name, of several those of all, seeds left out."""
    if len(names) > 1:
        names = list(dict.fromkeys(SEED_SUFFIX.sub("", name) for name in names))
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} and {len(names) - 1} more"


def _show(header: list[str], body: list[list[str]], notes: list[tuple[str, str]]) -> None:
    sys.stdout.reconfigure(errors="replace")  # where the encoding has no ±
    console = Console()
    if not console.is_terminal:  # a log has no width
        console = Console(width=240)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in header:
        is_text = column in ("run", "split")
        justify = "left" if is_text else "right"
        shown.add_column(column, justify=justify, no_wrap=not is_text, overflow="fold")
    for line in body:
        shown.add_row(*map(Text, line))
    console.print(shown)
    for name, remark in notes:
        console.print(f"{name}: {remark}", highlight=False, markup=False)


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lt_train report",
        description=(
            "Write report.md and report.html about runs, and print their table. Folders that differ"
            " only in a suffix -seedN are shown as mean and standard deviation."
        ),
    )
    parser.add_argument(
        "dirs",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a run, or a folder of runs as a pipeline makes it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the report goes (default: the one DIR; of several, reports/)",
    )
    parser.add_argument(
        "--compare",
        nargs=3,
        action="append",
        default=[],
        metavar=("WHAT", "WITH", "WITHOUT"),
        help="say what two of the runs differ by, and whether that is within the noise",
    )
    return parser.parse_args(words)
