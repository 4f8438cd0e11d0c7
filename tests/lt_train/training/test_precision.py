"""In which precision a run computes, and that it stays with it."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lt_train.config.schema import Config, EngineConfig, RunConfig
from lt_train.distributed import World
from lt_train.files import seal
from lt_train.training import precision
from lt_train.training.precision import autocast, decided

# as oneDNN computes where a CPU has neither a matrix unit nor instructions for bf16: it widens it
WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
DECIDE = """\
from lt_train.config.schema import Config
from lt_train.distributed import World
from lt_train.training.precision import decided
print(decided(Config(), World()).engine.precision)
"""


def config_of(folder, name: str = "auto") -> Config:
    return Config(run=RunConfig(dir=str(folder)), engine=EngineConfig(precision=name))


@pytest.fixture
def faster(monkeypatch):
    """Function: have a precision be the faster one of this machine."""

    def set_faster(name: str) -> None:
        dtype = precision.DTYPES[name]
        monkeypatch.setattr(precision, "_seconds", lambda *args: float(args[-1] is not dtype))

    return set_faster


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_auto_is_what_is_faster_here_and_else_it_is_as_told(name, faster, tmp_path):
    faster(name)
    assert decided(config_of(tmp_path), World()).engine.precision == name
    for told in ("fp32", "bf16"):
        assert decided(config_of(tmp_path, told), World()).engine.precision == told


def test_a_cpu_that_only_emulates_bf16_computes_in_float32():
    done = subprocess.run(
        [sys.executable, "-c", DECIDE],
        env={**os.environ, **WITHOUT_BF16},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "fp32\n"


def test_a_run_stays_with_what_it_has_begun_in(faster, tmp_path):
    """Whatever is faster where it goes on, and whether it has ended or not."""
    faster("fp32")
    old, new = (tmp_path / "checkpoints" / f"step-0000000{step}" for step in (3, 6))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "meta.json").write_bytes(seal({"precision": "bfloat16"}))
    (tmp_path / "result.json").write_bytes(seal({"precision": "float32"}))  # of a shorter run
    config = config_of(tmp_path)
    assert decided(config, World()).engine.precision == "bf16"
    (new / "meta.json").write_text("damaged")
    assert decided(config, World()).engine.precision == "bf16"
    (old / "meta.json").write_bytes(seal({}))  # an earlier version did not say
    assert decided(config, World()).engine.precision == "fp32"


def test_the_context_is_that_of_the_decided_precision():
    layer = torch.nn.Linear(2, 2)
    for name, dtype in precision.DTYPES.items():
        config = replace(Config(), engine=EngineConfig(precision=name))
        with autocast(config, World()):
            assert layer(torch.ones(1, 2)).dtype == dtype
