"""The model of the step time: closed forms, message sizes against the modules and collectives that
make them, monotonic in ranks.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from docs import scaling
from docs.scaling import Costs, Fabric, efficiency, method_costs, model_size, step, volume
from lt_train.config.load import load_config
from lt_train.config.schema import Config, DataConfig, MocoConfig, SamplerConfig
from lt_train.data.order import check_batch
from lt_train.errors import UserError
from lt_train.methods.base import Counts
from lt_train.methods.classifier import Classifier
from lt_train.methods.moco import Moco

SIZES = (1, 8, 64, 256, 1024)
KINDS = ("all_reduce", "all_gather", "all_to_all")


@pytest.fixture(scope="module")
def costs() -> dict[str, Costs]:
    return {each.name: each for each in method_costs()}


def make_moco() -> Moco:
    return Moco(load_config("moco_demo", ["model.backbone=resnet10"]), Counts.of(torch.ones(10)))


def trained_bytes(module: torch.nn.Module) -> int:
    return sum(4 * part.numel() for part in module.parameters() if part.requires_grad)


def test_gradient_bytes_are_those_of_the_methods(costs):
    config = Config(data=DataConfig(root="none"), moco=MocoConfig(queue_size=8))
    with torch.device("meta"):
        classifier = Classifier(config, Counts.of(torch.ones(1000)))
    parameters = 23_508_032 + 2048 * 1000 + 1000
    assert costs["classifier"].gradients == trained_bytes(classifier) == 4 * parameters
    assert costs["moco"].gradients == 4 * (23_508_032 + 2048 * 2048 + 2048 + 2048 * 128 + 128)
    small = make_moco()
    gradients, tensors, statistics = model_size("resnet10", dim=128)
    assert gradients == trained_bytes(small)
    assert tensors == sum(part.requires_grad for part in small.parameters())
    # of both encoders
    norms = [norm for norm in small.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    assert 2 * statistics == 4 * 2 * sum(norm.num_features for norm in norms)


def test_checkpoint_bytes_are_those_of_weights_momentum_and_queue(costs):
    small = make_moco()
    gradients, _, statistics = model_size("resnet10", dim=128)
    # momentum is as large as the gradients
    saved = trained_bytes(small) + sum(tensor.nbytes for tensor in small.state_dict().values())
    counted = 3 * gradients + 2 * statistics + small.queue.nbytes + small.waiting_keys.nbytes
    assert counted == pytest.approx(saved, abs=1024)  # counters
    moco = costs["moco"]
    assert moco.checkpoint - 65536 * 128 * 4 == 3 * moco.gradients + moco.statistics


def test_a_shuffled_image_is_bf16():
    assert torch.empty(3, 224, 224, dtype=torch.bfloat16).nbytes == scaling.VIEW_BYTES


@pytest.mark.parametrize("ranks", SIZES)
def test_volumes(ranks):
    reduced, gathered, exchanged = (volume(kind, 1000, ranks) for kind in KINDS)
    assert reduced == 2 * gathered == 2 * exchanged
    assert volume("all_gather", 1000, ranks) == pytest.approx(1000 * (ranks - 1) / ranks)


def test_collectives_without_latency_reach_the_stated_bandwidth():
    fabric = Fabric(launch=0, near=0, far=0, reached=1)
    assert fabric.seconds("all_reduce", 450e9, 8) == pytest.approx(2 * 7 / 8)
    # eight NICs of 50 GB/s a node
    assert fabric.seconds("all_reduce", 400e9, 64) == pytest.approx(2 * 63 / 64)
    # what goes to the 56 GPUs of other nodes
    assert fabric.seconds("all_to_all", 50e9, 64) == pytest.approx(56 / 64)
    assert all(fabric.seconds(kind, 1e9, 1) == 0 for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_collectives_take_longer_with_ranks_and_with_bytes(kind):
    by_ranks = [Fabric().seconds(kind, 1e8, ranks) for ranks in SIZES]
    by_bytes = [Fabric().seconds(kind, size, 64) for size in (0, 1e3, 1e6, 1e9)]
    assert by_ranks == sorted(set(by_ranks)) and by_bytes == sorted(set(by_bytes))


@pytest.mark.parametrize("name", ["classifier", "moco"])
def test_one_gpu_is_what_was_measured_and_more_are_never_more_efficient(costs, name):
    method = costs[name]
    assert 256 / step(method, 1, 256)["total"] == pytest.approx(method.end_to_end)
    for local in (2, 32, 256):
        shares = [efficiency(method, ranks, local) for ranks in SIZES]
        assert shares[0] == pytest.approx(1) and shares == sorted(shares, reverse=True)
        totals = [step(method, ranks, local)["total"] for ranks in SIZES]
        assert totals == sorted(totals)


def test_the_parts_add_up_and_gradients_that_cannot_hide_are_exposed(costs):
    times = step(costs["moco"], 64, 32)
    assert times["total"] == pytest.approx(times["busy"] + times["waiting"] + times["exposed"])
    slow = Fabric(nic=1e6)
    classifier = costs["classifier"]
    seconds = volume("all_reduce", classifier.gradients, 64) / (8 * 1e6 * slow.reached)
    assert step(classifier, 64, 256, slow)["exposed"] == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize("nic, hides", [(50e9, True), (1e9, False), (1e7, False)])
def test_mocos_images_hide_behind_a_forward_pass_and_its_keys_behind_backward(costs, nic, hides):
    """As far as the network is fast enough; the keys' way back never hides."""
    moco, ranks, local, fabric = costs["moco"], 64, 256, Fabric(nic=nic)
    a_pass = local / moco.end_to_end / moco.passes
    images = fabric.seconds("all_to_all", local * scaling.VIEW_BYTES, ranks)
    back = fabric.seconds("all_to_all", local * moco.dim * 4, ranks)
    keys = fabric.seconds("all_gather", ranks * local * moco.dim * 4, ranks)
    assert (images < a_pass) == hides
    gradients = step(replace(moco, dim=0), ranks, local, fabric)["exposed"]
    beyond = keys if nic < 1e8 else 0  # gradients take longer than backward by themselves
    exposed = step(moco, ranks, local, fabric)["exposed"]
    assert exposed == pytest.approx(gradients + max(0, images - a_pass) + back + beyond)


