"""Weights of other projects: files in every published form are read, and others refused."""

import argparse
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lt_train.errors import UserError
from lt_train.models.backbones import make_backbone
from lt_train.models.heads import ScaledClassifier
from lt_train.models.weights import BACKBONE_FILE, CLASSIFIER_FILE, export_weights, load_weights
from tests.helpers.networks import State, assert_same_state, randomize

CLASSES = 5


@pytest.fixture(scope="module")
def cifar() -> State:
    return randomize(make_backbone("resnet32_cifar"), 0).state_dict()


@pytest.fixture(scope="module")
def resnet18() -> State:
    return drawn("resnet18")


def drawn(name: str) -> State:
    """The state of a torchvision model.

    A tensor has one value, drawn at random, so that a file is small whatever the shapes.
    """
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    values = 0.5 + torch.rand(len(state), generator=torch.Generator().manual_seed(1))
    return {
        key: (100 * value).to(tensor.dtype).clone().expand(tensor.shape)
        for value, (key, tensor) in zip(values, state.items())
    }


def other(state: State) -> State:
    """The same network with other weights."""
    return {
        name: (tensor[(0,) * tensor.dim()] + 1).expand(tensor.shape)
        for name, tensor in state.items()
    }


def body(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def head(name: str, width: int = 64) -> State:
    return {f"{name}.weight": torch.rand(CLASSES, width), f"{name}.bias": torch.rand(CLASSES)}


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def loaded(source: Path, name: str = "resnet32_cifar") -> State:
    backbone = randomize(make_backbone(name), 7)
    load_weights(backbone, str(source))
    return backbone.state_dict()


def reason(source: Path, name: str = "resnet32_cifar") -> str:
    """Why the file is refused: one line, and nothing of the backbone is changed."""
    backbone = randomize(make_backbone(name), 7)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(UserError) as refusal:
        load_weights(backbone, str(source))
    assert "\n" not in str(refusal.value) and str(source) in str(refusal.value)
    assert_same_state(backbone.state_dict(), before)
    return str(refusal.value)


# files of other projects


def moco(state: State) -> dict:
    """facebookresearch/moco and the reference: query and key encoder under DDP, queue, v2's MLP
    head of two layers.
    """
    network = body(state)
    names = ("fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias")
    mlp = {name: torch.rand(4) for name in names}
    weights = {
        "module.queue": torch.rand(128, 32),
        "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        **under("module.encoder_k.", other(network | mlp)),
        **under("module.encoder_q.", network | mlp),
    }
    momentum = {
        "state": {0: {"momentum_buffer": torch.rand(64, 3, 7, 7)}},
        "param_groups": [{"lr": 0.03, "params": [0]}],
    }
    return {"epoch": 200, "arch": "resnet18", "state_dict": weights, "optimizer": momentum}


def yang_xu_imagenet(state: State) -> dict:
    """models/resnet.py of the reference: shortcut for downsample, the stem twice, the head called
    linear.
    """
    weights = {}
    for name, tensor in state.items():
        weights[name.replace("downsample", "shortcut").replace("fc.", "linear.")] = tensor
    weights["layer_one.weight"] = weights["conv1.weight"]
    return {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": under("module.", weights),
        "best_acc1": torch.tensor(41.2),
        "optimizer": {},
    }


def hugging_face(state: State) -> State:
    """ResNetForImageClassification of transformers; its own names, from ours."""
    parts = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    weights = {}
    for name, tensor in state.items():
        *module, last = name.split(".")
        if module[0] == "fc":
            weights[f"classifier.1.{last}"] = tensor
            continue
        place = parts.get(module[0])
        if place is None:
            layer, block, part, *which = module
            place = f"encoder.stages.{int(layer[-1]) - 1}.layers.{block}."
            if part == "downsample":
                place += f"shortcut.{'normalization' if which == ['1'] else 'convolution'}"
            else:
                kind = "convolution" if part.startswith("conv") else "normalization"
                place += f"layer.{int(part[-1]) - 1}.{kind}"
        weights[f"resnet.{place}.{last}"] = tensor
    return weights


def sequential(state: State) -> State:
    """``nn.Sequential(*list(resnet.children())[:-1])``."""
    with torch.device("meta"):
        children = [name for name, _ in torchvision.models.resnet18().named_children()]
    weights = {}
    for name, tensor in body(state).items():
        module, _, rest = name.partition(".")
        weights[f"{children.index(module)}.{rest}"] = tensor
    return weights


def two(first: str, second: str) -> Callable[[State], State]:
    """A network, and another one beside it."""
    return lambda state: under(second, other(body(state))) | under(first, body(state))


RESNET18_FILES: dict[str, Callable[[State], object]] = {
    "torchvision": lambda state: state,
    "timm checkpoint": lambda state: {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "state_dict": state,
        "metric": np.float64(71.5),
    },
    "timm moving average": lambda state: {"state_dict": other(state), "state_dict_ema": state},
    "MAE": lambda state: {
        "model": under("module.backbone.", state),
        "scaler": {"scale": 1.0},
        "epoch": 3,
    },
    "DINO": lambda state: {
        "student": under("module.backbone.", other(state)),
        "teacher": under("backbone.", state),
    },
    "MoCo": moco,
    "BYOL": two("online_network.encoder.", "target_network.encoder."),
    "BYOL of others": two("model.online_encoder.net.0.", "model.target_encoder.net.0."),
    "solo-learn": lambda state: {
        "state_dict": two("backbone.", "momentum_backbone.")(state),
        "pytorch-lightning_version": "2.1",
    },
    "lightly": two("backbone.", "backbone_momentum."),
    "Lightning's moving average": two("ema.", "model."),
    "Hugging Face": hugging_face,
    "Hugging Face, the model alone": lambda state: {
        name.removeprefix("resnet."): tensor for name, tensor in hugging_face(body(state)).items()
    },
    "Hugging Face, trained by Lightning": lambda state: {
        "state_dict": under("model.", hugging_face(state))
    },
    "nn.Sequential": sequential,
    "nn.Sequential under a prefix": lambda state: {
        "state_dict": under("module.encoder.", sequential(state)) | head("module.linear", 512)
    },
    "nn.Sequential of both of MoCo's": lambda state: two("encoder_q.", "encoder_k.")(
        sequential(state)
    ),
    "Yang and Xu, ImageNet": yang_xu_imagenet,
    "Yang and Xu, cRT": lambda state: {
        "state_dict_best": {
            "feat_model": under("module.", body(state)),
            "classifier": head("module.fc", 512),
        }
    },
}


@pytest.mark.parametrize("kind", RESNET18_FILES)
def test_a_resnet18_of_another_project_is_read(kind, resnet18, tmp_path):
    source = saved(tmp_path / "published.pth.tar", RESNET18_FILES[kind](resnet18))
    assert_same_state(loaded(source, "resnet18"), body(resnet18))


@pytest.mark.parametrize("zipped", [True, False], ids=["torch 1.6", "before torch 1.6"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["one GPU", "DataParallel"])
@pytest.mark.parametrize(
    "head", [head("fc"), {"fc.weight": torch.rand(64, CLASSES)}], ids=["linear", "NormedLinear"]
)
def test_a_cifar_resnet32_of_the_reference_is_read(zipped, prefix, head, cifar, tmp_path):
    checkpoint = {
        "epoch": 200,
        "arch": "resnet32",
        "state_dict": under(prefix, cifar | head),
        "best_acc1": np.float64(70.4),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float32(1e-5)}]},
    }
    source = tmp_path / "ckpt.best.pth.tar"
    saved(source, checkpoint, _use_new_zipfile_serialization=zipped)
    assert_same_state(loaded(source), cifar)


