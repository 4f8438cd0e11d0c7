"""The table of ``launch/slurm.py --benchmark``: images/s over numbers of nodes."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lt_train.files import write_atomically

MEASURED = ("synthetic", "loader", "end_to_end")


def show_scaling(files: dict[int, Path], markdown: Path, console: Console) -> None:
    """Print and write the measurements that are there; efficiency is images/s a node over that of
    the fewest nodes.
    """
    results = {
        nodes: json.loads(path.read_text()) for nodes, path in files.items() if path.is_file()
    }
    if not results:
        return
    fewest = min(results)
    base = results[fewest]["end_to_end"]["images_per_s"] / fewest
    rates = [f"{name.replace('_', ' ')}, images/s" for name in MEASURED]
    header = ["nodes", "ranks", *rates, "efficiency"]
    rows = []
    for nodes, result in sorted(results.items()):
        rates = [f"{result[name]['images_per_s']:,.1f}" for name in MEASURED]
        efficiency = result["end_to_end"]["images_per_s"] / nodes / base
        rows.append([str(nodes), str(result["ranks"]), *rates, f"{efficiency:.2f}"])
    table = Table(*header, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    write_atomically(markdown, ("\n".join(lines) + "\n").encode())
    console.print(f"written: {markdown}", highlight=False, markup=False)