def test_rows_that_check_batch_refuses_are_not_in_the_tables():
    with pytest.raises(UserError):
        check_batch(SamplerConfig(), 128, 256)
    rows = [line for line in scaling.tables() if "global 128" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["1", "8", "64"] * 2
    # docs/scaling.md: 128 ranks at most
    config = load_config("crt_imagenet_lt", ["model.init_from=x"])
    check_batch(config.sampler, config.global_batch_size, 128)
    with pytest.raises(UserError):
        check_batch(config.sampler, config.global_batch_size, 129)


def measured_rank(config: str, ranks: int, root: Path, *more: str) -> dict:
    """What docs/rank_costs.py finds, in a process of its own as it is always run."""
    script = str(Path(scaling.__file__).with_name("rank_costs.py"))
    command = [sys.executable, script, config, str(ranks), str(root), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_collectives_of_a_rank_of_many_are_those_of_the_model(demo_root):
    ranks, local, dim, queue = 64, 16, 128, 256
    small = ["model.backbone=resnet10", f"moco.queue_size={queue}"]
    found = measured_rank("moco_imagenet_lt", ranks, demo_root, *small)
    calls, received = found["steps"], found["bytes"]
    assert calls.keys() == {"allreduce", "allgather_base", "alltoall_base"}
    assert calls["allgather_base"] == 1 and calls["alltoall_base"] == 2
    assert received["allgather_base"] == ranks * local * dim * 4
    assert received["alltoall_base"] == local * (3 * 64 * 64 + dim) * 4  # images, and keys back
    gradients, _, statistics = model_size("resnet10", dim=dim)
    asked = torch.tensor(0).nbytes  # whether a rank has been asked to leave
    assert received["allreduce"] == gradients + 2 * statistics + asked
    assert found["sampling"] > 0 and found["shuffling"] > 0
