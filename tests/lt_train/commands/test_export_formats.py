"""``lt_train export --format``: what torchvision, timm, ONNX Runtime and TorchScript make of a run
is what the run itself computes, and each file says how to feed it.
"""

import errno
import functools
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from torch import nn
from torchvision import transforms

from lt_train.commands.export import HEADER_LIMIT
from lt_train.commands.open_run import open_run
from lt_train.config.schema import BACKBONES
from lt_train.data.run_data import RunData
from lt_train.distributed import World
from lt_train.errors import exit_status
from lt_train.methods.base import Method
from lt_train.models.graphs import METADATA_FILE
from tests.helpers.commands import refused, run, words
from tests.helpers.exported_runs import COUNTS, NAMES, finish_run

FILES = {
    "safetensors": "model.safetensors",
    "torchvision": "model.pth",
    "timm": "timm",
    "onnx": "model.onnx",
    "torchscript": "model.pt",
}
VIEW = (
    "view.size=32",
    "eval_view.size=32",
    "eval_view.resize=40",
    "eval_view.interpolation=bicubic",
)
TIMM = ("model.mean=[0.5,0.4,0.3]", "model.std=[0.2,0.3,0.4]", "model.init_from=elsewhere", *VIEW)
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")
SMALLEST = "model.backbone=smallest"
RUNS = {
    "resnet": ("model.backbone=resnet18", "loss.name=logit_adjustment", *VIEW),
    "cifar": ("model.backbone=resnet32_cifar",),
    "cosine": (SMALLEST, "classifier.head=cosine"),
    "experts": (SMALLEST, "method=experts"),
    "moco": (SMALLEST, "method=moco", "moco.queue_size=18"),
    "fixmatch": (SMALLEST, "method=fixmatch", "unlabeled.root=elsewhere"),
    "lora": ("model.backbone=timm/test_vit", "model.trainable=lora", *TIMM),
    "adapter": ("model.backbone=timm/test_vit", "model.trainable=adapter", *TIMM),
    "two heads": ("model.backbone=timm/deit_tiny_distilled_patch16_224", *TIMM),
    "lws": ("model.backbone=timm/test_efficientnet", "method=lws", *TIMM),
}


class Smallest(nn.Module):
    """Images (B, 3, H, W) -> features (B, 4); ``greedy``: code that counts images."""

    def __init__(self, greedy: bool = False):
        super().__init__()
        self.greedy, self.out_features = greedy, 4
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images).relu().mean((2, 3))
        return features * len(images) if self.greedy and len(images) > 2 else features


@pytest.fixture(autouse=True, scope="module")
def smallest() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "smallest", Smallest)
        yield


@pytest.fixture(scope="module")
def made(one_thread, smallest, tmp_path_factory) -> Callable[[str], tuple[Path, Method]]:
    """Function that gives the folder of one of RUNS, and its method."""

    @functools.cache
    def make(kind: str) -> tuple[Path, Method]:
        folder = tmp_path_factory.mktemp(kind) / "run"
        return folder, finish_run(folder, *RUNS[kind])

    return make


@functools.cache
def exported(folder: Path, form: str) -> Path:
    run("export", folder, "--format", form)
    return folder / FILES[form]


def images(number: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(1))


def by_onnx(file: Path, batch: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file)
    (put_in,), (put_out,) = session.get_inputs(), session.get_outputs()
    assert (put_in.name, put_in.type, put_in.shape[1:]) == ("images", "tensor(float)", [3, 32, 32])
    (found,) = session.run([put_out.name], {"images": batch.numpy()})
    return torch.from_numpy(found)


def by_torchscript(file: Path, batch: torch.Tensor) -> torch.Tensor:
    return torch.jit.load(file)(batch)


def by_torchvision(file: Path, batch: torch.Tensor) -> torch.Tensor:
    state = torch.load(file, weights_only=True)
    network = torchvision.models.resnet18(num_classes=len(state["fc.bias"]))
    network.load_state_dict(state)
    return network.eval()(batch)


def by_timm(folder: Path, batch: torch.Tensor) -> torch.Tensor:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(batch)


BY = {
    "onnx": by_onnx,
    "torchscript": by_torchscript,
    "torchvision": by_torchvision,
    "timm": by_timm,
}


