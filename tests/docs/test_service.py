"""The page "Use it in your service", done to the letter: a photo and a run in all formats, against
what evaluation makes of the two.
"""

import re
from pathlib import Path

import pytest
import torch

from lt_train.data.run_data import RunData
from lt_train.distributed import World
from tests.helpers.commands import run
from tests.helpers.exported_runs import NAMES, finish_run

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
PART = re.compile(
    r"^`(python -m lt_train export RUN_DIR --format \w+)`.*?```python\n(.*?)```", re.M | re.S
)
VIEW = (
    "view.crop=center",
    "view.size=64",
    "eval_view.size=64",
    "eval_view.resize=72",
    "data.loader=dali",
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.jit")]


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory) -> Path:
    """A finished run, and a photo beside it."""
    folder = tmp_path_factory.mktemp("service")
    finish_run(folder / "run", "model.backbone=resnet18", *VIEW)
    (folder / "run" / "photo.jpg").write_bytes(photos["landscape"])
    return folder / "run"


@pytest.fixture(scope="module")
def expected(photos, prepare, tmp_path_factory) -> dict[str, float]:
    """By class: the probability that evaluation, with its own decoder and resizing, gives."""
    root = prepare({"val": ([photos["landscape"]], [0])}, classes=len(NAMES))
    method = finish_run(
        tmp_path_factory.mktemp("own") / "run",
        "model.backbone=resnet18",
        f"data.root={root}",
        *VIEW,
    )
    (batch,) = RunData(method.config, World()).evaluate("val")
    with torch.no_grad():
        shares = method.predict(batch.views[0]).softmax(1)[0].tolist()
    assert 0.2 < max(shares) < 0.9, "the network is not sure, so that differences show"
    return dict(zip(NAMES, shares))


@pytest.mark.parametrize(
    ("command", "code"), PART.findall(PAGE), ids=["torchvision", "timm", "onnx", "torchscript"]
)
def test_a_part_of_the_page_gives_the_five_likeliest_classes(
    command, code, folder, expected, monkeypatch, capsys
):
    run(*command.replace("RUN_DIR", str(folder)).split()[3:])
    capsys.readouterr()
    monkeypatch.chdir(folder)
    exec(compile(code, command, "exec"), {"__name__": "service"})
    found = {}
    for line in capsys.readouterr().out.splitlines():
        share, name = line.split()
        found[name] = float(share)
    likeliest = sorted(expected, key=expected.get, reverse=True)[:5]
    assert list(found) == likeliest
    assert found == pytest.approx({name: expected[name] for name in likeliest}, abs=0.01)