def test_scalars_of_numpy_1_are_read(cifar, tmp_path):
    checkpoint = {"state_dict": cifar, "best_acc1": np.float64(70.4)}
    source = saved(tmp_path / "old.pth", checkpoint, _use_new_zipfile_serialization=False)
    now, then = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"
    content = source.read_bytes()
    assert content.count(now) == 1
    source.write_bytes(content.replace(now, then))
    assert_same_state(loaded(source), cifar)


def test_safetensors_and_bin_files_of_timm_are_read(cifar, tmp_path):
    save_file(cifar | head("fc"), tmp_path / "model.safetensors")
    saved(tmp_path / "pytorch_model.bin", cifar | head("fc"))
    for name in ("model.safetensors", "pytorch_model.bin"):
        assert_same_state(loaded(tmp_path / name), cifar)


def test_half_precision_is_widened(cifar, tmp_path):
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in cifar.items()
    }
    expected = {name: tensor.to(cifar[name].dtype) for name, tensor in halves.items()}
    assert_same_state(loaded(saved(tmp_path / "half.pth", halves)), expected)


def test_files_from_before_num_batches_tracked_leave_it_as_it_is(cifar, tmp_path):
    old = {name: tensor for name, tensor in cifar.items() if "num_batches" not in name}
    fresh = randomize(make_backbone("resnet32_cifar"), 7).state_dict()
    assert_same_state(loaded(saved(tmp_path / "old.pth", old)), fresh | old)
    old.pop("bn1.running_mean")
    assert "1 are missing, 0 unexpected" in reason(saved(tmp_path / "older.pth", old))


