"""Between two looks at a run, the host waits for nothing that the device computes."""

import threading
import traceback
from pathlib import Path

import pytest
import torch

from lt_train.heartbeat import heartbeat
from tests.helpers.commands import run, words

# whatever asks a tensor for its numbers
ASKING = (
    "item",
    "tolist",
    "cpu",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
)
EVERY = 5


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("classifier_cifar10_lt", ["+ldam_drw", "+mixup", "loss.weights_from_epoch=1"]),
        (
            "classifier_cifar10_lt",
            [
                "data.loader=dali",
                "view.crop=random_resized",
                "+randaugment",
                "optim.clip_grad_norm=1",
            ],
        ),
        ("moco_cifar10_lt", []),
        ("rotation_cifar10_lt", []),
    ],
    ids=["mixup, DRW", "DALI, RandAugment", "moco", "rotation"],
)
def test_a_step_that_is_not_logged_asks_no_tensor_for_its_numbers(
    config, overrides, tinted, tmp_path, monkeypatch
):
    asked: dict[int, list[str]] = {}
    main = threading.current_thread()  # others plan ahead, on the host's own tensors

    def watch(name: str) -> None:
        ask = getattr(torch.Tensor, name)

        def noted(tensor, *arguments, **keywords):
            stack = [frame for frame in traceback.extract_stack() if "lt_train" in frame.filename]
            if threading.current_thread() is main:
                place = f"{name} at {Path(stack[-2].filename).name}:{stack[-2].lineno}"
                asked.setdefault(heartbeat.step, []).append(place)
            return ask(tensor, *arguments, **keywords)

        monkeypatch.setattr(torch.Tensor, name, noted)

    for name in ASKING:
        watch(name)
    often = [f"run.log_every={EVERY}", "run.evaluate_every=100", "run.checkpoint_every=100"]
    run(*words(config, tinted, tmp_path / "run", *often, "max_steps=20", *overrides))
    assert {step: asked[step] for step in asked if step > 0 and step % EVERY} == {}
    assert all(asked[step] for step in (EVERY, 2 * EVERY)), "the log asks for its means"
