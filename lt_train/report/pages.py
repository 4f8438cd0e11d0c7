"""The report as text: Markdown, and one HTML file that needs nothing else, made of the same
Markdown with plots between.
"""

import html
import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from urllib.parse import quote

from markdown_it import MarkdownIt

from lt_train.data.manifest import FEW_SHOT, MANY_SHOT
from lt_train.report.classes import class_tables, confusion_lines
from lt_train.report.intervals import can_be_drawn, difference
from lt_train.report.page import document, plot_figure
from lt_train.report.pictures import picture_section
from lt_train.report.plots import make_plots
from lt_train.report.rows import Row, uncertainty
from lt_train.report.settings import TEXT_COLUMNS, settings
from lt_train.report.thumbnails import Thumbnails

TEXTS = (
    "run",
    "split",
    "over",
    "true class",
    "taken for",
    *TEXT_COLUMNS,
)  # columns that are no numbers


@dataclass(frozen=True)
class Report:
    """What a report says: ``header`` and ``body`` of the table as plain text, what was ``compared``
    and ``notes`` about runs, a line each, and from which folder links to them lead.
    """

    title: str
    rows: list[Row]
    header: list[str]
    body: list[list[str]]
    notes: list[tuple[str, str]]
    compared: list[str]
    out: Path  # the folder that it is written to


def to_markdown(report: Report) -> str:
    """The report's text."""
    lines = [*_beginning(report), *_confusions(report.rows), *_runs(report)]
    return "\n".join(lines) + "\n"


def to_html(report: Report) -> str:
    """The same with plots, self-contained: it asks no address for anything, and is light or dark as
    the reader's system is.
    """
    parts = [_render(_beginning(report))]
    for section, plots in itertools.groupby(make_plots(report.rows), lambda plot: plot.section):
        parts.append(f'<h2>{html.escape(section)}</h2>\n<div class="plots">\n')
        for plot in plots:
            parts.append(plot_figure(plot.svg, plot.caption, plot.least_width))
        parts.append("</div>\n")
    parts.append(_render(_confusions(report.rows)))
    tables = class_tables(report.rows)
    parts += ["<h2>Classes</h2>\n", *tables] if tables else []
    parts.append(picture_section(report.rows, Thumbnails()))
    parts.append(_render(_runs(report)))
    return document(report.title, "".join(parts))


def _render(lines: list[str]) -> str:
    # without raw HTML: names and descriptions are whatever somebody typed, and `plain`
    unwanted = ["image", "autolink", "html_inline", "html_block", "reference"]
    parser = MarkdownIt("commonmark").enable("table").disable(unwanted)
    return (
        parser.render("\n".join(lines))
        .replace("<table>", '<div class="scroll" tabindex="0"><table>')
        .replace("</table>", "</table></div>")
    )