def test_one_line_says_what_matched_and_what_was_left_out(resnet18, tmp_path, caplog):
    source = saved(tmp_path / "moco.pth.tar", moco(resnet18))
    with caplog.at_level(logging.INFO, "lt_train.models.weights"):
        loaded(source, "resnet18")
    (line,), count = caplog.messages, len(body(resnet18))
    matched = f"{source}: all {count} tensors match (under state_dict.module.encoder_q, not \
state_dict.module.encoder_k, which model.init_prefix can choose)"
    left_out = f"encoder_k ({count + 4}), fc (4), optimizer (1), queue (1), queue_ptr (1)"
    assert line == f"{matched}; left out: {left_out}"


# what does not fit


@pytest.mark.parametrize(
    ("published", "own", "part"),
    [
        ("resnet50", "resnet101", "0 unexpected, 0 of another shape"),
        ("resnet101", "resnet50", "0 are missing, 306 unexpected, 0 of another shape"),
        ("resnet34", "resnet18", "0 are missing"),
        ("wide_resnet50_2", "resnet50", "0 are missing, 0 unexpected"),
        ("resnext50_32x4d", "resnet50", "0 are missing, 0 unexpected"),
        ("vit_b_16", "resnet50", "0 keys match"),
    ],
)
def test_another_network_is_refused(published, own, part, tmp_path):
    with torch.device("meta"):
        backbone = make_backbone(own)
    source = saved(tmp_path / "published.pth", drawn(published))
    with pytest.raises(UserError, match="does not fit.*does model.backbone match") as refusal:
        load_weights(backbone, str(source))
    assert part in str(refusal.value)


def test_the_same_network_is_accepted_in_that_form(tmp_path):
    with torch.device("meta"):
        backbone = make_backbone("resnet101")
    source = saved(tmp_path / "published.pth", drawn("resnet101"))
    assert load_weights(backbone, source) == len(backbone.state_dict())