@torch.no_grad()
def assert_same_logits(form: str, file: Path, method: Method) -> None:
    for number in (1, 5):
        batch = images(number)
        expected = method.predict(batch).float()
        assert expected.isfinite().all() and expected.std() > 1e-2
        torch.testing.assert_close(BY[form](file, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("resnet", "torchvision"),
        ("resnet", "timm"),
        ("lora", "timm"),
        ("lws", "timm"),
        ("cifar", "torchscript"),
        ("cosine", "torchscript"),
        ("experts", "torchscript"),
        ("fixmatch", "torchscript"),
        ("adapter", "torchscript"),
    ],
)
def test_another_program_computes_the_logits_of_the_run(kind, form, made):
    folder, method = made(kind)
    assert_same_logits(form, exported(folder, form), method)


def test_onnx_gives_the_logits_of_a_cosine_head_and_says_what_it_is(made):
    folder, method = made("cosine")
    file = exported(folder, "onnx")
    assert_same_logits("onnx", file, method)
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.output] == ["logits"]
    assert_says({each.key: each.value for each in model.metadata_props}, "smallest", 32, "bilinear")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cifar", "experts", "adapter"])
def test_onnx_gives_the_logits_of_every_kind_of_run(kind, made):
    folder, method = made(kind)
    assert_same_logits("onnx", exported(folder, "onnx"), method)


@pytest.mark.slow
def test_the_formats_give_what_evaluation_computes_of_real_images(tinted, tmp_path):
    folder, own = tmp_path / "run", ("model.backbone=resnet18", "loss.name=logit_adjustment")
    run(*words("classifier_cifar10_lt", tinted, folder, *own, "max_steps=2"))
    config, method = open_run(folder, [], World())
    files = {form: exported(folder, form) for form in BY}
    for batch in RunData(config, World()).evaluate("test", 1):
        with torch.no_grad():
            expected = method.predict(batch.views[0]).float()
            for form, file in files.items():
                found = BY[form](file, batch.views[0].contiguous())
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def assert_says(about: dict[str, str], backbone: str, resize: int, interpolation: str) -> None:
    """What every format has to say of the run."""
    assert (about["backbone"], about["steps"]) == (backbone, "12")
    assert json.loads(about["classes"]) == NAMES
    assert json.loads(about["class_counts"]) == COUNTS
    sees = json.loads(about["preprocessing"])
    mean, std = sees.pop("mean"), sees.pop("std")
    assert len(mean) == len(std) == 3 and all(0 < value < 1 for value in mean + std)
    assert sees == {
        "resize": resize,
        "interpolation": interpolation,
        "crop": "center",
        "input_size": 32,
    }


def test_every_format_says_how_images_are_seen_and_what_the_classes_are(made):
    folder, _ = made("resnet")
    with safe_open(exported(folder, "safetensors"), "pt") as file:
        assert_says(file.metadata(), "resnet18", 40, "bicubic")
    state = torch.load(exported(folder, "torchvision"), weights_only=True)
    assert_says(state.metadata, "resnet18", 40, "bicubic")
    kept = {METADATA_FILE: ""}
    torch.jit.load(exported(folder, "torchscript"), _extra_files=kept)
    assert_says(json.loads(kept[METADATA_FILE]), "resnet18", 40, "bicubic")
    described = json.loads((exported(folder, "timm") / "config.json").read_text())
    assert_says(described["lt_train"], "resnet18", 40, "bicubic")


