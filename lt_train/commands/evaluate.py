"""``python -m lt_train evaluate RUN_DIR``: metrics of a run, finished or not, on the splits of its
data set or of another.
"""

import argparse
from pathlib import Path

from rich.table import Table

from lt_train import distributed
from lt_train.arguments import Parser
from lt_train.commands.open_run import CROPS, STEP, check_classifier, check_labeled, open_run
from lt_train.commands.results import JSON, print_json, write_metrics
from lt_train.config.schema import Config
from lt_train.console import say, setup_logging, show
from lt_train.data.dataset import read_dataset
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import UserError
from lt_train.training.evaluation import evaluate_split
from lt_train.training.precision import autocast
from lt_train.training.preface import tell_evaluation


def main(words: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parse(words)
    with distributed.joined() as world:
        setup_logging(world.is_main)
        _evaluate(arguments, world)
    return 0


def _evaluate(arguments: argparse.Namespace, world: World) -> None:
    config, method = open_run(arguments.run, arguments.overrides, world, arguments.step)
    crops = arguments.crops
    if crops > 1:
        check_crops(arguments.run, config)
    data = RunData(config, world)
    splits = arguments.split or _default_splits(config)
    for split in splits:
        check_labeled(data.manifest(split))
    tell_evaluation(data, splits)
    precision = autocast(config, world)
    metrics = {
        split: evaluate_split(method, data, split, precision, crops=crops) for split in splits
    }
    if world.is_main:
        content = {
            "run": str(arguments.run),
            "data": config.data.root,
            "step": arguments.step,
            "headline": method.headline,
            "crops": crops,
            "metrics": metrics,
        }
        path = arguments.out or arguments.run / "evaluation.json"
        if arguments.json:
            print_json(content)
        else:
            _show(path, content)
        write_metrics(path, content)


def check_crops(folder: Path, config: Config) -> None:
    """Refuse several crops where there are no scores to average, or no room for the corners."""
    check_classifier(folder, config)
    view = config.eval_view
    if view.resize == view.size:
        raise UserError(
            f"--crops 5 cuts corners of eval_view.size={view.size} pixels out of images resized to "
            f"eval_view.resize={view.resize}, which leaves no room: set eval_view.resize larger, "
            f"such as {view.size * 8 // 7}"
        )


def _default_splits(config: Config) -> list[str]:
    """The validation and the test split, as far as the data set has them."""
    have = read_dataset(config.data.root).splits
    wanted = dict.fromkeys((config.data.val_split, config.data.test_split))
    splits = [split for split in wanted if split in have]
    if not splits:
        raise UserError(
            f"{config.data.root} has neither a split '{config.data.val_split}' nor"
            f" '{config.data.test_split}'; name one with --split"
        )
    return splits


def _show(path: Path, content: dict) -> None:
    if content["crops"] > 1:
        say(f"by the mean logits of {content['crops']} crops of each image:")
    show(metrics_table(content["metrics"]))
    say(f"by class, and confusion where there are up to 100 classes: {path}")


def metrics_table(metrics: dict[str, dict]) -> Table:
    """A column a split, a row each of the metrics that are numbers."""
    names: dict[str, None] = {}
    for values in metrics.values():
        names |= {name: None for name, value in values.items() if isinstance(value, (int, float))}
    table = Table("metric", *metrics)
    for name in names:
        table.add_row(name, *(_cell(values.get(name)) for values in metrics.values()))
    return table


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m lt_train evaluate",
        description=(
            "Evaluate a run, finished or not; also under torchrun. Writes RUN_DIR/evaluation.json."
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="e.g. data.root=DIR to evaluate on another set of the same classes",
    )
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="again for more (default: the validation and the test split)",
    )
    parser.add_argument("--step", **STEP)
    parser.add_argument("--crops", **CROPS)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--json", **JSON)
    return parser.parse_intermixed_args(words)