def plain(text: str) -> str:
    """``text`` on one line, with no character that Markdown would take for markup."""
    return re.sub(r"([\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def _beginning(report: Report) -> list[str]:
    rows = report.rows
    return [*_summary(report), *_uncertainty(rows), *_comparison(rows)]


def _summary(report: Report) -> list[str]:
    about = (
        "Accuracy in %; balanced: the mean over classes; many / medium / few: classes with more"
        f" than {MANY_SHOT} / {FEW_SHOT} to {MANY_SHOT} / fewer than {FEW_SHOT} training images."
        " ECE, the expected calibration error, and the top-1 error are in % as well. 95 %: what the"
        " top-1 could be off by, since there are only so many test images."
    )
    if "reference" in report.header:
        about += (
            " The reference's error is what its paper reports; diff. is ours minus it, in points."
        )
    if "seeds" in report.header:
        about += " Of several seeds: mean ± sample standard deviation."
    lines = [f"# {plain(report.title)}", "", about, ""]
    lines += [*_table(report.header, report.body), ""]
    lines += [f"- **{plain(line)}**" for line in report.compared]
    lines += [f"- **{plain(name)}**: {plain(remark)}." for name, remark in report.notes]
    return [*lines, ""]


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    """Lines of a Markdown table of plain text."""
    aligned = ["---" if column in TEXTS else "---:" for column in header]
    return [_line(header), _line(aligned), *(_line(map(plain, cells)) for cells in body)]


def _uncertainty(rows: list[Row]) -> list[str]:
    header, body = uncertainty(rows)
    if not body:
        return []
    about = (
        "How far these accuracies may be off, in %: of one run the 95 % interval over which test"
        " images there happen to be (each class's are drawn again 1,000 times), which says nothing"
        " of other seeds; of several seeds the lowest and the highest."
    )
    return [about, "", *_table(header, body), ""]


def _comparison(rows: list[Row]) -> list[str]:
    """Say what each later classifier gained or lost against the first on the same data: measured,
    whichever way it went.
    """
    compared: list[Row] = []
    for row in rows:
        result = row.runs[0].result
        scored = row.split == "test" and not row.is_posthoc and row.values("top1")
        if not scored or result["headline"] != "top1":
            continue
        if not compared or result["class_counts"] == compared[0].runs[0].result["class_counts"]:
            compared.append(row)
    if len(compared) < 2:
        return []
    first, *others = compared
    start = mean(first.values("top1"))
    one_each = all(len(row.runs) == 1 for row in compared)
    seeds = "with one seed each" if one_each else "means over seeds"
    lines = [f"Against **{plain(first.label)}** ({start:.1f} % top-1 on test), {seeds}:", ""]
    for row in others:
        score = mean(row.values("top1"))
        verdict = f"{_verdict(score - start)} ({score:.1f} %){_chance(row, first)}"
        lines.append(f"- **{plain(row.label)}** is {verdict}.")
    return [*lines, ""]


def _verdict(difference: float) -> str:
    if abs(difference) < 0.05:
        return "no different"
    return f"{abs(difference):.1f} points {'better' if difference > 0 else 'worse'}"


def _chance(row: Row, first: Row) -> str:
    """Whether the test images alone may make such a difference of two single runs."""
    counts = row.runs[0].class_counts
    pair = [each.metrics[0] for each in (row, first)]
    if len(row.runs) > 1 or len(first.runs) > 1:
        return ""
    if not all(can_be_drawn(metrics, counts) for metrics in pair):
        return ""
    low, high = difference(*pair, counts)
    may_be = "which the choice of test images alone may make"
    words = may_be if low <= 0 <= high else "more than the test images make, of one seed each"
    return f"; 95 % interval {low:+.1f} to {high:+.1f}, {words}"


def _confusions(rows: list[Row]) -> list[str]:
    header, body = confusion_lines(rows)
    if not body:
        return []
    about = "Images of all seeds together, where a run has several."
    several = any(len(row.runs) > 1 for row in rows)
    title = ["## Most frequent confusions", "", *[about, ""] * several]
    return [*title, *_table(header, body), ""]


def _runs(report: Report) -> list[str]:
    """What each run was."""
    trained = [row for row in report.rows if not row.is_posthoc]
    about = [_about(row, report.out) for row in trained]
    return ["## Runs", "", *_table(*settings(trained)), "", *about, ""]


def _about(row: Row, out: Path) -> str:
    result = row.runs[0].result
    device, precision = plain(str(result.get("device"))), plain(str(result.get("precision")))
    torch = plain(str(result["versions"].get("torch")))
    finished = max(run.result["finished"] for run in row.runs)
    folders = [f"[{plain(run.name)}]({_address(run.folder, out)})" for run in row.runs]
    command = row.runs[0].result.get("command")
    made = f" Command: {_code(str(command))}." if command else ""
    return (
        f"- **{plain(row.label)}**: {plain(result.get('description') or result['method'])}."
        f" {result['epochs']:g} epochs, {result['steps']} steps of"
        f" {result['global_batch_size']} on {result['train_samples']:,} images;"
        f" {result['ranks']} rank(s), {device}, {precision}; torch {torch};"
        f" finished {plain(finished)}; {', '.join(folders)}.{made}"
    )


def _address(folder: Path, out: Path) -> str:
    """A link that leads from the report to a run's folder wherever both are moved together."""
    return quote(os.path.relpath(folder, out.resolve()))


def _code(text: str) -> str:
    """``text`` as Markdown's code, on one line."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
