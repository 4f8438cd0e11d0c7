"""The frame of a page that needs nothing else: style, a script that sorts tables, and what may
stand in it.
"""

import base64
import hashlib
import html
from collections.abc import Iterable

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --muted: #5b6672; --line: #d8dde3;
  --paper: #ffffff; --soft: #f3f5f7; --shade: rgb(0 0 0 / 25%); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7eb; --muted: #9aa5b1; --line: #363d45; --paper: #14171b; --soft: #1e2328;
    --shade: rgb(255 255 255 / 30%); }
}
body { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
a { color: inherit; }
/* what is wider than the page scrolls, which a shadow at its edge says */
.scroll { overflow: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 0.9rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 0.9rem 100% no-repeat scroll; }
.scroll:has(table.sorts) { max-height: 36rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; text-align: left; }
td.number, th.number { text-align: right; }
table.sorts th { position: sticky; top: 0; background: var(--paper); }
table.sorts.live th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
tbody tr:hover { background: var(--soft); }
code { background: var(--soft); padding: 0.1em 0.3em; border-radius: 3px; }
li { margin: 0.3rem 0; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 0 1 auto; min-width: 0; max-width: 100%; }
/* no narrower than its smallest text can be read at */
figure svg { display: block; height: auto; max-width: 100%; min-width: var(--least); }
figure text { font-family: inherit !important; }
figcaption, .note { color: var(--muted); font-size: 0.9rem; }
.plots figcaption { contain: inline-size; } /* as wide as its plot */
.pictures { display: flex; flex-wrap: wrap; gap: 0.75rem; }
.pictures figure { width: calc(var(--columns) * 5.25rem); }
.pictures figcaption { font-size: 0.8rem; line-height: 1.3; }
.of1 { --columns: 1; } .of2 { --columns: 2; } .of3 { --columns: 3; }
img { width: 5rem; height: 5rem; object-fit: contain; border-radius: 3px; vertical-align: top;
  background: var(--soft); }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  table.classList.add("live");
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replaceAll(",", ""));
    return table.tHead.rows[0].cells[column].className == "number"
      ? (isNaN(number) ? -Infinity : number) : text;
  };
  const sort = head => {
    const falls = head.getAttribute("aria-sort") != "descending" && head.className == "number"
      || head.getAttribute("aria-sort") == "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows], sign = falls ? -1 : 1;
    rows.sort((one, two) => {
      const [a, b] = [value(one, head.cellIndex), value(two, head.cellIndex)];
      return sign * (typeof a == "string" ? a.localeCompare(b) : a < b ? -1 : a > b);
    });
    table.tBodies[0].append(...rows);
  };
  for (const head of table.tHead.rows[0].cells) {
    head.tabIndex = 0;
    head.onclick = () => sort(head);
    head.onkeydown = event => { if (event.key == "Enter") sort(head); };
  }
}
"""


def document(title: str, body: str) -> str:
    """The page of this title (text) and body (HTML): whatever stands in it, it asks no address for
    anything, and no script runs but the one that sorts.
    """
    own = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{own}'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}<script>{SCRIPT}</script>
</body>
</html>
"""


def scrolling(inner: str) -> str:
    """HTML that may be wider than the page."""
    return f'<div class="scroll" tabindex="0">{inner}</div>'


def table(
    header: Iterable[str], body: Iterable[Iterable[str]], texts: int = 1, sorts: bool = False
) -> str:
    """A table of cells that are HTML: the first ``texts`` columns text, the others numbers.

    ``sorts``: by the column that is clicked.
    """

    def line(tag: str, cells: Iterable[str]) -> str:
        parts = []
        for column, cell in enumerate(cells):
            kind = "" if column < texts else ' class="number"'
            parts.append(f"<{tag}{kind}>{cell}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>\n"

    rows = "".join(line("td", cells) for cells in body)
    head = f"<thead>\n{line('th', header)}</thead>\n"
    kind = ' class="sorts"' if sorts else ""
    return scrolling(f"<table{kind}>\n{head}<tbody>\n{rows}</tbody></table>") + "\n"


def plot_figure(svg: str, caption: str, least_width: int = 0) -> str:
    """A plot with its caption (text), which scrolls where there are no ``least_width`` pixels."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>"
    style = f"--least: {least_width}px"
    return f'<figure style="{style}">\n{scrolling(svg)}{below}\n</figure>\n'