@pytest.mark.parametrize(("size", "resize"), [(32, 40), (64, 93), (96, 118)])
def test_timm_sees_images_as_evaluation_does(size, resize, tmp_path):
    view = ("view.size=32", f"eval_view.size={size}", f"eval_view.resize={resize}")
    finish_run(tmp_path, "model.backbone=timm/test_efficientnet", *TIMM, *view)
    network = timm.create_model(f"local-dir:{exported(tmp_path, 'timm')}", pretrained=True)
    assert network.pretrained_cfg["label_names"] == NAMES
    seen = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    resized, cropped, _, normalized = seen.transforms
    assert resized.size == resize and tuple(cropped.size) == (size, size)
    assert resized.interpolation == transforms.InterpolationMode.BICUBIC
    assert normalized.mean.tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert normalized.std.tolist() == pytest.approx([0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("kind", "form", "why"),
    [
        ("cifar", "torchvision", "torchvision has no resnet32_cifar"),
        ("cifar", "timm", "timm has no resnet32_cifar"),
        ("cosine", "torchvision", "a cosine classifier, which no linear layer"),
        ("experts", "timm", "which no linear layer"),
        ("moco", "torchvision", "the run has no classifier"),
        ("adapter", "timm", "the run has adapters, which timm does not know"),
        ("lora", "torchvision", "torchvision has no test_vit"),
        (
            "two heads",
            "timm",
            "its head is more than one linear layer (head.bias, head.weight, head_",
        ),
    ],
)
def test_what_a_library_cannot_hold_is_one_line_that_names_what_can(kind, form, why, made, capsys):
    folder, _ = made(kind)
    line = refused(capsys, "export", folder, "--format", form)
    assert why in line and "use --format onnx, torchscript or safetensors" in line
    assert not (folder / FILES[form]).exists()


def test_a_network_of_ones_own_that_only_has_a_library_s_name_is_refused(
    monkeypatch, tmp_path, capsys
):
    def other_vit() -> nn.Module:
        network = timm.create_model("test_vit", num_classes=0, img_size=32)
        network.norm.eps, network.out_features = 1.0, network.num_features
        return network

    for number, (mine, why) in enumerate(
        [
            (other_vit, "computes other logits"),
            (Smallest, "its network of that name has no conv.bias"),
        ]
    ):
        monkeypatch.setitem(BACKBONES, "test_vit", mine)
        folder = tmp_path / str(number)
        finish_run(folder, "model.backbone=test_vit")
        assert why in refused(capsys, "export", folder, "--format", "timm")


def test_a_run_without_classifier_gives_its_features(made, capsys):
    folder, method = made("moco")
    file = exported(folder, "torchscript")
    assert "features of smallest: the run has no classifier" in capsys.readouterr().err
    with torch.no_grad():
        torch.testing.assert_close(by_torchscript(file, images()), method.backbone(images()))


def test_code_that_a_trace_would_get_wrong_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(BACKBONES, "smallest", lambda: Smallest(greedy=True))
    finish_run(tmp_path, SMALLEST)
    line = refused(capsys, "export", tmp_path, "--format", "torchscript")
    assert "a trace of the network computes something else" in line
    assert not (tmp_path / "model.pt").exists()


def test_without_its_packages_onnx_is_refused_with_how_to_get_them(
    made, monkeypatch, tmp_path, capsys
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    line = refused(
        capsys, "export", made("cifar")[0], "--format", "onnx", "--out", tmp_path / "model.onnx"
    )
    assert "--format onnx needs onnxscript: pip install 'lt-train[export]'" in line


@pytest.mark.parametrize("form", FILES)
def test_out_must_be_what_the_format_writes(form, made, capsys):
    folder, _ = made("cifar")
    wrong = "model.tar" if form != "timm" else "model.onnx"
    line = refused(capsys, "export", folder, "--format", form, "--out", folder / wrong)
    assert "must end in" in line or "must be a folder for --format timm" in line


def test_adapter_only_has_a_format_of_its_own(made, capsys):
    line = refused(capsys, "export", made("cifar")[0], "--adapter-only", "--format", "onnx")
    assert "leave out --format onnx" in line


@pytest.mark.parametrize(("kind", "form"), [("lws", "timm"), ("cosine", "torchscript")])
def test_what_is_there_stays_until_the_new_file_is_whole(
    kind, form, made, tmp_path, monkeypatch, capsys
):
    folder, _ = made(kind)
    out = tmp_path / FILES[form]
    command = ["export", folder, "--format", form, "--out", out]
    run(*command)
    files = [file for file in (out, *out.glob("*")) if file.is_file()]
    before = [file.read_bytes() for file in files]
    assert "overwrite it with --force" in refused(capsys, *command)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert exit_status("lt_train", lambda: run(*command, "--force")) == 74
    assert [file.read_bytes() for file in files] == before
    assert sorted(tmp_path.rglob("*.tmp")) == []


def test_names_too_long_for_a_header_are_left_out_of_headers_alone(tmp_path, capsys):
    names = [name * HEADER_LIMIT for name in NAMES]
    finish_run(tmp_path, SMALLEST, names=names)
    with safe_open(exported(tmp_path, "safetensors"), "pt") as file:
        assert "classes" not in file.metadata() and "class_counts" in file.metadata()
    said = capsys.readouterr().err
    assert "classes, too long for a header, stand in result.json" in said
    kept = {METADATA_FILE: ""}
    content = exported(tmp_path, "torchscript").read_bytes()
    torch.jit.load(io.BytesIO(content), _extra_files=kept)
    assert json.loads(json.loads(kept[METADATA_FILE])["classes"]) == names
