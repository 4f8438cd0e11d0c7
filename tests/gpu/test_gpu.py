"""What only a GPU shows: decoding by nvJPEG, NCCL, bf16, DeepSpeed and torch.compile on CUDA.

Needs one NVIDIA GPU.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from lt_train.config.load import load_config
from lt_train.config.schema import Config
from lt_train.data.augment import Uniforms
from lt_train.data.batch import Batch
from lt_train.data.rand_augment import OPERATIONS, apply_operations, draw_operations
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from tests.helpers.loading import PIXEL_MEAN, PIXEL_STD

DECODED = (  # photographs of many sizes
    "data.loader=dali",
    "view.crop=random_resized",
    "view.size=64",
    "eval_view.size=64",
    "eval_view.resize=73",
    "model.backbone=resnet10",
)
GPU = World(device=torch.device("cuda", 0))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def pixels(view: torch.Tensor) -> np.ndarray:
    """A normalised view back as grey levels (B, H, W, 3)."""
    return view.permute(0, 2, 3, 1).float().cpu().numpy() * PIXEL_STD + PIXEL_MEAN


def configure(root: Path, *overrides: str) -> Config:
    return load_config("classifier_demo", [f"data.root={root}", *DECODED, *overrides])


def first_batch(config: Config, world: World, step: int = 0) -> Batch:
    return next(iter(RunData(config, world).train(step, step + 1)))


def losses_of(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def run(tmp_path: Path, root: Path, name: str, config_name: str, *overrides: str) -> list[float]:
    """Train one process under torchrun (so NCCL is up); the losses it logged."""
    folder = tmp_path / name
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [sys.executable, *torchrun, "-m", "lt_train", config_name]
    settings = [*settings_of(root, folder), *overrides]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NVIDIA" in json.loads((folder / "result.json").read_text())["device"]
    return losses_of(folder)


def settings_of(root: Path, folder: Path) -> list[str]:
    own = [f"data.root={root}", f"run.dir={folder}", "run.log_every=1", "global_batch_size=32"]
    return [*own, *DECODED]


# nvJPEG's chroma upsampling is not libjpeg-turbo's: a little further off than on the CPU
@pytest.mark.parametrize(("decode", "allowed"), [("auto", 1.5), ("gpu", 1.5), ("cpu", 0.3)])
def test_validation_pixels_on_the_gpu_follow_torchvision(demo_root, decode, allowed):
    config = configure(demo_root, f"data.decode={decode}")
    data, view = RunData(config, GPU), config.eval_view
    resize, crop = transforms.Resize(view.resize), transforms.CenterCrop(view.size)
    manifest, differences = data.manifest("val"), []
    for batch in data.evaluate("val"):
        assert batch.label.device == batch.sample_id.device == GPU.device
        for sample_id, ours in zip(batch.sample_id.tolist(), pixels(batch.views[0])):
            image = Image.open(io.BytesIO(manifest.read(sample_id))).convert("RGB")
            theirs = np.asarray(crop(resize(image)), np.float64)
            differences.append(np.abs(ours - theirs).mean())
    assert len(differences) == len(manifest)
    assert np.mean(differences) < allowed


@pytest.mark.parametrize(("decode", "allowed"), [("auto", 3), ("cpu", 0.01)])
def test_training_views_do_not_depend_on_the_device(demo_root, decode, allowed):
    jitter = "view.jitter=[0.4,0.4,0.4,0.1]"
    config = configure(demo_root, "method=moco", jitter, f"data.decode={decode}")
    on_cpu, on_gpu = (first_batch(config, world, step=3) for world in (World(), GPU))
    assert torch.equal(on_cpu.sample_id, on_gpu.sample_id.cpu())
    assert on_cpu.place.tolist() == on_gpu.place.tolist()
    assert on_cpu.is_labeled.tolist() == on_gpu.is_labeled.tolist()
    for ours, theirs in zip(on_cpu.views, on_gpu.views, strict=True):
        assert np.abs(pixels(ours) - pixels(theirs)).mean() < allowed


def test_rand_augment_does_not_depend_on_the_device():
    """But for rounding in float32."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (140, 64, 64, 3), dtype=torch.uint8, generator=generator)
    images = torch.cat([noise, noise // 3 + 40])
    drawn = draw_operations(1, 10, Uniforms(0, np.arange(len(images)), 0))
    assert len(np.unique(drawn.operation)) == len(OPERATIONS)
    on_cpu, on_gpu = (
        apply_operations(images.to(device), drawn).cpu().int() for device in ("cpu", "cuda:0")
    )
    assert ((on_cpu - on_gpu).abs() > 1).float().mean() < 1e-3
    assert (on_cpu != on_gpu).float().mean() < 0.05


def test_views_of_two_sizes_and_kinds_on_the_gpu(demo_root):
    """Each as if all were of its kind."""
    weak = ("method=moco", "view.size=64", "view.blur_probability=0.5")
    strong = ("size=48", "scale=[0.4,1.0]", "randaugment_ops=2", "blur_probability=0")
    as_second = [f"second_view.{setting}" for setting in strong]
    as_first = [f"view.{setting}" for setting in strong]
    mixed = first_batch(configure(demo_root, *weak, *as_second), GPU)
    all_weak = first_batch(configure(demo_root, *weak), GPU)
    all_strong = first_batch(configure(demo_root, "method=moco", *as_first), GPU)
    torch.testing.assert_close(mixed.views[0], all_weak.views[0])
    torch.testing.assert_close(mixed.views[1], all_strong.views[1])


def test_bf16_training_over_nccl_learns(demo_root, tmp_path):
    settings = ("engine.precision=bf16", "max_steps=40")
    losses = run(tmp_path, demo_root, "bf16", "classifier_demo", *settings)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize(
    "settings",
    [
        ["method=rotation"],
        ["+ldam_drw", "loss.weights_from_epoch=0", "sampler.name=progressively_balanced"],
        ["+mixup", "+cutmix", "+cb_ce", "view.randaugment_ops=2"],
        ["method=experts"],
        ["method=proco", "+balanced_softmax"],
        [
            "method=fixmatch",
            "unlabeled.root={root}",
            "second_view.randaugment_ops=2",
            "second_view.randaugment_magnitude=null",
            "second_view.cutout=0.5",
            "fixmatch.threshold=0.2",
        ],
    ],
    ids=lambda settings: settings[0],
)
def test_every_method_trains_as_on_the_cpu(demo_root, tmp_path, settings):
    """One step, since bf16's rounding grows from step to step; then the metrics of the commands."""
    settings = [setting.format(root=demo_root) for setting in settings]
    settings += ["engine.precision=fp32", "max_steps=1"]
    found = run(tmp_path, demo_root, "gpu", "classifier_demo", *settings)
    lt_train = [sys.executable, "-m", "lt_train"]
    command = [*lt_train, "classifier_demo", *settings_of(demo_root, tmp_path / "cpu"), *settings]
    subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert found[0] == pytest.approx(losses_of(tmp_path / "cpu")[0], rel=2e-2)
    subprocess.run([*lt_train, "evaluate", str(tmp_path / "gpu")], check=True)


def test_deepspeed_and_compile_give_the_losses_of_ddp(demo_root, tmp_path):
    exact = ("engine.precision=fp32", "max_steps=5")
    expected = run(tmp_path, demo_root, "ddp", "moco_demo", *exact)
    engines = {
        "zero1": ["engine.name=deepspeed", "engine.zero_stage=1"],
        "zero2": ["engine.name=deepspeed", "engine.zero_stage=2"],
        "compiled": ["engine.compile=true"],
    }
    for name, settings in engines.items():
        found = run(tmp_path, demo_root, name, "moco_demo", *settings, *exact)
        assert found == pytest.approx(expected, rel=2e-2), name


def test_deepspeed_bf16_resumes(demo_root, tmp_path):
    settings = ("moco_demo", "engine.name=deepspeed", "engine.precision=bf16")
    run(tmp_path, demo_root, "ds", *settings, "max_steps=4")
    assert len(run(tmp_path, demo_root, "ds", *settings, "max_steps=8")) == 8


def test_captured_steps_have_the_losses_of_others(demo_root, tmp_path):
    """Through a change of phase, over an evaluation, and resumed."""
    settings = (
        "classifier_demo",
        "+ldam_drw",
        "loss.weights_from_epoch=2",
        "run.evaluate_every=1",
        "engine.precision=fp32",
    )
    losses = {}
    for way in ("false", "true"):
        cut = (*settings, f"engine.cuda_graph={way}", "resume.allow_changes=[max_steps]")
        run(tmp_path, demo_root, way, *cut, "max_steps=14")
        losses[way] = run(tmp_path, demo_root, way, *cut, "max_steps=25")
    assert len(losses["true"]) == 25
    assert losses["true"] == pytest.approx(losses["false"], rel=2e-2)