CONV1 = "layer1.0.conv1.weight"
ANOTHER_BLOCK = {
    "layer3.5.conv1.weight": torch.rand(64, 64, 3, 3),
    "layer3.5.bn1.weight": torch.rand(64),
}
ANOTHER_STAGE = {
    "layer4.0.conv1.weight": torch.rand(64, 64, 3, 3),
    "layer4.0.bn1.weight": torch.rand(64),
}
SHORTCUT = {"layer2.0.shortcut.0.weight": torch.rand(32, 16, 1, 1)}
CHANGES: dict[str, Callable[[State], State]] = {
    "a flat convolution": lambda state: state | {CONV1: state[CONV1].flatten(1)},
    "integers": lambda state: state | {"conv1.weight": state["conv1.weight"].to(torch.int8)},
    "another block": lambda state: state | ANOTHER_BLOCK,
    "another stage": lambda state: state | ANOTHER_STAGE,
    "learnt shortcuts": lambda state: state | SHORTCUT,
    "a bias": lambda state: state | {"conv1.bias": torch.rand(16)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_network_that_is_almost_the_same_is_refused(change, cifar, tmp_path):
    almost = {"state_dict": CHANGES[change](cifar | head("fc"))}
    assert "does not fit" in reason(saved(tmp_path / "almost.pth", almost))


def test_two_networks_that_fit_as_well_are_not_guessed_between(cifar, tmp_path):
    both = {"first": cifar, "second": other(cifar)}
    message = reason(saved(tmp_path / "both.pth", both))
    assert "2 networks that fit (first, second): choose one with model.init_prefix" in message


@pytest.mark.parametrize("chosen", ["second", "module.second", "state_dict.module.second"])
def test_a_network_is_chosen_by_its_prefix_or_a_part_of_it(chosen, cifar, tmp_path):
    both = {"state_dict": under("module.first.", other(cifar)) | under("module.second.", cifar)}
    backbone = randomize(make_backbone("resnet32_cifar"), 7)
    load_weights(backbone, saved(tmp_path / "both.pth", both), chosen=chosen)
    assert_same_state(backbone.state_dict(), cifar)


def test_the_momentum_network_can_be_chosen(resnet18, tmp_path):
    source = saved(tmp_path / "moco.pth.tar", moco(resnet18))
    backbone = make_backbone("resnet18")
    load_weights(backbone, source, chosen="encoder_k")
    assert_same_state(backbone.state_dict(), other(body(resnet18)))


@pytest.mark.parametrize("chosen", ["third", "econd", "second.conv1"])
def test_an_unknown_prefix_names_those_that_there_are(chosen, cifar, tmp_path):
    source = saved(tmp_path / "both.pth", {"first": cifar, "second": other(cifar)})
    with pytest.raises(UserError) as refusal:
        load_weights(make_backbone("resnet32_cifar"), source, chosen=chosen)
    words = (
        f"model.init_prefix={chosen}: {source} has no network of that name; it has first, second"
    )
    assert words == str(refusal.value)


def test_no_prefix_is_to_be_chosen_where_there_is_none(cifar, tmp_path):
    source = saved(tmp_path / "plain.pth", cifar)
    with pytest.raises(UserError, match="it has one at its top, without a prefix: unset it"):
        load_weights(make_backbone("resnet32_cifar"), source, chosen="student")
    export_weights(make_backbone("resnet32_cifar"), tmp_path / BACKBONE_FILE, {})
    with pytest.raises(UserError, match="is a run's folder, which has one only"):
        load_weights(make_backbone("resnet32_cifar"), tmp_path, chosen="student")


def test_what_is_not_understood_is_named(tmp_path):
    foreign = {"stem.w": torch.rand(8, 3, 7, 7), "blocks.0.w": torch.rand(8, 8)}
    message = reason(saved(tmp_path / "foreign.pth", foreign))
    assert "0 keys match" in message
    assert "(2 tensors such as stem.w (8, 3, 7, 7), blocks.0.w (8, 8))" in message


def test_a_folder_of_weights_that_is_no_run_names_its_file(cifar, tmp_path):
    save_file(cifar, tmp_path / "model.safetensors")
    assert f"name one of its files, such as {tmp_path / 'model.safetensors'}" in reason(tmp_path)


def test_a_run_folder_must_hold_exactly_the_network(cifar, tmp_path):
    save_file(cifar | head("fc"), tmp_path / BACKBONE_FILE)
    with pytest.raises(UserError, match="2 unexpected"):
        load_weights(make_backbone("resnet32_cifar"), tmp_path)
    export_weights(ScaledClassifier(64, CLASSES), tmp_path / CLASSIFIER_FILE, {})
    with pytest.raises(UserError, match="3 unexpected"):
        load_weights(nn.Linear(64, CLASSES), tmp_path, CLASSIFIER_FILE)


# what is no checkpoint, or a dangerous one


class Command:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_checkpoint_is_refused_unrun(zipped, cifar, tmp_path):
    trace = tmp_path / "trace"
    checkpoint = {"state_dict": cifar, "best_acc1": Command(trace)}
    source = saved(tmp_path / "evil.pth", checkpoint, _use_new_zipfile_serialization=zipped)
    assert "is refused" in reason(source) and not trace.exists()
    torch.load(source, weights_only=False)
    assert trace.exists(), "a careless reader runs it"


def test_a_malicious_pickle_is_refused_unrun(tmp_path):
    trace, source = tmp_path / "trace", tmp_path / "evil.pth"
    source.write_bytes(pickle.dumps({"state_dict": Command(trace)}, protocol=2))
    assert "not a readable checkpoint" in reason(source) or "is refused" in reason(source)
    assert not trace.exists()
    pickle.loads(source.read_bytes())
    assert trace.exists()


def test_a_whole_module_is_refused_by_its_name(tmp_path):
    assert "CifarResNet" in reason(saved(tmp_path / "module.pth", make_backbone("resnet32_cifar")))


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "state_dict": {}}, [1, 2]], ids=str)
def test_a_file_without_tensors_is_refused(content, tmp_path):
    assert "holds no tensors" in reason(saved(tmp_path / "empty.pth", content))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_off_is_refused(zipped, share, cifar, tmp_path):
    source = saved(tmp_path / "cut.pth", cifar, _use_new_zipfile_serialization=zipped)
    os.truncate(source, int(share * source.stat().st_size))
    assert "not a readable checkpoint" in reason(source)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    contents = {
        "text.pth": b"epoch,loss\n1,2.3\n",
        "noise.pth": np.random.default_rng(0).bytes(5000),
        "text.safetensors": b"epoch,loss\n1,2.3\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "not a readable" in reason(tmp_path / name)
    cyclic = {}
    cyclic["again"] = cyclic
    assert "not a readable checkpoint" in reason(saved(tmp_path / "cyclic.pth", cyclic))
    for nothing in (tmp_path, tmp_path / "nothing.pth"):
        assert "there is no" in reason(nothing)
