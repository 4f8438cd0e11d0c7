"""Reports from result.json files: ``python -m lt_train.report DIR`` writes DIR/report.md and prints its table."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lt_train.data.manifest import write_atomically
from lt_train.errors import UserError, run_cli

COLUMNS = ("top1", "many_shot", "medium_shot", "few_shot")


def read_results(root: Path) -> dict[str, dict]:
    """result.json of every run in ``root``, by run name, in the order in which they finished."""
    found = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/result.json")}
    if not found and (root / "result.json").is_file():
        found = {root.resolve().name: json.loads((root / "result.json").read_text())}
    if not found:
        raise UserError(f"there is no result.json in '{root}' or a folder in it: no run has finished there")
    return dict(sorted(found.items(), key=lambda item: item[1]["finished"]))


def rows(results: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """The report's table: one row a stage, on the test split where there is one, else on validation."""
    header = ["stage", "split", "top-1", "many", "medium", "few", "seconds"]
    table = []
    for name, result in results.items():
        split = "test" if "test" in result["metrics"] else next(iter(result["metrics"]), None)
        metrics = result["metrics"].get(split, {})
        prefix = result["headline"].removesuffix("top1")
        values = [metrics.get(prefix + column) for column in COLUMNS]
        label = f"{name} (k-NN)" if prefix == "knn_" else name
        table.append([label, split or "-", *("-" if value is None else f"{value:.1f}" for value in values), f"{result['seconds']:.0f}"])
    return header, table


def to_markdown(title: str, results: dict[str, dict]) -> str:
    """The whole report: table, what pre-training gave, and what each stage was."""
    header, table = rows(results)
    lines = [f"# {title}", "", "Accuracy in %, many / medium / few: classes with more than 100 / 20 to 100 / fewer than 20 training images.", ""]
    lines += [_markdown_row(header), _markdown_row(["---"] * len(header)), *map(_markdown_row, table), ""]
    lines += _comparison(results)
    lines += ["## Stages", ""]
    for name, result in results.items():
        lines.append(
            f"- **{name}**: {result['description'] or result['stage']}. {result['epochs']:g} epochs, {result['steps']} steps of "
            f"{result['global_batch_size']} on {result['train_samples']:,} images; {result['ranks']} rank(s), {result['device']}, "
            f"{result['precision']}; torch {result['versions']['torch']}; finished {result['finished']}."
        )
    return "\n".join(lines) + "\n"


def _comparison(results: dict[str, dict]) -> list[str]:
    """Say what each later classifier gained or lost against the first one: measured, whichever way it went."""
    scores = {
        name: result["metrics"]["test"]["top1"]
        for name, result in results.items()
        if result["headline"] == "top1" and result["metrics"].get("test", {}).get("top1") is not None
    }
    if len(scores) < 2:
        return []
    first, *others = scores
    lines = [f"Against `{first}` ({scores[first]:.1f} % top-1 on test), in one run with one seed:", ""]
    for name in others:
        difference = scores[name] - scores[first]
        verdict = "no different" if abs(difference) < 0.05 else f"{abs(difference):.1f} points {'better' if difference > 0 else 'worse'}"
        lines.append(f"- `{name}` is {verdict} ({scores[name]:.1f} %).")
    return [*lines, ""]


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lt_train.report", description="Write DIR/report.md from the runs in DIR and print its table.")
    parser.add_argument("dir", type=Path, metavar="DIR", help="a run, or a folder of runs as a pipeline makes it")
    folder = parser.parse_args().dir
    results = read_results(folder)
    try:
        write_atomically(folder / "report.md", to_markdown(folder.resolve().name, results).encode())
    except OSError as error:
        raise UserError(f"cannot write {folder / 'report.md'}: {error.strerror}") from error
    header, table = rows(results)
    shown = Table(*header)
    for row in table:
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    console.print(f"{folder / 'report.md'}", highlight=False)
    return 0


if __name__ == "__main__":
    run_cli("lt_train.report", main)
