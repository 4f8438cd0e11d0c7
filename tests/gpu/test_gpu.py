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
from lt_train.data.augment import Uniforms
from lt_train.data.pixels import PIXEL_MEAN, PIXEL_STD
from lt_train.data.rand_augment import OPERATIONS, apply_operations, draw_operations
from lt_train.data.run_data import RunData
from lt_train.distributed import World

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def pixels(view: torch.Tensor) -> np.ndarray:
    """A normalised view back as grey levels (B, H, W, 3)."""
    return view.permute(0, 2, 3, 1).float().cpu().numpy() * PIXEL_STD + PIXEL_MEAN


def config(root: Path, *overrides: str):
    return load_config("classifier_demo", [f"data.root={root}", *overrides])


def run(tmp_path: Path, root: Path, name: str, config_name: str, *overrides: str) -> list[float]:
    """Train one process under torchrun (so NCCL is up); the losses it logged."""
    folder = tmp_path / name
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "lt_train",
    ]
    settings = [
        f"data.root={root}",
        f"run.dir={folder}",
        "run.log_every=1",
        "global_batch_size=32",
        *overrides,
    ]
    done = subprocess.run([*torchrun, config_name, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NVIDIA" in json.loads((folder / "result.json").read_text())["device"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def test_validation_pixels_on_the_gpu_follow_torchvision(demo_root):
    settings = config(demo_root)
    factory = RunData(settings, World(device=torch.device("cuda", 0)))
    reference = transforms.Compose(
        [
            transforms.Resize(settings.eval_view.resize),
            transforms.CenterCrop(settings.eval_view.size),
        ]
    )
    manifest, differences = factory.manifest("val"), []
    for batch in factory.evaluate("val"):
        for sample_id, ours in zip(batch["sample_id"].tolist(), pixels(batch["views"][0])):
            image = Image.open(io.BytesIO(manifest.read(sample_id))).convert("RGB")
            differences.append(np.abs(ours - np.asarray(reference(image), np.float64)).mean())
    assert len(differences) == len(manifest)
    # nvJPEG's chroma upsampling is not libjpeg-turbo's: a little further off than on the CPU
    assert np.mean(differences) < 1.5


def test_training_views_do_not_depend_on_the_device(demo_root):
    settings = config(demo_root, "view.jitter=[0.4,0.4,0.4,0.1]")
    batches = [
        next(iter(RunData(settings, World(device=torch.device(name))).train(2, 3, 4)))
        for name in ("cpu", "cuda:0")
    ]
    assert torch.equal(batches[0]["sample_id"], batches[1]["sample_id"].cpu())
    for on_cpu, on_gpu in zip(*(batch["views"] for batch in batches)):
        assert np.abs(pixels(on_cpu) - pixels(on_gpu)).mean() < 3


def test_rand_augment_does_not_depend_on_the_device():
    """But for rounding: of the sharpening convolution in TF32, and of nearest neighbours half-way."""
    noise = torch.randint(
        0, 256, (140, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = torch.cat([noise, noise // 3 + 40])
    drawn = draw_operations(1, 10, Uniforms(0, np.arange(len(images)), 0))
    assert len(np.unique(drawn.operation)) == len(OPERATIONS)
    on_cpu, on_gpu = (
        apply_operations(images.to(device), drawn).cpu().int() for device in ("cpu", "cuda:0")
    )
    assert ((on_cpu - on_gpu).abs() > 1).float().mean() < 1e-3 and (
        on_cpu != on_gpu
    ).float().mean() < 0.05


def test_views_of_two_sizes_and_kinds_on_the_gpu(demo_root):
    """Each as if all were of its kind."""
    settings = ("view.size=64", "view.blur_probability=0.5")
    strong = ("size=48", "scale=[0.4,1.0]", "randaugment_ops=2")
    mixed = config(demo_root, *settings, *(f"second_view.{setting}" for setting in strong))
    same = [
        config(demo_root, *settings),
        config(demo_root, *(f"view.{setting}" for setting in strong)),
    ]
    first, *others = (
        next(iter(RunData(one, World(device=torch.device("cuda", 0))).train(2, 0, 1)))["views"]
        for one in (mixed, *same)
    )
    for index, views in enumerate(others):
        torch.testing.assert_close(first[index], views[index])


def test_bf16_training_over_nccl_learns(demo_root, tmp_path):
    losses = run(
        tmp_path, demo_root, "bf16", "classifier_demo", "engine.precision=bf16", "max_steps=40"
    )
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
            "fixmatch.threshold=0.2",
        ],
    ],
    ids=lambda settings: settings[0],
)
def test_every_method_trains_as_on_the_cpu(demo_root, tmp_path, settings):
    """One step, since bf16's rounding grows from step to step; then the metrics of the commands."""
    settings = [setting.format(root=demo_root) for setting in settings]
    found = run(
        tmp_path,
        demo_root,
        "gpu",
        "classifier_demo",
        *settings,
        "engine.precision=fp32",
        "max_steps=1",
    )
    stage = [
        sys.executable,
        "-m",
        "lt_train",
        "classifier_demo",
        f"data.root={demo_root}",
        f"run.dir={tmp_path}/cpu",
        "run.log_every=1",
    ]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [*stage, "global_batch_size=32", *settings, "engine.precision=fp32", "max_steps=1"],
        check=True,
        env=hidden,
    )
    on_cpu = [
        json.loads(line) for line in (tmp_path / "cpu" / "metrics.jsonl").read_text().splitlines()
    ]
    assert found[0] == pytest.approx(on_cpu[0]["loss"], rel=2e-2)
    subprocess.run(
        [sys.executable, "-m", "lt_train", "evaluate", str(tmp_path / "gpu")], check=True
    )


def test_deepspeed_and_compile_give_the_losses_of_ddp(demo_root, tmp_path):
    exact = ("engine.precision=fp32", "max_steps=5")
    expected = run(tmp_path, demo_root, "ddp", "moco_demo", *exact)
    for stage in (1, 2):
        found = run(
            tmp_path,
            demo_root,
            f"zero{stage}",
            "moco_demo",
            "engine.name=deepspeed",
            f"engine.zero_stage={stage}",
            *exact,
        )
        assert found == pytest.approx(expected, rel=2e-2)
    assert run(
        tmp_path, demo_root, "compiled", "moco_demo", "engine.compile=true", *exact
    ) == pytest.approx(expected, rel=2e-2)


def test_deepspeed_bf16_resumes(demo_root, tmp_path):
    settings = ("moco_demo", "engine.name=deepspeed", "engine.precision=bf16")
    run(tmp_path, demo_root, "ds", *settings, "max_steps=4")
    assert len(run(tmp_path, demo_root, "ds", *settings, "max_steps=8")) == 8
