"""The report as text: Markdown, and one HTML file that needs nothing else, made of the same
Markdown with plots between.
"""

import html
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

from markdown_it import MarkdownIt

from lt_train.data.manifest import FEW_SHOT, MANY_SHOT
from lt_train.report.plots import make_plots
from lt_train.report.rows import Row

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c2127; --muted: #5b6672; --line: #d8dde3;
  --paper: #ffffff; --soft: #f3f5f7; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e3e7eb; --muted: #9aa5b1; --line: #363d45; --paper: #14171b; --soft: #1e2328; }}
}}
body {{ max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.25; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 0.75rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.35rem 0.7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 600; }}
tbody tr:hover {{ background: var(--soft); }}
code {{ background: var(--soft); padding: 0.1em 0.3em; border-radius: 3px; }}
li {{ margin: 0.3rem 0; }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; flex: 0 1 auto; min-width: 0; }}
figure svg {{ display: block; max-width: 100%; height: auto; }}
figure text {{ font-family: inherit !important; }}
figcaption {{ color: var(--muted); font-size: 0.9rem; }}
</style>
</head>
<body>
{body}</body>
</html>
"""


@dataclass(frozen=True)
class Report:
    """What a report says: ``header`` and ``body`` of the table as plain text, ``notes`` about runs,
    and what was ``compared``, a line each.
    """

    title: str
    rows: list[Row]
    header: list[str]
    body: list[list[str]]
    notes: list[tuple[str, str]]
    compared: list[str]


def to_markdown(report: Report) -> str:
    """The report's text."""
    lines = [*_summary(report), *_comparison(report.rows), *_runs(report.rows)]
    return "\n".join(lines) + "\n"


def to_html(report: Report) -> str:
    """The same with plots, self-contained: no scripts and no address of anything, light or dark as
    the reader's system is.
    """
    parts = [_render([*_summary(report), *_comparison(report.rows)])]
    for section, plots in itertools.groupby(make_plots(report.rows), lambda plot: plot.section):
        parts.append(f'<h2>{html.escape(section)}</h2>\n<div class="plots">\n')
        for plot in plots:
            caption = f"<figcaption>{html.escape(plot.caption)}</figcaption>"
            parts.append(f"<figure>\n{plot.svg}{caption}\n</figure>\n")
        parts.append("</div>\n")
    parts.append(_render(_runs(report.rows)))
    return PAGE.format(title=html.escape(report.title), body="".join(parts))


def _render(lines: list[str]) -> str:
    # without links and raw HTML: names and descriptions are whatever somebody typed
    unwanted = ["link", "image", "autolink", "html_inline", "html_block", "reference"]
    parser = MarkdownIt("commonmark").enable("table").disable(unwanted)
    return (
        parser.render("\n".join(lines))
        .replace("<table>", '<div class="scroll"><table>')
        .replace("</table>", "</table></div>")
    )


def plain(text: str) -> str:
    """``text`` on one line, with no character that Markdown would take for markup."""
    return re.sub(r"([\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


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
    lines = [f"# {plain(report.title)}", "", about, "", _line(report.header)]
    lines.append(_line("---" if column in ("run", "split") else "---:" for column in report.header))
    lines += [_line(map(plain, cells)) for cells in report.body]
    lines.append("")
    lines += [f"- **{plain(line)}**" for line in report.compared]
    lines += [f"- **{plain(name)}**: {plain(remark)}." for name, remark in report.notes]
    return [*lines, ""]


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
    lines = [f"Against **{plain(first.name)}** ({start:.1f} % top-1 on test), {seeds}:", ""]
    for row in others:
        score = mean(row.values("top1"))
        lines.append(f"- **{plain(row.name)}** is {_verdict(score - start)} ({score:.1f} %).")
    return [*lines, ""]


def _verdict(difference: float) -> str:
    if abs(difference) < 0.05:
        return "no different"
    return f"{abs(difference):.1f} points {'better' if difference > 0 else 'worse'}"


def _runs(rows: list[Row]) -> list[str]:
    """What each run was."""
    trained = [row for row in rows if not row.is_posthoc]
    return ["## Runs", "", *map(_about, trained), ""]


def _about(row: Row) -> str:
    result = row.runs[0].result
    device, precision = plain(str(result.get("device"))), plain(str(result.get("precision")))
    torch = plain(str(result["versions"].get("torch")))
    seeds = [str(run.result["seed"]) for run in row.runs if run.result.get("seed") is not None]
    seeded = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}; " if seeds else ""
    finished = max(run.result["finished"] for run in row.runs)
    return (
        f"- **{plain(row.name)}**: {plain(result.get('description') or result['method'])}."
        f" {result['epochs']:g} epochs, {result['steps']} steps of"
        f" {result['global_batch_size']} on {result['train_samples']:,} images;"
        f" {result['ranks']} rank(s), {device}, {precision}; torch {torch};"
        f" {seeded}finished {plain(finished)}."
    )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
